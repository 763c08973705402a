"""maps.npz: the anomaly maps and masks of a run's test images, for pixel curves and for `python -m scripts.score_maps`.

maps               (N, S, S) float32, in the order of predictions.csv: to the bit what the metrics were computed from
masks              (N, S, S) bool; absent where the run has no pixel metrics
labels             (N,) bool, True for anomalous images
color_scale        (2,), the two scores at which an overlay is clear and fully colored
checkpoint_sha256  of the checkpoint that made the maps
classes            (N,) names, in a run over several classes only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils import printable, write_atomically

MAPS = "maps.npz"
REMEDY = "python test.py RUN --save_maps writes it anew"


@dataclass(frozen=True)
class SavedMaps:
    """The arrays of a maps.npz; `masks` is None where the run has no pixel metrics, `classes` () in a run of one."""

    maps: np.ndarray
    masks: np.ndarray | None
    labels: np.ndarray
    color_scale: tuple[float, float]
    checkpoint_sha256: str
    classes: np.ndarray | Sequence[str] = ()

    def write(self, folder: Path, check: Callable[[], object] | None = None) -> None:
        """Write `folder`/maps.npz, `check` as in `write_atomically`. Raises OSError naming it."""
        arrays: dict[str, Any] = {"maps": self.maps, "labels": self.labels, "color_scale": np.array(self.color_scale)}
        arrays |= {"checkpoint_sha256": np.array(self.checkpoint_sha256)}
        arrays |= {} if self.masks is None else {"masks": self.masks}
        arrays |= {"classes": np.array(self.classes, str)} if len(self.classes) else {}

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, **arrays)

        write_atomically(folder / MAPS, write, check)

    @classmethod
    def read(cls, folder: Path, images: int) -> SavedMaps:
        """The maps of a run with so many test images.

        Raises FileNotFoundError, and ValueError where the file is damaged or is none of such a run.
        """
        path = folder / MAPS
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {REMEDY}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in file.files}
        except Exception as problem:  # a damaged file can raise any error in NumPy
            reason = printable(str(problem)) or type(problem).__name__
            raise ValueError(f"{path}: a damaged .npz file ({reason}); {REMEDY}") from None
        if misfit := _misfit(arrays, images):
            raise ValueError(f"{path}: {misfit}; {REMEDY}")
        low, high = arrays["color_scale"].tolist()
        sha256 = str(arrays["checkpoint_sha256"])
        classes = arrays.get("classes", ())
        return cls(arrays["maps"], arrays.get("masks"), arrays["labels"], (low, high), sha256, classes)


def _misfit(arrays: Mapping[str, np.ndarray], images: int) -> str | None:
    """What is wrong with the arrays of a file, in words."""
    maps = arrays.get("maps", np.empty(0))
    if maps.ndim != 3 or len(maps) != images or not maps.size or maps.dtype.kind != "f" or not np.isfinite(maps).all():
        return f"maps must be ({images}, H, W), finite floating-point numbers: found {maps.shape} {maps.dtype}"
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "labels": ("b", (images,)),
        "color_scale": ("f", (2,)),
        "checkpoint_sha256": ("U", ()),
    }
    wanted |= {"masks": ("b", maps.shape)} if "masks" in arrays else {}
    wanted |= {"classes": ("U", (images,))} if "classes" in arrays else {}
    for name, (kind, shape) in wanted.items():
        if name not in arrays:
            return f"{name} is missing"
        if (arrays[name].dtype.kind, arrays[name].shape) != (kind, shape):
            return f"{name} must be {shape}: found {arrays[name].shape} {arrays[name].dtype}"
    return None
