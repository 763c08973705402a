"""What every reader needs: the two records, the files worth seeing in a folder, classes and masks found by name.

Also what benchmarks that write their own data need: a folder made whole or not at all.

Nothing here opens an image. Paths come out sorted by name, so that no result depends on the order a file system
happens to list; masks are paired by file stem inside the defect's folder, never by position.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # hidden files (.DS_Store, ._x.png) are junk as well
NORMAL_FOLDERS = frozenset({"good", "ok", "normal"})  # compared lower-cased: VisA writes Normal, BTAD ok
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Sample:
    """One image of a benchmark. `defect` is the folder's name, "good" for a normal image; no mask known: None."""

    image: Path
    anomalous: bool
    defect: str
    mask: Path | None = None


@dataclass(frozen=True)
class Source:
    """Where images lie: `root` holds one folder per class; the other three are one's own folders, without a layout."""

    root: Path | None
    train_dir: Path | None = None
    test_dir: Path | None = None
    mask_dir: Path | None = None


def file_stamp(path: Path) -> tuple[int, int]:
    """(bytes, nanoseconds of the last change) of an image's file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def is_junk(name: str) -> bool:
    """True for what operating systems and archivers leave behind: hidden files, Thumbs.db, __MACOSX, ..."""
    return name.startswith(".") or name.lower() in JUNK


def is_normal_folder(name: str) -> bool:
    """True for good, ok, OK, Normal, ...: a folder that holds normal images."""
    return name.lower() in NORMAL_FOLDERS


def list_folders(folder: Path) -> list[Path]:
    """The visible folders directly inside, by name; empty where `folder` does not exist."""
    return [Path(entry.path) for entry in visible_entries(folder) if entry.is_dir()]


def list_images(folder: Path) -> list[Path]:
    """The image files directly inside, by name; empty where `folder` does not exist."""
    entries = (e for e in visible_entries(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES)
    return [Path(entry.path) for entry in entries if not entry.is_dir()]


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is directly inside `folder` and no junk, by name; scandir spares a question to the disk per file."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not is_junk(e.name)), key=lambda e: e.name)


def looks_like_class(folder: Path) -> bool:
    """True where `folder` holds train/<a normal folder>."""
    return any(is_normal_folder(p.name) for p in list_folders(folder / "train"))


def candidate_roots(root: Path, depth: int = 2) -> Iterator[Path]:
    """`root` itself, then the folders below it: archives often unpack into one folder more than was asked for."""
    yield root
    if depth:
        for folder in list_folders(root):
            yield from candidate_roots(folder, depth - 1)


def find_class_folder(root: Path, class_name: str) -> Path:
    """The folder of a class, also below a nested root or doubled (`screw/screw/`); the plain path if there is none."""
    for base in candidate_roots(root):
        for folder in (base / class_name, base / class_name / class_name):
            if looks_like_class(folder):
                return folder
    return root / class_name


def discover_classes(root: Path) -> tuple[str, ...]:
    """Names of all folders under `root` that look like a class, sorted; the shallowest level that has any decides."""
    level = [root]
    for _ in range(3):
        names = {p.name for base in level for p in list_folders(base) if looks_like_class(p)}
        if names:
            return tuple(sorted(names))
        level = [p for base in level for p in list_folders(base)]
    return ()


def require_folder(folder: Path | None, flag: str) -> Path:
    """`folder`, or one clear error that names the flag."""
    if folder is None:
        raise ValueError(f"{flag} is needed: it names the folder that holds the images")
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag} {folder}: no such folder")
    return folder


def no_images(split: str, folder: Path, root: Path) -> FileNotFoundError:
    """The error for a class without images: what was looked for, what is there instead."""
    kind = "training" if split == "train" else "test"
    found = discover_classes(root) or tuple(p.name for p in list_folders(root))
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    return FileNotFoundError(
        f"no {kind} images under {folder}: --data_path must hold one folder per class; found {listed or 'no folder'}"
    )


def make_folder(
    root: Path, fill: Callable[[Path], object], is_ours: Callable[[Path], bool], is_whole: Callable[[Path], bool]
) -> None:
    """Make the folder `root` whole or not at all, also when killed on the way.

    `fill` writes into a hidden folder beside `root`, which is renamed to `root` when `fill` is done. What is at `root`
    already is replaced where `is_ours` holds and `is_whole` does not. Raises OSError where files cannot be written, or
    where `root` holds anything else.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    for stale in root.parent.glob(f".{root.name}.making-*"):  # of a process that was killed
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    making = root.parent / f".{root.name}.making-{uuid.uuid4().hex[:8]}"
    making.mkdir()
    try:
        fill(making)
        if is_ours(root) and not is_whole(root):
            os.replace(root, making / "replaced")
        os.replace(making, root)  # onto nothing or an empty folder
        shutil.rmtree(root / "replaced", ignore_errors=True)
    except OSError:
        if not is_whole(root):  # another process that made it meanwhile is welcome
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def is_vacant(root: Path) -> bool:
    """True where there is nothing at `root`, or an empty folder."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def read_readme(folder: Path) -> str:
    """The text of the folder's readme.txt, empty where there is none."""
    readme = folder / "readme.txt"
    return readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""


def check_split(split: str) -> None:
    assert split in SPLITS, f"split must be train or test, not {split!r}"


def index_masks(folder: Path) -> dict[str, Path]:
    """File stem -> mask. Stems are kept as written and, where that is free, lower-cased."""
    masks = {p.stem: p for p in reversed(list_images(folder))}
    for stem, path in list(masks.items()):
        masks.setdefault(stem.lower(), path)
    return masks


def match_mask(image: Path, masks: dict[str, Path]) -> Path | None:
    """The mask of an image by stem, `<stem>_mask.*` before `<stem>.*`, in any case and extension; None if absent."""
    names = (f"{image.stem}_mask", image.stem)
    for name in (*names, *(n.lower() for n in names)):
        if name in masks:
            return masks[name]
    return None


def match_masks(images: Sequence[Path], folder: Path, defect: str) -> list[Sample]:
    """Anomalous samples with those masks of `folder` that are there."""
    masks = index_masks(folder)
    return [Sample(image, anomalous=True, defect=defect, mask=match_mask(image, masks)) for image in images]


def pair_masks(images: Sequence[Path], folder: Path, defect: str) -> list[Sample]:
    """Anomalous samples with the masks of `folder`; every image must have one.

    Raises FileNotFoundError that counts the images without a mask and names the first.
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
