"""Any timm model that has levels at strides 4, 8 and 16, cut off after the last of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoints import read_torch_file, state_sha256
from model.weights import first_line
from utils import file_sha256

STRIDES = (4, 8, 16)


def cut_timm(model: str, name: str, **options: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    """The timm model `model`, giving its three levels, and their channels; `options` go to timm.create_model.

    Raises ValueError, naming the teacher `name`, without timm, for an unknown model or one without such levels.
    """
    timm = _import_timm(name)
    if not timm.is_model(model):
        raise ValueError(f"unknown --net '{name}': timm {timm.__version__} has no model {model}")
    try:
        info = timm.create_model(model, features_only=True, pretrained=False).feature_info
        found = dict(zip(info.reduction(), info.out_indices, strict=True))  # the deepest level of each stride
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"--net {name} cannot be used: timm gives no levels of it ({first_line(error)})") from error
    if not set(STRIDES) <= set(found):
        strides = ", ".join(map(str, found))
        raise ValueError(f"--net {name} cannot be used: its levels have strides {strides}, but 4, 8, 16 are needed")
    indices = tuple(found[stride] for stride in STRIDES)
    net = timm.create_model(model, features_only=True, out_indices=indices, **options)
    # timm cuts most models after the last level asked for, but not those that it builds of `blocks`.
    match = re.match(r"blocks\.(\d+)", net.feature_info.module_name()[-1])
    if match and isinstance(getattr(net, "blocks", None), nn.Sequential):
        net.blocks = net.blocks[: int(match[1]) + 1]
    return net, tuple(net.feature_info.channels())


def build_timm(name: str, weights: str | Path, seed: int) -> tuple[Any, tuple[int, int, int], str]:
    """The model `timm/NAME`, its levels' channels, and where its weights come from.

    Raises ValueError as `cut_timm` does, for a model whose levels have another layout and for a file that does not fit;
    FileNotFoundError for weights that are not available.
    """
    model = name.removeprefix("timm/")
    if weights == "random":
        net, channels = cut_timm(model, name)
        origin = f"random:{seed}"
    elif weights == "auto":
        cut_timm(model, name)  # so that an error below is one of the weights
        try:
            net, channels = cut_timm(model, name, pretrained=True)
        except Exception as error:  # the hub's library, the network and the disk each have their own kinds
            raise FileNotFoundError(
                f"no weights for --net {name}: timm could not get them ({first_line(error)}); name a file by "
                "--weights FILE"
            ) from error
        origin = f"timm:{_import_timm(name).__version__}:sha256:{state_sha256(net)}"
    else:
        net, channels = _from_file(model, name, Path(weights))
        origin = f"sha256:{file_sha256(Path(weights))}"
    _check_levels(net, channels, name)
    return net, channels, origin


def _from_file(model: str, name: str, path: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    content = read_torch_file(path, "--weights")  # timm's own errors about files are many lines long
    if wrong := _not_finite(content):
        raise ValueError(f"{path} as weights of {name} does not fit: it has NaN or infinite values in {wrong}")
    try:
        # With features_only timm passes over names that it misses or does not know; a whole model must fit exactly.
        _import_timm(name).create_model(model, checkpoint_path=str(path))
        return cut_timm(model, name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except Exception as error:  # of a file that holds no weights, timm raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} as weights of {name} does not fit: {reason}") from error


def _not_finite(content: object) -> str:
    """The name of the first tensor with NaN or infinite values in tables of tensors, at any depth; empty without."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            return str(name)
        if wrong := _not_finite(value):
            return wrong
    return ""


def _check_levels(net: nn.Module, channels: tuple[int, int, int], name: str) -> None:
    side = 64
    wanted = [(1, count, side // stride, side // stride) for count, stride in zip(channels, STRIDES, strict=True)]
    try:
        with torch.no_grad():
            found = [tuple(level.shape) for level in net.eval()(torch.zeros(1, 3, side, side))]
    except (RuntimeError, AssertionError) as error:  # a model for one image size
        raise ValueError(
            f"--net {name} cannot be used: it rejects {side}x{side} images ({first_line(error)})"
        ) from error
    if found != wanted:
        raise ValueError(f"--net {name} cannot be used: its levels have shapes {found}, not {wanted}")


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"--net {name} needs the package timm: pip install timm") from error
    return timm
