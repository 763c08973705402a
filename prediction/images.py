"""The images of a prediction: from folders, or named on standard input; some may be unreadable."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset import MeasuredImages, Sample
from readers.base import list_images
from readers.headers import Header, read_header, unlike_training
from scoring.tiles import Tiling
from utils import printable, walk_folders

Named = tuple[str, Path]  # a file, and its name as it is shown
BRIGHTNESS_MARGIN = 25  # of 255: how far beyond that of all training images an image's mean may lie


class ReadableImages(MeasuredImages):
    """Images of which some may be unreadable: they count as black, and `errors` says in one line what is wrong.

    `errors`, `headers` and `brightness` (mean of all pixels, 0..255) have the numbers of the images read so far.
    """

    def __init__(self, samples: Sequence[Sample], size: int, tiling: Tiling | None = None) -> None:
        super().__init__(samples, size, tiling=tiling)
        self.errors: dict[int, str] = {}
        self.headers: dict[int, Header] = {}

    def image(self, index: int) -> np.ndarray:
        """(3, height, width) in 0..255."""
        sample = self.samples[index]
        try:
            pixels = super().image(index)
            self.headers[index] = read_header(sample.image, sample.upright)
            return pixels
        except (ValueError, OSError, MemoryError) as problem:
            self.errors[index] = printable(str(problem)) or f"{sample.image}: {type(problem).__name__}"
            return np.zeros((3, self.size, self.size), np.uint8)

    def warnings(self, training: Mapping[str, Any]) -> list[str]:
        """A line for each way in which some images are unlike all training images; `training` is in metrics.json."""
        lines = unlike_training([self.headers[i] for i in sorted(self.headers)], training)
        if "brightness" in training:  # earlier versions have none
            low, high = training["brightness"]
            beyond = [
                i
                for i, value in sorted(self.brightness.items())
                if not low - BRIGHTNESS_MARGIN <= value <= high + BRIGHTNESS_MARGIN
            ]
            if beyond:
                first = f"{printable(self.samples[beyond[0]].image)}: {self.brightness[beyond[0]]:.0f}"
                lines.append(
                    f"{len(beyond)} of {len(self.brightness)} images have a mean brightness that no training image had "
                    f"({low:.0f} to {high:.0f} of 255), the first {first}"
                )
        return lines


def find_images(path: Path) -> list[Named]:
    """An image itself, or all images below a folder, by name; shown as given, or relative to the folder.

    Raises FileNotFoundError where there is none.
    """
    if path.is_dir():
        paths = sorted(image for folder in walk_folders(path) for image in list_images(folder))
        found = [(str(image.relative_to(path)), image) for image in paths]
    else:
        found = [(str(path), path)] if path.is_file() else []
    if not found:
        raise FileNotFoundError(f"--images {printable(path)}: no image there")
    return found


def standard_input(largest: int, stream: BinaryIO | None = None) -> Iterator[list[Named]]:
    """The paths on standard input, a line each, in lists of at most `largest`: all that is there, without waiting.

    So a program that names one image at a time gets each answer at once. A path may be of any bytes.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    source = sys.stdin.buffer if stream is None else stream

    def read() -> None:
        try:
            for line in source:
                lines.put(os.fsdecode(line.rstrip(b"\r\n")))
        finally:
            lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        chunk: list[Named] = []
        while len(chunk) < largest:
            try:
                line = lines.get(block=not chunk)
            except queue.Empty:
                break
            if line is None:
                ended = True
                break
            if line:
                chunk.append((line, Path(line)))
        if chunk:
            yield chunk
