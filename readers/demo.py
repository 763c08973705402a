"""The embedded benchmark `demo`: three small classes made on first use, in the MVTec layout.

brick    a texture: crops of one real photograph (scikit-image's brick.png, CC0), train and test from disjoint parts
denim    a regular pattern: drawn twill, every thread of its own shade
gear     an object: a drawn toothed wheel that lies at any place and turn on a workbench

Normal images vary as photographs do (light, color, place, turn, noise), so that a comparison pixel by pixel finds
little. scenes.py draws them, anomalies.py paints the defects; masks are exact.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from readers.base import is_vacant, make_folder, read_readme
from readers.demo_defects import Mask, RGBImage
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
    if not (is_vacant(root) or is_demo(root)):
        raise ValueError(
            f"--data_path {root} holds something else: name a new folder for the demo, or leave the flag out"
        )
    make_folder(root, write_demo, is_demo, is_made)


def write_demo(root: Path) -> None:
    """All images of the benchmark and its readme."""
    deque(prefetch_map(partial(write_image, root), list_images_of_demo(), os.cpu_count() or 1), maxlen=0)
    (root / "readme.txt").write_text(README, encoding="utf-8")


def is_demo(root: Path) -> bool:
    """True where `root` holds this benchmark in some version."""
    return read_readme(root).startswith(VERSION.rpartition(" ")[0])


def is_made(root: Path) -> bool:
    """True where `root` holds this version, with all its classes."""
    return all((root / name).is_dir() for name in DEMO_CLASSES) and read_readme(root) == README


def list_images_of_demo() -> Iterator[tuple[str, str, str, int]]:
    """(class, split, kind, number) of every image of the benchmark."""
    for class_name, shown in CLASSES.items():
        bad = [("test", kind, PER_DEFECT) for kind in shown.defects]
        counts = [("train", "good", TRAIN), ("test", "good", GOOD), *bad]
        for split, kind, count in counts:
            yield from ((class_name, split, kind, number) for number in range(count))


def make_image(class_name: str, split: str, kind: str, number: int) -> tuple[RGBImage, Mask | None]:
    """One image of the benchmark, and its mask unless `kind` is good; its own seed makes it stand for itself."""
    shown = CLASSES[class_name]
    rng = np.random.default_rng([zlib.crc32(f"{class_name}/{split}/{kind}".encode()), number])
    scene = shown.draw(rng, split)
    image, mask = (scene.image, None) if kind == "good" else shown.defects[kind](scene, rng)
    return camera(image, rng, shown.exposure), mask


def write_image(root: Path, which: tuple[str, str, str, int]) -> None:
    """One image, and its mask if it has one, at their places in the MVTec layout."""
    class_name, split, kind, number = which
    image, mask = make_image(class_name, split, kind, number)
    folder = root / class_name / split / kind
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{number:03}.png", compress_level=4)  # half the time for 4 % more bytes
    if mask is not None:
        masks = root / class_name / "ground_truth" / kind
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{number:03}_mask.png")
