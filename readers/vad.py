"""VAD (Valeo): one class without masks, `vad/{train,test}/...`, image-level metrics only.

One-class methods train on train/good only. The release also holds train/bad (for supervised methods) and
low_shot_train/; a loader that reads all of train/ trains on a thousand defects as normal images. Every folder under
test/ is scored, including bad_unseen_defects.
"""

from __future__ import annotations

from pathlib import Path

from readers.base import Sample, Source, candidate_roots, check_split, is_class_folder, no_images_error, require_folder
from readers.mvtec import read_normals, read_test_folders


def read_vad(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of the one class; `class_name` is "vad". Raises FileNotFoundError where there are no images."""
    check_split(split)
    root = require_folder(source.root, "--data_path")
    folder = find_vad(root, class_name)
    samples = read_normals(folder / "train") if split == "train" else read_test_folders(folder / "test", None)
    if not samples:
        raise no_images_error(split, folder / ("train/good" if split == "train" else "test"), root)
    return samples


def find_vad(root: Path, class_name: str = "vad") -> Path:
    """The folder that holds train/good, whatever its name: the root or the first one below it."""
    return next((p for p in candidate_roots(root) if is_class_folder(p)), root / class_name)
