"""What training yields and a checkpoint holds: a detector takes images and gives scores and anomaly maps."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from config import Config
from dataset import BENCHMARKS, GivenImages, ImageSet, image_batches
from methods import Scoring, build_distiller
from model import Distiller, Teacher, build_teacher
from model.precision import resolve_precision
from report.results import flat_metrics
from run_files import CHECKPOINT, CONFIG, METRICS, Run
from run_files.checkpoints import check_for_config
from run_files.checks import named
from scoring.anomaly_map import (
    MapStatistics,
    Pair,
    anomaly_map,
    at_size,
    color_scale,
    image_score,
    level_maps,
    score_refinement_factor,
)
from scoring.groups import Groups, by_title, subsets_of
from scoring.intervals import Bootstrap, bootstrap_intervals
from scoring.metrics import AUPIMO, Report, compute_subsets, mean_over_classes, sample_metrics
from scoring.modes import OWN
from scoring.normalization import Normalizer, normalizers
from scoring.predictions import Prediction, Rule
from scoring.thresholds import Threshold
from scoring.tiles import Tiling
from utils import choose_device, prefetch_map, ragged, to_device

Source = str | Path | Image.Image | np.ndarray  # an image
AHEAD = 2  # threads, at most, that decode large images ahead: each holds two at most
BATCH_PIXELS = 16 * 256**2  # of a batch that is scored: memory does not grow with the image size


class Detector:
    """A trained network with all that scoring needs: images in; image scores and anomaly maps out.

    config          the run's settings: image size, scoring, precision, threads
    distiller       teacher, bottleneck and student as they were trained
    map_statistics  mean and spread of each level's map over normal images; only the standardized map needs them
    color_scale     the two scores at which overlays are clear and fully colored; None until fitted
    threshold       the run's threshold; None where no normal images were kept apart for one
    """

    def __init__(self, config: Config, distiller: Distiller) -> None:
        self.config, self.distiller = config, distiller
        self.map_statistics: MapStatistics | None = None
        self.color_scale: tuple[float, float] | None = None
        self.threshold: Threshold | None = None

    @classmethod
    def load(cls, run: Path | str, **changes: Any) -> Detector:
        """The detector of a finished run folder; `changes` replace fields of the run's Config, such as `device`.

        `weights` names the teacher's file where it has moved. Raises FileNotFoundError without a finished run or its
        checkpoint, ValueError for a teacher with other weights and for files that are not a run's.
        """
        folder = Run(Path(run))
        if not folder.finished:
            raise FileNotFoundError(
                f"{folder}: no finished run (no {METRICS}); want .../<class>/seed<k> after training"
            )
        record, state = folder.read(CONFIG), folder.load_finished()
        config = replace(folder.config(), **changes)
        teacher = frozen_teacher(config, choose_device(config.device))
        recorded = record["identity"].get("teacher_weights")
        if teacher.weights != recorded:
            raise ValueError(
                f"{folder} was trained with teacher weights {recorded}, found {teacher.weights}; give --weights FILE"
            )
        distiller = build_distiller(config.recipe, teacher).to(teacher.device)
        with named(folder.folder / CHECKPOINT):
            distiller.load_trained_state(state["trained"])
            check_for_config(state, config)
        detector = cls(config, distiller)
        if state["map_statistics"] is not None:
            tensors = {name: tensor.to(teacher.device) for name, tensor in state["map_statistics"].items()}
            detector.map_statistics = MapStatistics(**tensors)
        detector.color_scale, detector.threshold = state["color_scale"], folder.threshold()
        return detector

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, tensors and plain values only: the trained parts and what was fitted."""
        return {
            "trained": self.distiller.trained_state(),
            "map_statistics": vars(self.map_statistics) if self.map_statistics else None,
            "color_scale": self.color_scale,
        }

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.distiller.teacher.device

    @property
    def batch_size(self) -> int:
        """Images that are scored at once, fewer of larger ones."""
        return max(1, min(64, BATCH_PIXELS // self.config.image_size**2))

    @functools.cached_property
    def network(self) -> Distiller:
        """The network for inference: a copy with its batch norms folded, compiled with --compile."""
        network = self.distiller.to_inference(channels_last=self.config.fast)
        if self.config.compile:
            from torch._inductor import config as inductor_config  # slow to import

            inductor_config.freezing = True  # weights become constants: half of what compiling gains
            network.compile()
        return network

    def fit_map_statistics(self, normal_images: ImageSet) -> None:
        """Measure each level's map on normal images, where the run's anomaly map is standardized by it."""
        if self.config.scoring.anomaly_map == "standardized":
            batches = self._scored_pairs(normal_images.training_samples)
            self.map_statistics = MapStatistics.of(level_maps(pairs, normal_images.size) for pairs in batches)

    def fit_color_scale(self, normal_images: ImageSet) -> None:
        """Choose the color scale of overlays from the maps of normal images."""
        every = (found for _, maps in self.score_batches(normal_images) for found in maps)
        self.color_scale = color_scale(every, normal_images.size**2)

    @overload
    def predict(self, images: Source) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[Source]) -> list[Prediction]: ...

    def predict(self, images: Source | Sequence[Source]) -> Prediction | list[Prediction]:
        """One image, or many, as a path, a PIL image or an array -> its prediction, or a list of them in order.

        An array is (H, W, 3) or (H, W), uint8, RGB in 0..255. Files and PIL images are turned upright by EXIF. Raises
        ValueError or FileNotFoundError for an image that cannot be read.
        """
        many = isinstance(images, Sequence) and not isinstance(images, str)
        given: Sequence[Source] = images if many else [images]  # type: ignore[assignment,list-item]
        rule, found = Rule.of(self.threshold), []
        for scores, maps in self.score_batches(GivenImages(given, self.config.image_size, self.config.tiling)):
            found += [rule.judge(score, anomaly_map) for score, anomaly_map in zip(scores, maps, strict=True)]
        return found if many else found[0]

    @torch.no_grad()
    def score_batches(self, images: ImageSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Image scores (B,) and anomaly maps (B, S, S), float32, batch by batch in the order of the images.

        Large images that are cut into windows come one by one, their maps (1, H, W) joined.
        """
        scoring = self.config.scoring
        standardized = scoring.anomaly_map == "standardized"
        assert not standardized or self.map_statistics is not None, "fit_map_statistics comes first"
        if images.tiling is not None:
            yield from self._score_large(images, images.tiling)
            return
        for pairs in self._scored_pairs(images):
            scores, maps = score_pairs(pairs, images.size, scoring, self.map_statistics)
            yield scores.cpu().numpy(), maps.cpu().numpy()

    def score_all(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        """Image scores (N,) and the N anomaly maps, held in memory, as `score_batches` gives them."""
        maps = self._room_for_maps(images)
        return self._score_into(images, maps), maps

    def evaluate(self, images: ImageSet, keep_maps: bool = False, by_group: bool = False) -> Evaluation:
        """Score a test set once: image metrics always, pixel metrics where there are masks and --seg is on.

        `by_group` adds the metrics of each kind of defect and of each group (`scoring.groups`).

        Maps and masks, 4 bytes and 1 a pixel, are held until the pixel metrics are computed, and maps kept on request:
        10,000 maps of 256 x 256 are 2.6 GB, as many as 200 of 2,048 x 1,600. Of several classes each is scored by
        itself, one after the other, and the metrics are the means over them.
        """
        own_size = self.config.map_size == OWN
        if not images.by_class:
            return self._evaluate(images, keep_maps, by_group)
        kept = self._room_for_maps(images, own_size) if keep_maps else None
        parts, done = {}, 0
        for name, part in images.by_class.items():
            found = self._evaluate(part, keep_maps, by_group, None if kept is None else kept[done : done + len(part)])
            parts[name] = found if keep_maps else replace(found, maps=None, masks=None)
            done += len(part)
        return Evaluation.of_classes(parts, kept)

    def _evaluate(self, images: ImageSet, keep_maps: bool, by_group: bool, out: np.ndarray | None = None) -> Evaluation:
        """`evaluate` of one class; the maps are written into `out` where it is given."""
        with_pixels, own_size = self.config.seg and images.has_masks, self.config.map_size == OWN
        maps = out
        if maps is None and (with_pixels or keep_maps):
            maps = self._room_for_maps(images, own_size)
        scores = self._score_into(images, maps, own_size)
        samples, labels = images.samples, images.labels
        title = BENCHMARKS[self.config.dataset].group
        kinds, groups = [sample.defect for sample in samples], [sample.group for sample in samples]
        subsets = subsets_of(labels, kinds, groups, title) if by_group else {}
        mask = functools.partial(images.mask, own_size=own_size)
        masks = list(prefetch_map(mask, range(len(images)), self.config.workers)) if with_pixels else None
        reports = compute_subsets(labels, scores, maps if with_pixels else None, masks, [*subsets.values()])
        if not with_pixels:
            why = "no masks" if self.config.seg else "pixel metrics were not asked for"
            reports = [_with_pixel_reason(report, why) for report in reports]
        report = reports[0] | sample_metrics(labels, scores, images.units) if images.units else reports[0]
        return Evaluation(labels, scores, maps, masks, report, groups=by_title(labels, subsets, reports[1:]))

    def _score_large(self, images: ImageSet, tiling: Tiling) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`score_batches` by windows, at most `batch_size` at once: of a whole image only pixels and map are held.

        The score is that of the joined map, with the largest refinement factor of all windows where scores are refined.
        """
        scoring, side = self.config.scoring, images.size
        for pixels in prefetch_map(images.image, range(len(images)), min(AHEAD, self.config.workers)):
            grid = tiling.grid((pixels.shape[1], pixels.shape[2]), side)
            joined, factor = np.zeros(grid.size, np.float32), 1.0
            for start in range(0, len(grid), self.batch_size):
                numbers = range(start, min(start + self.batch_size, len(grid)))
                pairs = self._pairs(np.stack([grid.cut(pixels, number) for number in numbers]))
                maps = map_pairs(pairs, side, scoring, self.map_statistics).cpu().numpy()
                for number, found in zip(numbers, maps, strict=True):
                    grid.add(joined, number, found)
                if scoring.refine:
                    factor = max(factor, float(score_refinement_factor(pairs, side).max()))
            score = image_score(torch.from_numpy(joined)[None], scoring.score_num) * factor
            yield score.numpy(), joined[None]

    @staticmethod
    def _room_for_maps(images: ImageSet, own_size: bool = False) -> np.ndarray:
        """What holds the maps of a set: (N, S, S) float32, or (N,) of maps where they may have several sizes."""
        if own_size or images.tiling is not None:
            return ragged([None] * len(images))
        return np.empty((len(images), images.size, images.size), np.float32)

    def _score_into(self, images: ImageSet, maps: np.ndarray | None, own_size: bool = False) -> np.ndarray:
        """The scores (N,); the maps go into `maps`, with `own_size` in the sizes of the images themselves."""
        scores, done = np.empty(len(images), np.float32), 0
        for batch_scores, batch_maps in self.score_batches(images):
            for score, found in zip(batch_scores, batch_maps, strict=True):
                scores[done] = score
                if maps is not None:
                    maps[done] = at_size(found, *images.own_size(done)) if own_size else found
                done += 1
        return scores

    @torch.no_grad()
    def _scored_pairs(self, images: ImageSet) -> Iterable[list[Pair]]:
        """The pairs of the levels that count, batch by batch, while the next images are decoded."""
        for _, pixels in image_batches(images, range(len(images)), self.batch_size, self.config.workers):
            yield self._pairs(pixels)

    def _pairs(self, pixels: np.ndarray) -> list[Pair]:
        """A batch of squares (B, 3, S, S) uint8 -> the pairs of the levels that count."""
        pairs = self.network.eval()(to_device(pixels, self.device))
        return [pairs[level] for level in self.config.scoring.levels]


@dataclass(frozen=True)
class Evaluation:
    """Labels (N,) and scores (N,) of a test set, the anomaly maps if they were kept, the masks that they were compared
    with, and the metrics.

    Maps are (N, S, S) float32; where they may have several sizes, (N,) of float32 arrays (H, W).

    Of several classes, one after the other, `classes` has the evaluation of each, and the metrics are their means;
    `masks` is None where a class has none. `groups` has the metrics of kinds of defects and groups, where they were
    asked for; of several classes each has its own.
    """

    labels: np.ndarray
    scores: np.ndarray
    maps: np.ndarray | None
    masks: list[np.ndarray | None] | None
    report: Report
    classes: Mapping[str, Evaluation] = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)

    @classmethod
    def of_classes(cls, parts: Mapping[str, Evaluation], maps: np.ndarray | None) -> Evaluation:
        """The evaluations of classes as one; `maps` are those of all, in order."""
        found = list(parts.values())
        labels, scores = (np.concatenate([getattr(part, name) for part in found]) for name in ("labels", "scores"))
        masks = [mask for part in found for mask in part.masks or ()]
        complete = all(part.masks is not None for part in found)
        report = mean_over_classes([part.report for part in found])
        return cls(labels, scores, maps, masks if complete else None, report, parts)

    def parts(self, class_name: str) -> Mapping[str, Evaluation]:
        """{class: its evaluation}; `class_name` is that of a run of one class."""
        return self.classes or {class_name: self}

    def metrics(self) -> dict[str, float | None]:
        """All metrics as JSON takes them, as `report.results.flat_metrics`."""
        classes = {name: part.report.defined() for name, part in self.classes.items()}
        return flat_metrics(self.report.defined(), classes)

    @property
    def aupimo(self) -> np.ndarray | None:
        """AUPIMO of each image (N,), NaN where one has none; None where none has."""
        parts = list(self.classes.values()) or [self]
        each = [part.report.images.get(AUPIMO) for part in parts]
        if all(own is None for own in each):
            return None
        absent = (np.full(part.labels.shape, np.nan) for part in parts)
        return np.concatenate([none if own is None else own for own, none in zip(each, absent, strict=True)])

    def normalizers(self) -> dict[str, Normalizer]:
        """The normalizers of image scores and of pixels, chosen on this very set, as anomalib does by default."""
        assert self.maps is not None, "evaluate with keep_maps=True"
        return normalizers(self.report.thresholds, self.scores, self.maps)

    def intervals(self, seed_key: str, level: float = Bootstrap.level) -> dict[str, tuple[float, float]]:
        """{metric: (low, high)} by a bootstrap over the images; pixel metrics where maps and masks were kept."""
        bootstrap = Bootstrap(level, seed=zlib.crc32(f"{seed_key} intervals".encode(errors="surrogateescape")))
        return bootstrap_intervals(self.labels, self.scores, self.maps, self.masks, bootstrap)


def _with_pixel_reason(report: Report, why: str) -> Report:
    """The report whose pixel metrics are undefined for this reason."""
    reasons = {name: reason if name.startswith("image_") else why for name, reason in report.reasons.items()}
    return replace(report, reasons=reasons)


def map_pairs(pairs: list[Pair], size: int, scoring: Scoring, statistics: MapStatistics | None) -> torch.Tensor:
    """The pairs of the levels that count -> anomaly maps (B, size, size) float32.

    `statistics` are those of the standardized map, None for the others.
    """
    if statistics is not None:
        return statistics.standardized(level_maps(pairs, size))
    return anomaly_map(pairs, size, mode=scoring.anomaly_map)


def score_pairs(
    pairs: list[Pair], size: int, scoring: Scoring, statistics: MapStatistics | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of the levels that count -> image scores (B,) and anomaly maps as `map_pairs`, both float32."""
    maps = map_pairs(pairs, size, scoring, statistics)
    scores = image_score(maps, scoring.score_num)
    if scoring.refine:
        scores = scores * score_refinement_factor(pairs, size)
    return scores, maps


def frozen_teacher(config: Config, device: torch.device) -> Teacher:
    """A run's teacher; the runs of a sweep share one, except that random weights are drawn anew from each seed."""
    seed = config.seeds[0] if config.weights == "random" else 0
    precision = resolve_precision(config.precision, device)
    return _frozen_teacher(config.net, config.weights, seed, device, precision, config.fast)


@functools.lru_cache(maxsize=1)
def _frozen_teacher(
    net: str, weights: str, seed: int, device: torch.device, precision: str, channels_last: bool
) -> Teacher:
    return build_teacher(net, weights, seed).to(device).optimize_for_inference(precision, channels_last)
