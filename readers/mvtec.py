"""The layout of MVTec AD, which MPDD, BTAD, prepared VisA and the demo share.

    <class>/train/good/*            normal images; anything else under train/ is ignored
    <class>/test/good/*             normal
    <class>/test/<defect>/*         anomalous
    <class>/ground_truth/<defect>/  <stem>_mask.* or <stem>.*, any extension

`good` may also be named ok, OK or Normal. A class without a ground_truth folder has no masks.
"""

from __future__ import annotations

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
    no_images_error,
    pair_masks,
    require_folder,
)


def read_mvtec(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of one class and split, sorted by folder and file name; none of a validation split that is not there.

    Raises FileNotFoundError for a class without images and for an anomalous image without a mask.
    """
    check_split(split, VALIDATION)
    root = require_folder(source.root, "--data_path")
    folder = find_class_folder(root, class_name)
    if split == VALIDATION:  # MVTec LOCO and MVTec AD 2 have one
        return read_normals(folder / "validation")
    if split == "train":
        samples, wanted = read_normals(folder / "train"), folder / "train" / "good"
    else:
        samples, wanted = read_test_folders(folder / "test", folder / "ground_truth"), folder / "test"
    if not samples:
        raise no_images_error(split, wanted, root)
    return samples


def read_normals(train: Path) -> list[Sample]:
    """The images in the normal folders under `train`; train/bad (VAD) must never be trained on."""
    folders = [p for p in list_folders(train) if is_normal_folder(p.name)]
    return [Sample(image, anomalous=False, defect="good") for folder in folders for image in list_images(folder)]


def read_test_folders(test: Path, masks: Path | None) -> list[Sample]:
    """The images of all folders under `test`: normal folders and one per defect.

    `masks` holds one folder per defect, and may lie in `test` itself; without it no sample has a mask. Raises
    FileNotFoundError as `pair_masks`.
    """
    samples: list[Sample] = []
    for folder in list_folders(test):
        if folder == masks:
            continue
        images = list_images(folder)
        if is_normal_folder(folder.name):
            samples += [Sample(image, anomalous=False, defect="good") for image in images]
        elif masks is None or not masks.is_dir():
            samples += [Sample(image, anomalous=True, defect=folder.name) for image in images]
        else:
            samples += pair_masks(images, masks / folder.name, folder.name)
    return samples
