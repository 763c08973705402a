"""Everything between an image and its score as one module: normalization, networks, anomaly map, smoothing, score."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from detector import Detector, score_pairs
from model import Distiller
from model.masking import FeatureMasking


class ScoringGraph(nn.Module):
    """Images (B, 3, S, S) uint8 RGB -> image scores (B,) and anomaly maps (B, S, S) float32, as `Detector.predict`."""

    def __init__(self, network: Distiller, detector: Detector) -> None:
        super().__init__()
        self.network = network
        self.size, self.scoring = detector.config.image_size, detector.config.scoring
        self.map_statistics = detector.map_statistics

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = self.network(images)
        levels = [pairs[level] for level in self.scoring.levels]
        return score_pairs(levels, self.size, self.scoring, self.map_statistics)

    def example(self) -> Tensor:
        """Two images of noise."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (2, 3, self.size, self.size), generator=generator, dtype=torch.uint8)


def build_graph(detector: Detector) -> ScoringGraph:
    """The graph that is exported: a copy for the CPU in fp32, batch norms folded, what is random in it drawn."""
    distiller = copy.deepcopy(detector.distiller).cpu()  # a layout is set in place, and detectors share their teacher
    distiller.teacher.layout, distiller.teacher.precision = torch.contiguous_format, "fp32"
    graph = ScoringGraph(distiller.to_inference(channels_last=False), detector).eval()
    _draw_masks(graph)
    graph(graph.example())  # the matrices that enlarge and smooth are cached: tracing takes them as constants
    return graph


class _DrawnMasking(nn.Module):
    """`FeatureMasking` in evaluation with its one mask (1, 1, H, W) as data."""

    visible: Tensor

    def __init__(self, masking: FeatureMasking, visible: Tensor) -> None:
        super().__init__()
        self.rebuild = masking.rebuild
        self.register_buffer("visible", visible)

    def forward(self, x: Tensor) -> Tensor:
        return self.rebuild(x * self.visible)


def _draw_masks(graph: ScoringGraph) -> None:
    """Replace what hides features in evaluation too: its draw depends on the features' size alone."""
    drawn: dict[nn.Module, nn.Module] = {}

    def draw(masking: Any, inputs: tuple[Tensor]) -> None:
        drawn[masking] = _DrawnMasking(masking, masking.visible(inputs[0]))

    hiding = [m for m in graph.modules() if isinstance(m, FeatureMasking) and m.rate and m.in_evaluation]
    hooks = [masking.register_forward_pre_hook(draw) for masking in hiding]
    graph(graph.example())
    for hook in hooks:
        hook.remove()
    for module in list(graph.modules()):
        for name, child in list(module.named_children()):
            if child in drawn:
                setattr(module, name, drawn[child])
