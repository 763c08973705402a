"""What all readers share: `Sample` and `Source`, listings of folders, and the search for classes and masks by name.

`make_folder` serves the benchmarks that write their own files.

Nothing here opens an image. Paths are sorted by name, so no result depends on the order in which a file system lists
them. Masks are matched by file stem inside the defect's folder, never by position.
"""

from __future__ import annotations

import os
import shutil
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import printable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # beside hidden files (.DS_Store, ._x.png)
NORMAL_FOLDERS = frozenset({"good", "ok", "normal"})  # compared in lower case: VisA has Normal, BTAD ok
SPLITS = ("train", "test")
VALIDATION = "validation"  # normal images that some layouts have beside those of training
MAX_NAME = 255  # bytes of a file's name, on all common file systems
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, bytes that are not UTF-8, line separators


@dataclass(frozen=True)
class Sample:
    """One image of a benchmark.

    `defect` is the name of its folder, "good" for a normal image; `mask` is None where there is no mask. An `upright`
    image is rotated by its EXIF orientation; others are read as stored. `class_name` tells the classes of a run over
    several apart, and is empty in a run of one class. `group` is what the benchmark tells its images apart by beside
    the kind of defect (a light, a view), and `unit` the object that several images show; both may be empty.
    """

    image: Path
    anomalous: bool
    defect: str
    mask: Path | None = None
    upright: bool = False
    class_name: str = ""
    group: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Source:
    """Where images lie: a `root` with one folder per class, or the user's own folders of --dataset folder."""

    root: Path | None
    train_dir: Path | None = None
    test_dir: Path | None = None
    mask_dir: Path | None = None
    bad: Path | None = None


def name_problem(name: str) -> str | None:
    """Why `name` cannot be the name of a folder that this project makes; None where it can.

    It has to be one component of a path: no separator of any system, no leading dot, no control character, UTF-8, at
    most 255 bytes.
    """
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a / or \\, and a name is no path"
    if name.startswith("."):
        return "begins with a dot"
    if any(unicodedata.category(c) in UNPRINTABLE for c in name):
        return "holds a line break, another control character, or bytes that are not UTF-8"
    if len(name.encode()) > MAX_NAME:
        return f"has {len(name.encode())} bytes; {MAX_NAME} is the limit of a file system"
    return None


def check_name(name: str, where: str) -> str:
    """The name itself. Raises ValueError, beginning with `where`, for one that cannot be a folder's name."""
    if problem := name_problem(name):
        raise ValueError(f"{where}: the class name '{printable(name[:80])}' {problem}: rename the class")
    return name


def path_below(root: Path, written: str, where: str) -> Path:
    """`root`/`written`, for a path that is written in a file, which `where` names.

    Raises ValueError where it leads out of `root`, be it by .., as an absolute path or through a link. (Listed folders
    may hold links to anywhere: whoever can put a link there can put the image there. `root` may be a link itself.)
    """
    return PathsBelow(root)(written, where)


class PathsBelow:
    """`path_below` for many paths under one root: each of their folders is resolved once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._folders: dict[Path, bool] = {}

    def __call__(self, written: str, where: str) -> Path:
        """The path. Raises ValueError as `path_below`."""
        path = self.root / written
        if not self._is_inside(path):
            shown = printable(written[:200])
            raise ValueError(f"{where}: the path '{shown}' leads out of {self.root}: it must stay below")
        return path

    def _is_inside(self, path: Path) -> bool:
        if path == self.root or path.name == ".." or "\0" in path.name or os.path.islink(path):
            return self._leads_below(path)
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = self._leads_below(folder)
        return self._folders[folder]

    def _leads_below(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._resolved)
        except (ValueError, OSError, RuntimeError):  # a null byte, a link that leads to itself
            return False


def is_junk(name: str) -> bool:
    """Whether a file was left by an operating system or an archiver: hidden files, Thumbs.db, __MACOSX, ..."""
    return name.startswith(".") or name.lower() in JUNK


def is_normal_folder(name: str) -> bool:
    """Whether a folder of this name holds normal images: good, ok, OK, Normal, ..."""
    return name.lower() in NORMAL_FOLDERS


def list_folders(folder: Path) -> list[Path]:
    """The folders directly inside `folder`, sorted by name, without junk; empty where `folder` does not exist."""
    return [Path(entry.path) for entry in visible_entries(folder) if entry.is_dir()]


def list_images(folder: Path) -> list[Path]:
    """The image files directly inside `folder`, sorted by name; empty where `folder` does not exist."""
    entries = (e for e in visible_entries(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES)
    return [Path(entry.path) for entry in entries if not entry.is_dir()]


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is directly inside `folder`, sorted by name, without junk.

    `os.scandir` tells files from folders without a system call for each.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not is_junk(e.name)), key=lambda e: e.name)


def is_class_folder(folder: Path) -> bool:
    """Whether `folder` holds train/good, or another folder of normal images under train/."""
    return any(is_normal_folder(p.name) for p in list_folders(folder / "train"))


def candidate_roots(root: Path, depth: int = 2) -> Iterator[Path]:
    """`root` itself, then the folders below it down to `depth`: archives often unpack into a further folder."""
    yield root
    if depth:
        for folder in list_folders(root):
            yield from candidate_roots(folder, depth - 1)


def find_class_folder(root: Path, class_name: str) -> Path:
    """The folder of a class, also where the root is nested or the class doubled (`screw/screw/`).

    `root`/`class_name` where there is none.
    """
    for base in candidate_roots(root):
        for folder in (base / class_name, base / class_name / class_name):
            if is_class_folder(folder):
                return folder
    return root / class_name


def discover_classes(root: Path) -> tuple[str, ...]:
    """The sorted names of the class folders under `root`, all from the first level of folders that has any."""
    level = [root]
    for _ in range(3):
        names = {p.name for base in level for p in list_folders(base) if is_class_folder(p)}
        if names:
            return tuple(sorted(names))
        level = [p for base in level for p in list_folders(base)]
    return ()


def require_folder(folder: Path | None, flag: str) -> Path:
    """`folder` itself. Raises ValueError if it is None, FileNotFoundError if it does not exist, naming `flag`."""
    if folder is None:
        raise ValueError(f"{flag} is needed: it names the folder that holds the images")
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag} {folder}: no such folder")
    return folder


def no_images_error(split: str, folder: Path, root: Path) -> FileNotFoundError:
    """The error for a class without images: what is missing, and which folders were found instead."""
    kind = "training" if split == "train" else "test"
    found = discover_classes(root) or tuple(p.name for p in list_folders(root))
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    return FileNotFoundError(
        f"no {kind} images under {folder}: --data_path must hold one folder per class; found {listed or 'no folder'}"
    )


def make_folder(
    root: Path, fill: Callable[[Path], object], is_ours: Callable[[Path], bool], is_whole: Callable[[Path], bool]
) -> None:
    """Make the folder `root` whole or not at all, even if the process is killed.

    `fill` writes into a hidden folder beside `root`, which is renamed to `root` when `fill` is done. An existing `root`
    is replaced if `is_ours` is true of it and `is_whole` is not. Raises OSError where files cannot be written, or where
    `root` holds anything else.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    for stale in root.parent.glob(f".{root.name}.making-*"):  # left by a killed process
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    making = root.parent / f".{root.name}.making-{uuid.uuid4().hex[:8]}"
    making.mkdir()
    try:
        fill(making)
        if is_ours(root) and not is_whole(root):
            os.replace(root, making / "replaced")
        os.replace(making, root)  # `root` is absent or an empty folder now
        shutil.rmtree(root / "replaced", ignore_errors=True)
    except OSError:
        if not is_whole(root):  # another process may have made it meanwhile
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def is_vacant(root: Path) -> bool:
    """Whether `root` does not exist or is an empty folder."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def read_readme(folder: Path) -> str:
    """The text of the folder's readme.txt; empty where there is none."""
    readme = folder / "readme.txt"
    return readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""


def check_split(split: str, *further: str) -> None:
    """Asserts that a reader knows the split: train, test, or a further one of its own."""
    assert split in (*SPLITS, *further), f"split must be one of {', '.join((*SPLITS, *further))}, not {split!r}"


def index_masks(folder: Path) -> dict[str, Path]:
    """{file stem: mask}. Each stem is there as written, and also in lower case unless another mask has that stem."""
    masks = {p.stem: p for p in reversed(list_images(folder))}
    for stem, path in list(masks.items()):
        masks.setdefault(stem.lower(), path)
    return masks


def match_mask(image: Path, masks: dict[str, Path]) -> Path | None:
    """The mask of an image: `<stem>_mask.*` or else `<stem>.*`, any extension, upper or lower case; None if absent.

    `masks` is made by `index_masks`.
    """
    names = (f"{image.stem}_mask", image.stem)
    for name in (*names, *(n.lower() for n in names)):
        if name in masks:
            return masks[name]
    return None


def match_masks(images: Sequence[Path], folder: Path, defect: str) -> list[Sample]:
    """Anomalous samples, each with its mask in `folder`, or None where it has none."""
    masks = index_masks(folder)
    return [Sample(image, anomalous=True, defect=defect, mask=match_mask(image, masks)) for image in images]


def pair_masks(images: Sequence[Path], folder: Path, defect: str) -> list[Sample]:
    """Anomalous samples, each with its mask in `folder`.

    Raises FileNotFoundError with the number of images without a mask and the first of them.
    """
    samples = match_masks(images, folder, defect)
    missing = [s.image for s in samples if s.mask is None]
    if missing:
        raise FileNotFoundError(
            f"no mask for {len(missing)} of {len(images)} images, the first {missing[0]}: looked for "
            f"{folder / missing[0].stem}_mask.* and {folder / missing[0].stem}.*; add the masks, or move the whole "
            "mask folder away to score images only"
        )
    return samples


Reader = Callable[[Source, str, str], list[Sample]]
