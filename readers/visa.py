"""VisA: the raw release with split_csv, or a copy in the MVTec layout (`1cls/<class>/...`, or without that level).

Raw masks hold defect ids (1, 2, ...). 500 file names occur in both Normal and Anomaly, so only whole paths are unique.
Prepared masks have no `_mask` suffix and another extension than their image; some copies store three channels.
"""

from __future__ import annotations

import csv
from pathlib import Path

from readers.base import (
    Sample,
    Source,
    candidate_roots,
    check_name,
    check_split,
    discover_classes,
    find_class_folder,
    is_class_folder,
    no_images_error,
    path_below,
    require_folder,
)
from readers.mvtec import read_mvtec

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


def read_visa(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of one class from the prepared copy where there is one, else from the raw release.

    Raises FileNotFoundError for missing classes, images and masks, ValueError for a split file of another form and for
    paths in it that lead out of the root.
    """
    check_split(split)
    root = require_folder(source.root, "--data_path")
    split_file = find_split_file(root)
    if split_file is None or is_class_folder(find_class_folder(root, class_name)):
        return read_mvtec(source, class_name, split)
    samples = [sample for row in read_rows(split_file) if (sample := to_sample(row, split_file, class_name, split))]
    if not samples:
        raise no_images_error(split, split_file.parent.parent / class_name, root)
    missing = [p for s in samples for p in (s.image, s.mask) if p is not None and not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files of {split_file} are missing, the first {missing[0]}: unpack the data set again"
        )
    return sorted(samples, key=lambda s: (s.anomalous, str(s.image)))


def find_visa_classes(root: Path) -> tuple[str, ...]:
    """The sorted classes of the prepared copy where there is one, else those in the split file."""
    split_file = find_split_file(root)
    prepared = discover_classes(root)
    if split_file is None or prepared:
        return prepared
    return tuple(check_name(name, str(split_file)) for name in sorted({row["object"] for row in read_rows(split_file)}))


def find_split_file(root: Path) -> Path | None:
    """split_csv/1cls.csv of the raw release, in `root` or below it; None where there is none."""
    return next((p / SPLIT_FILE for p in candidate_roots(root) if (p / SPLIT_FILE).is_file()), None)


def read_rows(split_file: Path) -> list[dict[str, str]]:
    """The lines of split_csv/1cls.csv. Raises ValueError where columns are missing, and for what is no CSV file."""
    with split_file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, restval="")
        try:
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise ValueError(f"{split_file}: wanted the columns {', '.join(COLUMNS)}; found {reader.fieldnames}")
            return list(reader)
        except csv.Error as error:
            raise ValueError(f"{split_file}, line {reader.line_num}: no CSV ({error}): copy the file again") from None


def to_sample(row: dict[str, str], split_file: Path, class_name: str, split: str) -> Sample | None:
    """The sample of a line; None where the line belongs to another class or split.

    Raises ValueError for an unknown label, for an anomaly in train and for a path that leads out of the root,
    FileNotFoundError for an anomaly without a mask.
    """
    if (row["object"], row["split"]) != (class_name, split):
        return None
    if row["label"] not in ("normal", "anomaly"):
        raise ValueError(f"{split_file}: wanted the label normal or anomaly, found {row['label']!r} for {row['image']}")
    root, anomalous = split_file.parent.parent, row["label"] == "anomaly"
    if split == "train" and anomalous:
        raise ValueError(f"{split_file}: {row['image']} is an anomaly in train: this is not the one-class split file")
    if anomalous and not row["mask"]:
        raise FileNotFoundError(f"{split_file}: no mask is given for {row['image']}")
    mask = path_below(root, row["mask"], str(split_file)) if anomalous else None
    image = path_below(root, row["image"], str(split_file))
    return Sample(image, anomalous, "anomaly" if anomalous else "good", mask)
