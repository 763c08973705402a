"""Whether an archive, or the folder that it is made of, is a whole submission in the published format.

Files are looked at one by one, so that memory holds a single one. What is wrong is one line for each kind of problem,
with the first file and their number.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from readers.image_io import MAX_PIXELS, decode_png, read_size
from readers.mvtec_ad_2 import PRIVATE, list_private
from submission.layout import MAPS, SUFFIXES, THRESHOLDED, private_counts, sets_of_images
from utils import printable

Size = tuple[int, int]  # (width, height) in pixels
Key = tuple[str, str, str]  # folder, class, split
LARGEST_FILE = 4 * MAX_PIXELS + 2**20  # bytes: more than any map of MAX_PIXELS needs
WANTED = f"wanted {MAPS}/CLASS/SPLIT/STEM.tiff and {THRESHOLDED}/CLASS/SPLIT/STEM.png alone"


@dataclass(frozen=True)
class Member:
    """A file of a submission: its name as written, why it is no plain file or else "", bytes, and how to read it."""

    name: str
    kind: str
    size: int
    read: Callable[[], bytes]


@dataclass
class Found:
    """What was found: the size of each file by its place and stem, and {problem: the files that have it}."""

    sizes: dict[Key, dict[str, Size | None]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def complain(self, text: str, name: str) -> None:
        """Note a problem of a file."""
        self.problems.setdefault(text, []).append(name)

    def lines(self) -> list[str]:
        """One line for each kind of problem."""
        return [
            f"{printable(names[0])}: {text}" + (f" ({len(names)} files)" if len(names) > 1 else "")
            for text, names in self.problems.items()
        ]


def check_submission(path: Path, roots: Mapping[str, Path]) -> list[str]:
    """What is wrong with a .tar.gz, or with a folder that holds both folders, a line each; empty where nothing is.

    `roots` are where the data of classes lie: their sizes are compared with those of the images. Raises
    FileNotFoundError where there is nothing, or where the data are not whole.
    """
    if not path.exists():
        raise FileNotFoundError(f"--check {path}: no such file or folder")
    found, wanted = Found(), {(name, split): set(stems) for name, split, stems in sets_of_images()}
    try:
        for member in _folder_members(path) if path.is_dir() else _archive_members(path):
            _check_member(member, wanted, found)
    except (tarfile.TarError, EOFError, OSError, ValueError) as problem:
        if path.is_dir():
            raise
        return [*found.lines(), f"{path}: not a whole .tar.gz archive ({printable(str(problem))}): pack it again"]
    lines = found.lines()
    for class_name, split, stems in sets_of_images():
        for folder in SUFFIXES:
            there = found.sizes.get((folder, class_name, split), {})
            if missing := [stem for stem in stems if stem not in there]:
                lines.append(
                    f"{folder}/{class_name}/{split}: {len(missing)} of {len(stems)} images are missing, the first "
                    f"{missing[0]}{SUFFIXES[folder]}"
                )
        lines += _size_problems(found, class_name, split, roots.get(class_name))
    return lines


def _archive_members(path: Path) -> Iterator[Member]:
    """The members of an archive, read as a stream; each must be read before the next one is taken."""
    with tarfile.open(path, mode="r|gz") as archive:
        for info in archive:
            if info.isdir() and ".." not in PurePosixPath(info.name).parts and not info.name.startswith("/"):
                continue
            kind = "" if info.isreg() else "a link" if info.issym() or info.islnk() else "no file"

            def read(info: tarfile.TarInfo = info) -> bytes:
                file = archive.extractfile(info)
                assert file is not None, "read regular files only"
                return file.read()

            yield Member(info.name.removeprefix("./"), kind, info.size, read)


def _folder_members(root: Path) -> Iterator[Member]:
    """All files below a folder; links are not followed."""

    def fail(problem: OSError) -> None:
        raise problem

    for place, folders, names in os.walk(root, onerror=fail):
        folders.sort()
        for name in sorted([*names, *(name for name in folders if os.path.islink(os.path.join(place, name)))]):
            path = Path(place, name)
            kind = "a link" if path.is_symlink() else "" if path.is_file() else "no file"
            size = 0 if kind else path.stat().st_size
            yield Member(path.relative_to(root).as_posix(), kind, size, path.read_bytes)


def _check_member(member: Member, wanted: dict[tuple[str, str], set[str]], found: Found) -> None:
    """Look at the name, the place and the content of one file."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return found.complain("leads out of the folder that the archive is unpacked in", member.name)
    if member.kind:
        return found.complain(f"is {member.kind}, wanted plain files", member.name)
    if len(path.parts) != 4 or path.suffix != SUFFIXES.get(path.parts[0]):
        return found.complain(f"is no part of a submission: {WANTED}", member.name)
    folder, class_name, split, _ = path.parts
    stems = wanted.get((class_name, split))
    if stems is None:
        names = f"one of {', '.join(private_counts())}, and {' or '.join(PRIVATE)}"
        return found.complain(f"is of no class and split of the benchmark: wanted {names}", member.name)
    if path.stem not in stems:
        text = f"is none of the {len(stems)} images of {class_name} {split}, {min(stems)} to {max(stems)}"
        return found.complain(text, member.name)
    sizes = found.sizes.setdefault((folder, class_name, split), {})
    if path.stem in sizes:
        return found.complain("is there twice", member.name)
    sizes[path.stem] = None
    if member.size > LARGEST_FILE:
        return found.complain(f"has more than {LARGEST_FILE} bytes", member.name)
    try:
        sizes[path.stem] = (_check_map if folder == MAPS else _check_thresholded)(member.read())
    except ValueError as problem:
        found.complain(str(problem), member.name)


def _check_map(content: bytes) -> Size:
    """The size of an anomaly map. Raises ValueError in words where it is no finite two-dimensional float16 image."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages = len(file.pages)
            page = file.pages.first
            shape, kind = tuple(page.shape), page.dtype
            plain = pages == 1 and len(shape) == 2 and kind == np.float16 and 0 < np.prod(shape) <= MAX_PIXELS
            values = page.asarray() if plain else np.zeros(0)
    except Exception as problem:  # a damaged file can raise any error
        raise ValueError(f"is no TIFF file that can be read ({type(problem).__name__})") from None
    if pages != 1 or len(shape) != 2:
        raise ValueError(f"has {pages} pages of {len(shape)} dimensions, wanted one of two: (height, width)")
    if kind != np.float16:
        raise ValueError(f"is {kind}, wanted float16")
    if not plain:
        raise ValueError(f"has no pixel, or more than {MAX_PIXELS}")
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    return shape[1], shape[0]


def _check_thresholded(content: bytes) -> Size:
    """The size of a thresholded map. Raises ValueError in words where it is no two-dimensional image of 0 and 255."""
    image = decode_png(content)
    if image.mode != "L":
        raise ValueError(f"has the mode {image.mode}, wanted L: 8 bits of gray, two dimensions")
    values = np.asarray(image)
    if not ((values == 0) | (values == 255)).all():
        raise ValueError("holds other values than 0 and 255")
    return image.size


def _size_problems(found: Found, class_name: str, split: str, root: Path | None) -> Iterator[str]:
    """One line where maps and thresholded maps differ in size, and one where they are not of the image's."""
    maps, thresholded = (found.sizes.get((folder, class_name, split), {}) for folder in SUFFIXES)
    both = [stem for stem in maps if maps[stem] and thresholded.get(stem)]
    if unlike := [stem for stem in both if maps[stem] != thresholded[stem]]:
        first = unlike[0]
        yield (
            f"{class_name}/{split}/{first}: its map is {_shown(maps[first])}, thresholded "
            f"{_shown(thresholded[first])}: both have the size of the image ({len(unlike)} of {len(both)} images)"
        )
    if root is None:
        return
    images = {path.stem: path for path in list_private(root, class_name, split, private_counts()[class_name])}
    known = {stem: read_size(images[stem]) for stem in images if maps.get(stem)}
    if unlike := [stem for stem in known if maps[stem] != known[stem]]:
        first = unlike[0]
        yield (
            f"{MAPS}/{class_name}/{split}/{first}.tiff: is {_shown(maps[first])}, its image {_shown(known[first])}: "
            f"maps have the size of their image ({len(unlike)} of {len(known)} images)"
        )


def _shown(size: Size | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"
