"""VAD (Valeo): one class without masks, `vad/{train,test}/...`, image-level metrics only.

One-class use trains on train/good alone: the release also holds train/bad (for supervised methods) and low_shot_train/,
and a loader that takes all of train/ learns a thousand defects as normal. Every folder under test/ is scored,
bad_unseen_defects included.
"""

from __future__ import annotations

from pathlib import Path

from readers.base import Sample, Source, candidate_roots, check_split, looks_like_class, no_images, require_folder
from readers.mvtec import read_normals, read_test_folders


def read_vad(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of the one class; `class_name` is "vad". Raises FileNotFoundError where there are no images."""
    check_split(split)
    root = require_folder(source.root, "--data_path")
    folder = find_vad(root, class_name)
    samples = read_normals(folder / "train") if split == "train" else read_test_folders(folder / "test", None)
    if not samples:
        raise no_images(split, folder / ("train/good" if split == "train" else "test"), root)
    return samples


def find_vad(root: Path, class_name: str = "vad") -> Path:
    """The folder that holds train/good, whatever it is called: the root itself or the first one below it."""
    return next((p for p in candidate_roots(root) if looks_like_class(p)), root / class_name)
