"""Checkpoints of the published RD4AD, SK-RD4AD and RD++ code: {'bn': bottleneck, 'decoder': student[, 'proj']}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.bottleneck import MFF
from model.checkpoints import load_checked, read_torch_file
from model.distiller import Distiller

BOTTLENECK_NAMES = {
    "conv1": "fusion.reduce0.0",
    "bn1": "fusion.reduce0.1",
    "conv2": "fusion.reduce0.3",
    "bn2": "fusion.reduce0.4",
    "conv3": "fusion.reduce1.0",
    "bn3": "fusion.reduce1.1",
    "bn_layer": "embed",
}
PROJECTION_NAMES = {"proj_a.proj": "levels.0", "proj_b.proj": "levels.1", "proj_c.proj": "levels.2"}
STUDENT_NAMES = {"layer1": "stages.2", "layer2": "stages.1", "layer3": "stages.0"}  # layer1 makes the coarsest level
NEVER_CALLED = ("conv4.", "bn4.")  # built by the published code and never called


def load_published(path: Path | str, distiller: Distiller) -> None:
    """Load a published checkpoint's weights into `distiller`, of the same backbone, with or without skips.

    Files of RD4AD and SK-RD4AD have the same names and shapes: nothing in a file tells whether it was trained with
    skips. Layers that the published code never calls are dropped, and so are a bottleneck's "memory" keys, as RD4AD's
    own test script does.

    Raises FileNotFoundError when there is no file, ValueError when it is no such checkpoint, was saved without its
    bottleneck, has a projection where `distiller` has none or the reverse, or is of another backbone or variant.
    """
    path = Path(path)
    content = read_torch_file(path, "--checkpoint")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is no published checkpoint: it holds a {type(content).__name__}, not a dict")
    if distiller.teacher.resnet is None:
        raise ValueError(f"{path}: published checkpoints are of ResNets, not of --net {distiller.teacher.name}")
    if not isinstance(distiller.bottleneck.fusion, MFF) or distiller.student.generation:
        raise ValueError(f"{path}: published checkpoints are read for rd4ad, sk_rd4ad and rdpp, not for this variant")
    if "proj" in content and distiller.projection is None:
        raise ValueError(f"{path} was saved by RD++: it needs its projection layer; add --variant rdpp")
    if "proj" not in content and distiller.projection is not None:
        raise ValueError(f"{path} has no projection layer, which RD++ needs: it was saved by another variant")
    if "bn" not in content and ("decoder" in content or _is_decoder(content)):
        raise ValueError(
            f"{path} holds only a decoder: it was saved by the published --seg 1 code, which leaves out the trained "
            "bottleneck; such a checkpoint cannot be scored"
        )
    parts = ("bn", "decoder", *(("proj",) if "proj" in content else ()))
    if not all(isinstance(content.get(part), Mapping) for part in parts):
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ValueError(f"{path} is no published checkpoint: wanted the parts {' and '.join(parts)}, found {found}")
    kind = f"as a checkpoint of {distiller.teacher.name}"
    bottleneck, student = _plain(content["bn"]), _plain(content["decoder"])
    dropped = [name for name in bottleneck if name.startswith(NEVER_CALLED) or "memory" in name]
    for name in dropped:
        del bottleneck[name]
    load_checked(distiller.bottleneck, _renamed(bottleneck, BOTTLENECK_NAMES), f"the bottleneck of {path} {kind}")
    load_checked(distiller.student, _renamed(student, STUDENT_NAMES), f"the decoder of {path} {kind}")
    if distiller.projection is not None:
        projection = _renamed(_plain(content["proj"]), PROJECTION_NAMES)
        load_checked(distiller.projection, projection, f"the projection of {path} {kind}")


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that DataParallel leaves."""
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _is_decoder(content: Mapping) -> bool:
    return any(re.fullmatch(r"(module\.)?layer1\.0\.upsample\..*", str(name)) for name in content)


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        head = next((head for head in names if name.startswith(f"{head}.")), None)
        renamed[name if head is None else names[head] + name.removeprefix(head)] = value
    return renamed
