"""The user's own images: --train_dir, optional --test_dir and --mask_dir; or a root in the MVTec layout.

--train_dir   normal images, directly inside or in a folder good/ (ok/, Normal/); other folders are ignored
--test_dir    one folder per kind: good/ holds normal images, every other folder a defect
--mask_dir    <defect>/<stem>_mask.* or <defect>/<stem>.* for every anomalous test image

Own images are read upright: they often come from telephones, which store every image as the sensor lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from readers.base import (
    Sample,
    Source,
    check_split,
    find_class_folder,
    is_normal_folder,
    list_images,
    require_folder,
)
from readers.mvtec import read_mvtec, read_normals, read_test_folders


def read_folder(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of the user's own folders, upright; the test split is empty without test images.

    Raises ValueError or FileNotFoundError, naming the flag, for folders that are missing or have no images.
    """
    check_split(split)
    return [replace(sample, upright=True) for sample in read_stored(source, class_name, split)]


def read_stored(source: Source, class_name: str, split: str) -> list[Sample]:
    """The samples of `read_folder`, to be read as stored."""
    if source.train_dir is None and source.test_dir is None:
        root = require_folder(source.root, "--train_dir (or --data_path, in the MVTec layout)")
        if split == "test" and not (find_class_folder(root, class_name) / "test").is_dir():
            return []
        return read_mvtec(source, class_name, split)
    if split == "train":
        return read_train_dir(require_folder(source.train_dir, "--train_dir"))
    return [] if source.test_dir is None else read_test_dir(source)


def read_train_dir(folder: Path) -> list[Sample]:
    """The images directly inside, or else those of its normal folders. Raises FileNotFoundError if there are none."""
    samples = [Sample(image, anomalous=False, defect="good") for image in list_images(folder)] or read_normals(folder)
    if not samples:
        raise FileNotFoundError(
            f"no training images under --train_dir {folder}: put normal images directly inside or in {folder / 'good'}"
        )
    return samples


def read_test_dir(source: Source) -> list[Sample]:
    """The images of all folders in --test_dir with the masks of --mask_dir. Raises FileNotFoundError."""
    test = require_folder(source.test_dir, "--test_dir")
    masks = None if source.mask_dir is None else require_folder(source.mask_dir, "--mask_dir")
    samples = read_test_folders(test, masks)
    if not samples:
        loose = len(list_images(test))
        raise FileNotFoundError(
            f"no test images in folders under --test_dir {test}"
            + (f" ({loose} lie directly inside)" if loose else "")
            + ": it must hold good/ with normal images and one folder per defect"
        )
    return samples


def name_class(source: Source) -> str:
    """The class name of the user's own folders: the name of --train_dir, without trailing folders train and good."""
    folder = require_folder(source.train_dir, "--train_dir").resolve()
    for place in (folder, *folder.parents):
        if place.name and place.name.lower() != "train" and not is_normal_folder(place.name):
            return place.name
    return "folder"
