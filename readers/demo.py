"""The embedded benchmark `demo`: three small classes made on first use, in the MVTec layout.

brick    a texture: crops of one real photograph (scikit-image's brick.png, CC0), train and test from disjoint parts
denim    a regular pattern: drawn twill, every thread of its own shade
gear     an object: a drawn toothed wheel that lies at any place and turn on a workbench

Normal pictures vary as photographs do (light, colour, place, turn, noise), so that a comparison pixel by pixel finds
little. scenes.py draws them, anomalies.py paints the defects; masks are exact.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import zlib
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from readers.demo_defects import Mask, Picture
from readers.scenes import CLASSES, camera
from utils import prefetch_map

VERSION = "demo benchmark, version 1"
TRAIN, GOOD, PER_DEFECT = 50, 15, 5
DEMO_CLASSES = tuple(CLASSES)
README = f"""{VERSION}

Made by the program from fixed seeds: it may be deleted (it is made again) and holds nothing of yours.
The layout is MVTec AD's: <class>/train/good, <class>/test/good, <class>/test/<defect>,
<class>/ground_truth/<defect>/<name>_mask.png. brick shows crops of scikit-image's brick.png (CC0); the rest is drawn.
"""


def prepare_demo(root: Path) -> None:
    """Make the benchmark under `root` unless it is there; whole or not at all, also when killed on the way.

    An older version of it is replaced. Raises ValueError where `root` holds anything else.
    """
    if is_made(root):
        return
    if root.exists() and not (is_demo(root) or (root.is_dir() and not any(root.iterdir()))):
        raise ValueError(
            f"--data_path {root} holds something else: name a new folder for the demo, or leave the flag out"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    for stale in root.parent.glob(f".{root.name}.making-*"):  # of a process that was killed
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    making = root.parent / f".{root.name}.making-{uuid.uuid4().hex[:8]}"
    making.mkdir()
    try:
        deque(prefetch_map(partial(write_image, making), list_images_of_demo(), os.cpu_count() or 1), maxlen=0)
        (making / "readme.txt").write_text(README, encoding="utf-8")
        if is_demo(root) and not is_made(root):
            os.replace(root, making / "replaced")
        os.replace(making, root)  # onto nothing or an empty folder
        shutil.rmtree(root / "replaced", ignore_errors=True)
    except OSError:
        if not is_made(root):  # another process that made it meanwhile is welcome
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def is_demo(root: Path) -> bool:
    """True where `root` holds this benchmark in some version."""
    readme = root / "readme.txt"
    return readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(
        VERSION.rpartition(" ")[0]
    )


def is_made(root: Path) -> bool:
    """True where `root` holds this version, with all its classes."""
    whole = all((root / name).is_dir() for name in DEMO_CLASSES)
    return whole and is_demo(root) and (root / "readme.txt").read_text(encoding="utf-8", errors="replace") == README


def list_images_of_demo() -> Iterator[tuple[str, str, str, int]]:
    """(class, split, kind, number) of every picture of the benchmark."""
    for class_name, shown in CLASSES.items():
        bad = [("test", kind, PER_DEFECT) for kind in shown.defects]
        counts = [("train", "good", TRAIN), ("test", "good", GOOD), *bad]
        for split, kind, count in counts:
            yield from ((class_name, split, kind, number) for number in range(count))


def make_image(class_name: str, split: str, kind: str, number: int) -> tuple[Picture, Mask | None]:
    """One picture of the benchmark, and its mask unless `kind` is good; its own seed makes it stand for itself."""
    shown = CLASSES[class_name]
    rng = np.random.default_rng([zlib.crc32(f"{class_name}/{split}/{kind}".encode()), number])
    scene = shown.draw(rng, split)
    picture, mask = (scene.picture, None) if kind == "good" else shown.defects[kind](scene, rng)
    return camera(picture, rng, shown.exposure), mask


def write_image(root: Path, which: tuple[str, str, str, int]) -> None:
    """One picture, and its mask if it has one, at their places in the MVTec layout."""
    class_name, split, kind, number = which
    picture, mask = make_image(class_name, split, kind, number)
    folder = root / class_name / split / kind
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{number:03}.png", compress_level=4)  # half the time for 4 % more bytes
    if mask is not None:
        masks = root / class_name / "ground_truth" / kind
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{number:03}_mask.png")
