"""The user's own images: --train_dir, optional --test_dir, --bad and --mask_dir; or a root in the MVTec layout.

--train_dir   normal images, directly inside or in a folder good/ (ok/, Normal/); other folders are ignored
--test_dir    one folder per kind: good/ holds normal images, every other folder a defect; beside --bad also normal
              images directly inside
--bad         images with defects, directly inside or in one folder per kind of defect
--mask_dir    <defect>/<stem>_mask.* or <defect>/<stem>.* for every anomalous test image

Own images are read upright: they often come from telephones, which store every image as the sensor lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from readers.base import (
    VALIDATION,
    Sample,
    Source,
    check_split,
    find_class_folder,
    is_normal_folder,
    list_folders,
    list_images,
    require_folder,
)
from readers.mvtec import pair_masks, read_mvtec, read_normals, read_test_folders


def read_folder(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of the user's own folders, upright; the test split is empty without test images.

    Raises ValueError or FileNotFoundError, naming the flag, for folders that are missing or have no images.
    """
    check_split(split, VALIDATION)
    return [replace(sample, upright=True) for sample in read_stored(source, class_name, split)]


def read_stored(source: Source, class_name: str, split: str) -> list[Sample]:
    """The samples of `read_folder`, to be read as stored."""
    if source.train_dir is None and source.test_dir is None and source.bad is None:
        root = require_folder(source.root, "--train_dir (or --data_path, in the MVTec layout)")
        if split == "test" and not (find_class_folder(root, class_name) / "test").is_dir():
            return []
        return read_mvtec(source, class_name, split)
    if split == "train":
        return read_train_dir(require_folder(source.train_dir, "--train_dir"))
    if split == VALIDATION:
        return []
    return [
        *([] if source.test_dir is None else read_test_dir(source)),
        *([] if source.bad is None else read_bad(source)),
    ]


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
    loose = len(list_images(test))
    if loose and not samples and source.bad is not None:
        return [Sample(image, anomalous=False, defect="good") for image in list_images(test)]
    if not samples:
        raise FileNotFoundError(
            f"no test images in folders under --test_dir {test}"
            + (f" ({loose} lie directly inside)" if loose else "")
            + ": it must hold good/ with normal images and one folder per defect; or give images with defects as --bad"
        )
    return samples


def read_bad(source: Source) -> list[Sample]:
    """The images of --bad, all anomalous, with the masks of --mask_dir. Raises FileNotFoundError, ValueError."""
    bad = require_folder(source.bad, "--bad")
    masks = None if source.mask_dir is None else require_folder(source.mask_dir, "--mask_dir")
    normal = [folder.name for folder in list_folders(bad) if is_normal_folder(folder.name)]
    if normal:
        raise ValueError(f"--bad {bad}: holds the folder {normal[0]} of normal images: give it as --test_dir instead")
    loose = list_images(bad)
    if loose and masks is not None:
        samples = pair_masks(loose, masks / bad.name if (masks / bad.name).is_dir() else masks, bad.name)
    else:
        samples = [Sample(image, anomalous=True, defect=bad.name) for image in loose]
    samples += read_test_folders(bad, masks)
    if not samples:
        raise FileNotFoundError(f"no images under --bad {bad}: they lie directly inside or in one folder per defect")
    return samples


def name_class(source: Source) -> str:
    """The class name of the user's own folders: the name of --train_dir, without trailing folders train and good."""
    folder = require_folder(source.train_dir, "--train_dir").resolve()
    for place in (folder, *folder.parents):
        if place.name and place.name.lower() != "train" and not is_normal_folder(place.name):
            return place.name
    return "folder"
