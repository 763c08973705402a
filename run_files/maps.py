"""maps.npz: the anomaly maps and masks of a run's test images, for pixel curves and for `python -m scripts.score_maps`.

maps               (N, S, S) float32, in the order of predictions.csv: to the bit what the metrics were computed from
masks              (N, S, S) bool; absent where the run has no pixel metrics
map_0, mask_0, ... (H, W) each, in place of both where they may have several sizes
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

from utils import printable, ragged, write_atomically

MAPS = "maps.npz"
REMEDY = "python test.py RUN --save_maps writes it anew"


@dataclass(frozen=True)
class SavedMaps:
    """The arrays of a maps.npz; `masks` is None where the run has no pixel metrics, `classes` () in a run of one.

    Maps and masks of several sizes are arrays (N,) of arrays (H, W).
    """

    maps: np.ndarray
    masks: np.ndarray | None
    labels: np.ndarray
    color_scale: tuple[float, float]
    checkpoint_sha256: str
    classes: np.ndarray | Sequence[str] = ()

    @classmethod
    def of(cls, maps: np.ndarray, masks: Sequence[np.ndarray | None] | None, *facts: Any) -> SavedMaps:
        """Of an evaluation's maps, in one array or several, and their masks (None: no defect), then other fields."""
        if masks is None:
            return cls(maps, None, *facts)
        whole = [np.zeros(found.shape, bool) if mask is None else mask for mask, found in zip(masks, maps, strict=True)]
        return cls(maps, ragged(whole) if maps.dtype == object else np.stack(whole), *facts)

    def write(self, folder: Path, check: Callable[[], object] | None = None) -> None:
        """Write `folder`/maps.npz, `check` as in `write_atomically`. Raises OSError naming it."""
        arrays: dict[str, Any] = {}
        for name, found in (("map", self.maps), ("mask", self.masks)):
            if found is not None and found.dtype == object:
                arrays |= {f"{name}_{i}": item for i, item in enumerate(found)}
            elif found is not None:
                arrays[f"{name}s"] = found
        arrays |= {"labels": self.labels, "color_scale": np.array(self.color_scale)}
        arrays |= {"checkpoint_sha256": np.array(self.checkpoint_sha256)}
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
                arrays = _gathered({name: np.asarray(file[name]) for name in file.files}, images)
        except Exception as problem:  # a damaged file can raise any error in NumPy
            reason = printable(str(problem)) or type(problem).__name__
            raise ValueError(f"{path}: a damaged .npz file ({reason}); {REMEDY}") from None
        if misfit := _misfit(arrays, images):
            raise ValueError(f"{path}: {misfit}; {REMEDY}")
        low, high = arrays["color_scale"].tolist()
        sha256 = str(arrays["checkpoint_sha256"])
        classes = arrays.get("classes", ())
        return cls(arrays["maps"], arrays.get("masks"), arrays["labels"], (low, high), sha256, classes)


def _gathered(arrays: Mapping[str, np.ndarray], images: int) -> dict[str, np.ndarray]:
    """The arrays of a file, map_0, map_1, ... of all images and masks likewise as one array each."""
    found = dict(arrays)
    for name in ("map", "mask"):
        own = [f"{name}_{i}" for i in range(images)]
        if own and all(key in found for key in own):
            found[f"{name}s"] = ragged(found.pop(key) for key in own)
    return found


def _misfit(arrays: Mapping[str, np.ndarray], images: int) -> str | None:
    """What is wrong with the arrays of a file, in words."""
    maps, masks = arrays.get("maps", np.empty(0)), arrays.get("masks")
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "labels": ("b", (images,)),
        "color_scale": ("f", (2,)),
        "checkpoint_sha256": ("U", ()),
    }
    wanted |= {"classes": ("U", (images,))} if "classes" in arrays else {}
    found = dict(arrays)
    if maps.dtype == object:
        for i, anomaly_map in enumerate(maps):
            if anomaly_map.ndim != 2 or not _is_finite(anomaly_map):
                return _not_finite(f"map_{i}", "(H, W)", anomaly_map)
            if masks is not None:
                wanted[f"mask_{i}"] = ("b", anomaly_map.shape)
                found[f"mask_{i}"] = masks[i]
    elif maps.ndim != 3 or len(maps) != images or not _is_finite(maps):
        return _not_finite("maps", f"({images}, H, W)", maps)
    elif masks is not None:
        wanted["masks"] = ("b", maps.shape)
    for name, (kind, shape) in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if (found[name].dtype.kind, found[name].shape) != (kind, shape):
            return f"{name} must be {shape}: found {found[name].shape} {found[name].dtype}"
    return None


def _is_finite(numbers: np.ndarray) -> bool:
    return bool(numbers.size) and numbers.dtype.kind == "f" and bool(np.isfinite(numbers).all())


def _not_finite(name: str, shape: str, found: np.ndarray) -> str:
    return f"{name} must be {shape}, finite floating-point numbers: found {found.shape} {found.dtype}"
