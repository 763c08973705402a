"""The embedded benchmark `demo`: three small classes made on first use, in the MVTec layout.

brick    a texture: crops of one real photograph (scikit-image's brick.png, CC0), train and test from disjoint parts
denim    a regular pattern: drawn twill, each thread of its own shade
gear     an object: a drawn gear at a random place and angle on a workbench

Normal images vary as photographs do (light, color, place, angle, noise), so comparing them pixel by pixel detects
little. scenes.py draws the images, demo_defects.py the defects; masks are exact.
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
from readers.scenes import CLASSES, apply_camera
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
    """Make the benchmark under `root` unless it is there: whole or not at all, even if the process is killed.

    An older version is replaced. Raises ValueError where `root` holds anything else.
    """
    if is_made(root):
        return
    if not (is_vacant(root) or is_demo(root)):
        raise ValueError(
            f"--data_path {root} holds something else: name a new folder for the demo, or leave the flag out"
        )
    make_folder(root, write_demo, is_demo, is_made)


def write_demo(root: Path) -> None:
    """Write all images of the benchmark, then readme.txt."""
    deque(prefetch_map(partial(write_image, root), list_demo_images(), os.cpu_count() or 1), maxlen=0)
    (root / "readme.txt").write_text(README, encoding="utf-8")


def is_demo(root: Path) -> bool:
    """Whether `root` holds some version of this benchmark."""
    return read_readme(root).startswith(VERSION.rpartition(" ")[0])


def is_made(root: Path) -> bool:
    """Whether `root` holds this version with all its classes."""
    return all((root / name).is_dir() for name in DEMO_CLASSES) and read_readme(root) == README


def list_demo_images() -> Iterator[tuple[str, str, str, int]]:
    """(class, split, kind, number) of every image of the benchmark."""
    for class_name, demo_class in CLASSES.items():
        bad = [("test", kind, PER_DEFECT) for kind in demo_class.defects]
        counts = [("train", "good", TRAIN), ("test", "good", GOOD), *bad]
        for split, kind, count in counts:
            yield from ((class_name, split, kind, number) for number in range(count))


def make_image(class_name: str, split: str, kind: str, number: int) -> tuple[RGBImage, Mask | None]:
    """One image of the benchmark, and its mask unless `kind` is good. Each image has its own seed."""
    demo_class = CLASSES[class_name]
    rng = np.random.default_rng([zlib.crc32(f"{class_name}/{split}/{kind}".encode()), number])
    scene = demo_class.draw(rng, split)
    image, mask = (scene.image, None) if kind == "good" else demo_class.defects[kind](scene, rng)
    return apply_camera(image, rng, demo_class.exposure), mask


def write_image(root: Path, which: tuple[str, str, str, int]) -> None:
    """Write one image, and its mask if it has one, in the MVTec layout."""
    class_name, split, kind, number = which
    image, mask = make_image(class_name, split, kind, number)
    folder = root / class_name / split / kind
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{number:03}.png", compress_level=4)  # half the time for 4 % more bytes
    if mask is not None:
        masks = root / class_name / "ground_truth" / kind
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{number:03}_mask.png")
