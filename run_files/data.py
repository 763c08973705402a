"""What data a run has seen: a line per image of its splits, and in words what differs from the data of today."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from dataset import Sample
from readers.contents import content_hashes
from run_files.csv_files import read_csv, to_csv


@dataclass(frozen=True)
class ImageRecord:
    """One image: its split, its path below the split's common folder, its label, and the contents of its files.

    anomalous     0 or 1
    sha256        of the image's file
    mask_sha256   of the mask's file; empty without a mask
    class_name    its class in a run over several; empty in a run of one, whose table has no such column
    group, unit   as of a `Sample`; a table without any of them has no such columns
    """

    split: str
    path: str
    defect: str
    anomalous: str
    sha256: str
    mask_sha256: str
    class_name: str = ""
    group: str = ""
    unit: str = ""

    @property
    def columns(self) -> int:
        """How many of the fields a table needs to hold it: what a later version added is left out where it is empty."""
        return 9 if self.group or self.unit else 7 if self.class_name else 6

    @property
    def cells(self) -> tuple[str, ...]:
        """The values in order, without those that `columns` leaves out."""
        return astuple(self)[: self.columns]


class DataRecord:
    """The images of a run by split, in the order in which they are read.

    Two records are of the same data where their `digests` are equal: names, labels and contents, wherever the files
    lie.
    """

    def __init__(self, rows: Sequence[ImageRecord]) -> None:
        self.rows = tuple(rows)

    @classmethod
    def of(cls, splits: Mapping[str, Sequence[Sample]], store: Path | None = None, workers: int = 8) -> DataRecord:
        """The record of {split: samples}. Raises FileNotFoundError or ValueError, naming a file that is not there."""
        files = [file for samples in splits.values() for s in samples for file in (s.image, s.mask) if file is not None]
        hashes = content_hashes(files, store, workers)
        rows = []
        for split, samples in splits.items():
            common = os.path.commonpath([os.path.abspath(s.image.parent) for s in samples]) if samples else ""
            for s in samples:
                path = os.path.relpath(os.path.abspath(s.image), common).replace(os.sep, "/")
                mask = "" if s.mask is None else hashes[s.mask]
                label = str(int(s.anomalous))
                digests = hashes[s.image], mask
                rows.append(ImageRecord(split, path, s.defect, label, *digests, s.class_name, s.group, s.unit))
        return cls(rows)

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """The record that `to_csv` wrote. Raises FileNotFoundError, ValueError for a file that is no record."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        names = [f.name for f in fields(ImageRecord)]
        try:
            return cls([ImageRecord(**row) for row in read_csv(path)])
        except TypeError:
            raise ValueError(f"{path}: wanted the columns {', '.join(names)}; found another table") from None

    def to_csv(self) -> str:
        """A line per image, with a header."""
        count = max((row.columns for row in self.rows), default=6)
        names = [f.name for f in fields(ImageRecord)]
        return to_csv(names[:count], (astuple(row)[:count] for row in self.rows))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order."""
        return tuple(dict.fromkeys(row.split for row in self.rows))

    def digests(self) -> dict[str, dict[str, Any]]:
        """{split: {"images": count, "sha256": of all names, labels and contents}}, as an identity holds it."""
        found = {}
        for split in self.splits:
            rows = [row for row in self.rows if row.split == split]
            text = "\n".join("\x1f".join(row.cells) for row in rows)
            digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
            found[split] = {"images": len(rows), "sha256": digest}
        return found

    def differences(self, now: DataRecord, where: str = "are there now") -> list[str]:
        """What is different `now`, or `where` the other images are, a line per split; empty for the same data.

        "train: 8 images, 16 are there now: 8 new, 0 gone, 0 changed"
        """
        lines = []
        ours, theirs = self.digests(), now.digests()
        for split in dict.fromkeys((*self.splits, *now.splits)):
            if ours.get(split) == theirs.get(split):
                continue
            before, after = self._by_path(split), now._by_path(split)
            shared = before.keys() & after.keys()
            changed = sorted(path for path in shared if before[path].sha256 != after[path].sha256)
            labels = sorted(path for path in shared - set(changed) if before[path] != after[path])
            new, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
            counts = f"{len(new)} new, {len(gone)} gone, {len(changed)} changed"
            if labels:
                counts += f", {len(labels)} with another mask or label"
            example = (changed or new or gone or labels)[:1]
            first = f" (e.g. {example[0]})" if example else " (another order)"
            lines.append(f"{split}: {len(before)} images, {len(after)} {where}: {counts}{first}")
        return lines

    def _by_path(self, split: str) -> dict[str, ImageRecord]:
        return {row.path: row for row in self.rows if row.split == split}
