"""The frozen teacher: a backbone pretrained on ImageNet, cut off after its level at stride 16."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from model.blocks import BLOCKS, down_stage, initialize
from model.checkpoints import load_checked, read_torch_file, tensors_by_name
from model.fold_batch_norm import fold_batch_norms
from model.precision import autocast
from model.specs import COARSEST, IMAGENET_MEAN, IMAGENET_STD, TEACHERS, ResNetSpec, TeacherSpec, Triple
from model.timm_backbone import build_timm, cut_timm
from utils import file_sha256


class Teacher(nn.Module):
    """Images (B, 3, S, S), uint8 in 0..255 or float in [0, 1] -> E1, E2, E3: levels (B, C, S/k, S/k), k = 4, 8, 16.

    Frozen: no gradients, and `train()` leaves it in evaluation mode. It normalizes the images itself, as torchvision's
    ToTensor and Normalize do. Raises ValueError when S is not a multiple of 32.

    name      as given to `build_teacher`
    channels  of the levels, finest first
    signed    whether levels can be negative (a ResNet's, which end in a ReLU, cannot)
    weights   "sha256:<64 digits>" of the file, "random:<seed>", or what timm fetched
    resnet  how a ResNet is built, None for other backbones
    precision  what it computes with and what its levels are then, fp32 or bf16
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        name: str,
        channels: tuple[int, int, int],
        weights: str,
        signed: bool,
        resnet: ResNetSpec | None = None,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.channels = channels
        self.weights = weights
        self.signed = signed
        self.resnet = resnet
        self.precision = "fp32"
        self.layout = torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode whatever `mode` says."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.mean.device

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if height % COARSEST or width % COARSEST:
            raise ValueError(f"images of {height}x{width} pixels: --image_size must be a multiple of {COARSEST}")
        x = self.normalize(images).contiguous(memory_format=self.layout)
        with autocast(x.device, self.precision):
            return list(self.net(x))

    def optimize_for_inference(self, precision: str = "fp32", channels_last: bool = True) -> Teacher:
        """Itself with batch norms folded, this precision and, where wanted, this layout: equal up to rounding."""
        fold_batch_norms(self.net)
        self.precision = precision
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        return self.to(memory_format=self.layout)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) as the backbone gets them: less `mean`, divided by `std`, channel by channel."""
        scale = 1.0 if images.is_floating_point() else 255.0
        return (images.to(self.mean.dtype) / scale - self.mean) / self.std


class ResNetLevels(nn.Module):
    """The first three stages of torchvision's ResNet, under its own parameter names; nothing past them exists."""

    def __init__(self, resnet: ResNetSpec) -> None:
        super().__init__()
        block, counts, width = BLOCKS[resnet.block], resnet.blocks, resnet.base_width
        fine, middle, coarse = resnet.channels
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = down_stage(block, 64, fine, counts[0], stride=1, base_width=width)
        self.layer2 = down_stage(block, fine, middle, counts[1], base_width=width)
        self.layer3 = down_stage(block, middle, coarse, counts[2], base_width=width)
        initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        fine = self.layer1(x)
        middle = self.layer2(fine)
        return [fine, middle, self.layer3(middle)]  # E1, E2, E3


def build_teacher(name: str, weights: str | Path = "auto", seed: int = 0) -> Teacher:
    """A teacher of `TEACHERS`, or `timm/NAME` for any timm model with levels at strides 4, 8 and 16.

    weights  "auto": the file that the row names, from torch.hub's folder, downloaded into it when it is not there
             "random": no pretraining; the same seed gives the same teacher
             otherwise a file; one that fits but is not the row's own is taken with a warning

    The global random state is left as it was. Raises ValueError for an unknown name or a file that is not what it
    should be, FileNotFoundError for one that is not available.
    """
    # Whatever the weights: what comes after the teacher draws the same numbers.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone, since only that one is put back
        if name.startswith("timm/"):
            net, channels, origin = build_timm(name, weights, seed)
            cfg = net.pretrained_cfg
            return Teacher(net, name, channels, origin, signed=True, mean=cfg["mean"], std=cfg["std"])
        if name not in TEACHERS:
            raise ValueError(f"unknown --net '{name}': choose from {', '.join(TEACHERS)}, or timm/NAME")
        row = TEACHERS[name]
        if row.resnet is not None:
            net, channels = ResNetLevels(row.resnet), row.resnet.channels
        else:
            net, channels = cut_timm(row.timm_model, name)
    origin = f"random:{seed}" if weights == "random" else _load_weights(net, name, row, weights)
    return Teacher(net, name, channels, origin, row.resnet is None, row.resnet, row.mean, row.std)


def _load_weights(net: nn.Module, name: str, row: TeacherSpec, weights: str | Path) -> str:
    """Fill `net`; returns where the weights come from."""
    path = row.find(name, row.file, row.sha256) if weights == "auto" else Path(weights)
    digest = file_sha256(path) if path.is_file() else ""
    found = f"its SHA-256 begins with {digest[:8]}, not {row.sha256}"
    if weights == "auto" and not digest.startswith(row.sha256):
        raise ValueError(f"{path} is corrupt or another file: {found}; delete it, or name a file by --weights FILE")
    what = f"{path} as weights of {name}"
    load_checked(net, row.rename(tensors_by_name(read_torch_file(path, "--weights"), what)), what)
    if not digest.startswith(row.sha256):
        warnings.warn(f"{path} is not {row.file} ({found}): other weights give other results", stacklevel=3)
    return f"sha256:{digest}"
