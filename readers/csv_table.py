"""A CSV file that lists the images, for layouts that no other reader knows: --dataset csv.

    path,class,split,label,mask,group,unit
    images/001.png,bolt,train,good,,,
    images/007.png,bolt,test,scratch,masks/007.png,morning,

The columns mask, group and unit may be missing, and their cells empty; columns may stand in any order. Paths are
relative to the folder of the file and stay below it. UTF-8, with or without a byte order mark, commas, any line ends.

split   train, test or validation; images of train and validation are normal
label   good, ok, normal or 0: normal; 1: anomalous; any other word: anomalous, and the word is the kind of defect
mask    of an anomalous image; all anomalous images of a class and split have one, or none of them
group   what the image belongs to beside the kind of defect, such as a light or a view
unit    the object that it shows, where several images show the same one

Images are one's own, so they are read upright. The order of rows decides nothing: samples are sorted by path.
"""

from __future__ import annotations

import csv
import functools
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from commandline import did_you_mean
from readers.base import (
    SPLITS,
    VALIDATION,
    PathsBelow,
    Sample,
    Source,
    check_split,
    is_junk,
    is_normal_folder,
    name_problem,
    require_folder,
)
from readers.contents import Stamp, file_stamp
from utils import printable

REQUIRED = ("path", "class", "split", "label")
COLUMNS = (*REQUIRED, "mask", "group", "unit")
ROW_SPLITS = (*SPLITS, VALIDATION)
ANOMALOUS = "anomalous"  # the kind of defect where the label is 1
UNCLEAR = frozenset({"", "true", "false", "yes", "no", "none", "null"})  # labels that may well mean the opposite
NAMED = 20  # problems that an error names


@dataclass
class Table:
    """The images of a file by class, in order of first occurrence, and by split; in words what is wrong with it."""

    file: Path
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def complain(self, row: int, text: str) -> None:
        """Note a problem of a row; the header is row 1."""
        self.problems.append(f"{printable(self.file)}, row {row}: {text}")


def read_csv_table(source: Source, class_name: str, split: str) -> list[Sample]:
    """The samples of a class and split, sorted by path, upright; there may be none of test and validation.

    Raises FileNotFoundError without a file or without training images, and ValueError for an unknown class and, in a
    line for each row, for what is wrong with the file; 20 rows are named.
    """
    check_split(split, VALIDATION)
    table = sound_table(source.root)
    if class_name not in table.samples:
        raise ValueError(f"{table.file}: no class {class_name!r}; it has {', '.join(table.samples)}")
    samples = table.samples[class_name].get(split, [])
    if split == "train" and not samples:
        raise FileNotFoundError(f"{table.file}: no row of split train and class {class_name}: add normal images")
    return samples


def find_csv_classes(root: Path) -> tuple[str, ...]:
    """The classes of the file in order of first occurrence. Raises as `read_csv_table`."""
    return tuple(sound_table(root).samples)


def sound_table(root: Path | None) -> Table:
    """The table, with nothing wrong. Raises as `read_csv_table`."""
    table = read_table(find_csv(root))
    if table.problems:
        more = len(table.problems) - NAMED
        raise ValueError("\n".join([*table.problems[:NAMED], *([f"and {more} more"] if more > 0 else [])]))
    return table


def find_csv(path: Path | None) -> Path:
    """The file itself, or the one .csv file directly inside a folder. Raises ValueError, FileNotFoundError."""
    if path is not None and path.is_file():
        return path
    if path is not None and not path.exists():
        raise FileNotFoundError(f"--data_path {path}: no such file or folder")
    folder = require_folder(path, "--data_path FILE.csv")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".csv" and p.is_file() and not is_junk(p.name))
    if len(found) != 1:
        listed = f"; it has {', '.join(printable(p.name) for p in found[:5])}" if found else ", and it has none"
        raise FileNotFoundError(f"--data_path {folder}: wanted one .csv file{listed}: name the file itself")
    return found[0]


def read_table(file: Path) -> Table:
    """The table of a file, whatever is wrong with it; it is read again where the file has changed.

    Raises FileNotFoundError.
    """
    return _read_table(file, file_stamp(file))


@functools.lru_cache(maxsize=2)
def _read_table(file: Path, _: Stamp) -> Table:
    table = Table(file)
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            text = f"{printable(file)}, line {reader.line_num}: no CSV ({error}): is a quotation mark not closed?"
            table.problems.append(text)
            return table
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    while columns and not columns[-1]:
        columns.pop()
    if problem := _header_problem(columns):
        table.complain(1, problem)
        return table
    _read_rows(table, columns, rows)
    if not table.samples and not table.problems:
        table.problems.append(f"{printable(file)}: no row below the header: add a row for each image")
    return table


def _header_problem(columns: Sequence[str]) -> str | None:
    """What is wrong with the names of the columns; None where nothing is."""
    wanted = f"wanted the columns {', '.join(REQUIRED)}, and any of {', '.join(COLUMNS[len(REQUIRED) :])}"
    if len(columns) == 1 and any(mark in columns[0] for mark in (";", "\t")):
        return f"{wanted}, separated by commas; found {printable(columns[0])!r}: save the file with commas"
    if unknown := [name for name in columns if name not in COLUMNS]:
        hint = did_you_mean(unknown, COLUMNS)
        return f"{wanted}; found also {printable(', '.join(map(repr, unknown[:5])))}: remove or rename it{hint}"
    if missing := [name for name in REQUIRED if name not in columns]:
        return f"{wanted}; {', '.join(missing)} is missing"
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        return f"the column {', '.join(twice)} is there twice"
    return None


def _read_rows(table: Table, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Fill the table with the rows below the header."""
    find = _Finder(table.file.parent)
    listed: dict[str, int] = {}  # the row of each image
    unmasked: dict[tuple[str, str], list[int]] = {}  # of each class and split, rows of anomalous images
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(columns) :]):
            table.complain(number, f"{len(cells)} cells, but {len(columns)} columns: quote a name that holds a comma")
            continue
        row = dict.fromkeys(COLUMNS, "") | dict(zip(columns, cells, strict=False))
        try:
            sample = _read_row(row, find)
        except ValueError as problem:
            for line in str(problem).splitlines():
                table.complain(number, line)
            continue
        first = listed.setdefault(os.path.normpath(sample.image), number)
        if first != number:
            shown = printable(row["path"])
            table.complain(number, f"the image {shown} is in row {first} already: remove one of the two rows")
            continue
        class_name, split = row["class"].strip(), row["split"].strip().lower()
        if sample.anomalous and sample.mask is None:
            unmasked.setdefault((class_name, split), []).append(number)
        table.samples.setdefault(class_name, {}).setdefault(split, []).append(sample)
    for splits in table.samples.values():
        for samples in splits.values():
            samples.sort(key=lambda sample: str(sample.image))
    for (class_name, split), numbers in unmasked.items():
        anomalous = [sample for sample in table.samples[class_name][split] if sample.anomalous]
        if len(numbers) < len(anomalous):
            table.complain(
                numbers[0],
                f"no mask, as for {len(numbers)} of {len(anomalous)} anomalous images of {class_name}: give all of "
                "them, or none to score images only",
            )


def _read_row(row: Mapping[str, str], find: _Finder) -> Sample:
    """The sample of a row. Raises ValueError with a line for each thing that is wrong."""
    found = list(_values_problems(row))
    kind = _read_label(row["label"].strip())
    split = row["split"].strip().lower()
    if kind is None:
        found.append(
            f"label {printable(row['label'])!r}: wanted good (or ok, normal, 0), 1, or the name of the kind of defect"
        )
    elif kind != "good" and split in ("train", VALIDATION):
        found.append(f"label {printable(kind)!r} in {split}: images to learn from are normal; anomalous ones are test")
    paths: dict[str, Path | None] = {"path": None, "mask": None}
    for column in paths:
        if not row[column].strip():
            continue
        if column == "mask" and kind == "good":
            found.append(
                f"the mask {printable(row['mask'])} of a normal image: leave the cell empty, or is it a defect?"
            )
            continue
        try:
            paths[column] = find(row[column])
        except (ValueError, FileNotFoundError) as problem:
            found.append(str(problem))
    if found or kind is None or paths["path"] is None:
        raise ValueError("\n".join(found))
    sample = Sample(paths["path"], kind != "good", kind, paths["mask"], upright=True)
    return replace(sample, group=row["group"].strip(), unit=row["unit"].strip())


def _values_problems(row: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the class, the split, an image that is not named."""
    class_name, split = row["class"].strip(), row["split"].strip().lower()
    if problem := name_problem(class_name):
        yield f"the class name '{printable(class_name[:80])}' {problem}: rename the class"
    if split not in ROW_SPLITS:
        yield f"split {printable(row['split'])!r}: wanted {', '.join(ROW_SPLITS)}{did_you_mean([split], ROW_SPLITS)}"
    if not row["path"].strip():
        yield "no path of an image"


def _read_label(text: str) -> str | None:
    """The kind of defect, good for a normal image; None where it is not clear which it is.

    0 and 1 may be written as 0.0 and 1.0, as a table with empty cells is saved by pandas.
    """
    if text.lower() in UNCLEAR:
        return None
    try:
        number = float(text)
    except ValueError:
        return "good" if is_normal_folder(text) else text
    return {0.0: "good", 1.0: ANOMALOUS}.get(number)


class _Finder:
    """Files by what is written for them, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._below = PathsBelow(folder)

    def __call__(self, written: str) -> Path:
        """The file, in this spelling; else without spaces around it, or with letters composed as macOS does or not.

        Raises ValueError for one that leads out of the folder, FileNotFoundError where there is none.
        """
        path = self._path(written)
        if os.path.exists(path):
            return path
        bare = written.strip()
        for spelling in (bare, unicodedata.normalize("NFC", bare), unicodedata.normalize("NFD", bare)):
            if os.path.exists(other := self._path(spelling)):
                return other
        hint = ""
        if "\\" in written:
            hint = ": write / between folders"
        elif any("\udc80" <= letter <= "\udcff" for letter in written):
            hint = ": the file is not UTF-8, save it as CSV UTF-8"
        raise FileNotFoundError(f"no such file {printable(path)}{hint}")

    def _path(self, written: str) -> Path:
        try:
            return self._below(written, "")
        except ValueError as problem:
            raise ValueError(str(problem).removeprefix(": ")) from None
