"""ELPV: photographs of solar cells, from the pip package elpv-dataset alone.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images", 2019.
`labels.csv` gives a probability of a defect per cell: 0 is normal here, 1 anomalous, 1/3 and 2/3 are left out. There
are no masks. Neighboring cell numbers come from one module, so the split goes by blocks of 30 numbers, never by cells.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

from readers.base import Sample, Source, candidate_roots, check_split, require_folder

BLOCK = 30  # cells per block; a module of the data set has 60 or 72
PARTS = 3  # every third block is held out


def default_root() -> Path:
    """The folder of the installed package; FileNotFoundError with the command that installs it."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "--dataset elpv needs a package: pip install elpv-dataset, or name its folder of labels.csv by --data_path"
        )
    return Path(spec.origin).parent / "data"


def block_part(cell: int) -> int:
    """Which third of the blocks a cell number (from 1) belongs to: 0, 1 or 2."""
    return (cell - 1) // BLOCK % PARTS


def read_elpv(
    source: Source,
    class_name: str,
    split: str,
    train_parts: Collection[int] = (0, 1),
    test_parts: Collection[int] = (2,),
) -> list[Sample]:
    """Cells of one kind (mono, poly): normals of the training blocks, or everything sure of the test blocks.

    The development split passes other parts, so that what is tuned never sees a block of the final test.
    Raises FileNotFoundError without labels.csv, ValueError for an unknown class or a line that is no label.
    """
    check_split(split)
    root = require_folder(source.root, "--data_path")
    labels = next((p / "labels.csv" for p in candidate_roots(root) if (p / "labels.csv").is_file()), None)
    if labels is None:
        raise FileNotFoundError(
            f"no labels.csv under {root}: --data_path must hold labels.csv and images/ of elpv-dataset"
        )
    parts = train_parts if split == "train" else test_parts
    rows = read_labels(labels)
    if class_name not in {kind for _, _, kind in rows}:
        kinds = ", ".join(sorted({kind for _, _, kind in rows}))
        raise ValueError(f"unknown class {class_name!r} of elpv: choose from {kinds}")
    samples = []
    for path, probability, kind in rows:
        anomalous = probability == 1
        sure = probability in (0, 1) and not (split == "train" and anomalous)
        if kind == class_name and sure and block_part(int(path.stem[-4:])) in parts:
            samples.append(Sample(labels.parent / path, anomalous, "defect" if anomalous else "good"))
    return sorted(samples, key=lambda s: s.image.name)


def read_labels(labels: Path) -> list[tuple[Path, float, str]]:
    """(path below labels.csv, probability, kind) per line; the columns are parted by blanks."""
    rows = []
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, kind = line.split()
            rows.append((Path(path), float(probability), kind))
        except ValueError:
            raise ValueError(f"{labels}, line {number}: wanted 'path probability kind', found {line!r}") from None
    return rows
