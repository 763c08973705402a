"""ELPV: electroluminescence images of solar cells, read from the pip package elpv-dataset.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images", 2019.
`labels.csv` gives the probability of a defect for each cell: 0 is normal here, 1 anomalous, 1/3 and 2/3 are left out.
There are no masks. Cells with neighboring numbers come from one module, so the split goes by blocks of 30 numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from readers.base import Sample, Source, candidate_roots, check_split, path_below, require_folder

BLOCK = 30  # cells per block; a module of the data set has 60 or 72
PARTS = {"train": (0, 1), "test": (2,)}  # the parts of each split: every third block is held out
ELPV_CLASSES = ("mono", "poly")


@dataclass(frozen=True)
class Cell:
    """One line of labels.csv: the image's path, the probability of a defect, the kind of cell (mono, poly)."""

    image: Path
    number: int
    probability: float
    kind: str

    @property
    def part(self) -> int:
        """Which third of the blocks the cell belongs to: 0, 1 or 2."""
        return (self.number - 1) // BLOCK % 3


def default_root() -> Path:
    """The folder of the installed package. Raises FileNotFoundError with the command that installs it."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "--dataset elpv needs a package: pip install elpv-dataset, or name its folder of labels.csv by --data_path"
        )
    return Path(spec.origin).parent / "data"


def read_elpv(source: Source, class_name: str, split: str) -> list[Sample]:
    """Cells of one kind (mono, poly): the normal ones of the training blocks, or all certain ones of the test blocks.

    Those with a probability of 0 or 1 are certain; see `select_cells`.

    Raises FileNotFoundError without labels.csv, ValueError for an unknown class or a line that is no label.
    """
    check_split(split)
    cells = read_cells(require_folder(source.root, "--data_path"))
    kinds = sorted({cell.kind for cell in cells})
    if class_name not in kinds:
        raise ValueError(f"unknown class {class_name!r} of elpv: choose from {', '.join(kinds)}")
    return select_cells(cells, class_name, split, PARTS[split])


def read_cells(root: Path) -> list[Cell]:
    """The cells of the labels.csv in `root` or below it. Raises FileNotFoundError, or ValueError naming the line, also
    for a path that leads out of the folder."""
    labels = next((p / "labels.csv" for p in candidate_roots(root) if (p / "labels.csv").is_file()), None)
    if labels is None:
        raise FileNotFoundError(
            f"no labels.csv under {root}: --data_path must hold labels.csv and images/ of elpv-dataset"
        )
    cells = []
    text = labels.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{labels}, line {number}"
        try:
            written, probability, kind = line.split()
            cell = Cell(labels.parent / written, int(Path(written).stem[-4:]), float(probability), kind)
        except ValueError:
            raise ValueError(f"{where}: wanted 'images/cellNNNN.png probability kind', found {line!r}") from None
        path_below(labels.parent, written, where)
        cells.append(cell)
    return cells


def select_cells(cells: Iterable[Cell], kind: str, split: str, parts: Collection[int]) -> list[Sample]:
    """The cells of one kind in these parts of the blocks, sorted by file name; only normal ones for training.

    A cell is normal if its probability of a defect is 0 and anomalous if it is 1; others are left out.
    """
    probabilities = (0,) if split == "train" else (0, 1)
    chosen = [c for c in cells if c.kind == kind and c.probability in probabilities and c.part in parts]
    samples = [Sample(c.image, c.probability == 1, "defect" if c.probability == 1 else "good") for c in chosen]
    return sorted(samples, key=lambda sample: sample.image.name)
