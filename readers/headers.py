"""What the headers of image files tell without decoding them: format, size, mode, depth.

`read_headers` looks at every file of a split before the first epoch. `summarize` keeps of a training set what
`unlike_training` compares new images with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from readers.contents import Stamp, file_stamp
from readers.image_io import check_pixels, header_size, opened
from utils import prefetch_map, printable

BITS_PER_SAMPLE = 258  # the TIFF tag
NAMED = 3  # how many of many files a message names


@dataclass(frozen=True)
class Header:
    """The properties of an image file: `size` is (width, height) as the image is read, `bits` those of a channel."""

    path: Path
    format: str
    size: tuple[int, int]
    mode: str
    bits: int
    frames: int = 1

    @property
    def kind(self) -> str:
        """Mode and depth in words: 8-bit RGB."""
        return f"{self.bits}-bit {self.mode.partition(';')[0]}"

    @property
    def aspect(self) -> float:
        """Width by height."""
        return self.size[0] / self.size[1]


_known: dict[tuple[Path, bool], tuple[Stamp, Header]] = {}  # by (path, upright), of this process


def read_header(path: Path, upright: bool = False) -> Header:
    """The header of an image file, which is read as stored or upright.

    Raises FileNotFoundError or ValueError in one line that names the file.
    """
    with opened(path) as image:
        format_name = "JPEG" if image.format == "MPO" else str(image.format)  # of a telephone: one image, its preview
        frames = 1 if format_name == "JPEG" else getattr(image, "n_frames", 1)
        return Header(path, format_name, header_size(image, path, upright), image.mode, bits_of(image), frames)


def bits_of(image: Image.Image) -> int:
    """Bits per channel in the file, of an image that is not decoded yet. Pillow reads 16-bit RGB as 8-bit RGB."""
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    wide = any(";16" in str(tile) for tile in getattr(image, "tile", ())) or image.mode.startswith("I")
    return 16 if wide else 1 if image.mode == "1" else 8


def read_headers(files: Iterable[tuple[Path, bool]], workers: int = 0) -> list[Header]:
    """The headers of all files, (path, upright) each, in order; a thousand take a second at most.

    A file is read once in a process, unless its stamp changes. Raises ValueError in one line where some cannot be read;
    it names the first of them.
    """
    results = list(prefetch_map(_known_header, files, workers))
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        more = f"; and {len(problems) - NAMED} more files" if len(problems) > NAMED else ""
        raise ValueError("; ".join(problems[:NAMED]) + more)
    return [header for header in results if isinstance(header, Header)]


def _known_header(file: tuple[Path, bool]) -> Header | str:
    """The header from memory where the file has not changed since it was read."""
    try:
        stamp = file_stamp(file[0])
        if file in _known and _known[file][0] == stamp:
            header = _known[file][1]
            check_pixels(header.path, header.size)  # the limit may be another one now
            return header
    except (ValueError, FileNotFoundError):
        return _try_header(file)  # says what is wrong
    found = _try_header(file)
    if isinstance(found, Header):
        _known[file] = stamp, found
    return found


def _try_header(file: tuple[Path, bool]) -> Header | str:
    try:
        return read_header(*file)
    except (ValueError, FileNotFoundError) as error:
        return str(error)


def summarize(headers: Sequence[Header]) -> dict[str, Any]:
    """What the images of a training set are like, as JSON takes it; for `unlike_training`.

    `kinds` are such as "8-bit RGB"; `width` and `height` are [least, greatest] in pixels, so is `aspect`, width by
    height. Raises ValueError without any header.
    """
    if not headers:
        raise ValueError("no image to summarize")
    widths, heights = zip(*(header.size for header in headers), strict=True)
    aspects = [round(header.aspect, 4) for header in headers]
    return {
        "kinds": sorted({header.kind for header in headers}),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "aspect": [min(aspects), max(aspects)],
    }


def unlike_training(headers: Sequence[Header], summary: Mapping[str, Any]) -> list[str]:
    """A line for each way in which some images are unlike all training images: kind, size, aspect.

    `summary` is made by `summarize`. Aspects may differ by 2%.
    """
    widths, heights, (least, greatest) = summary["width"], summary["height"], summary["aspect"]
    sides = f"width {widths[0]} to {widths[1]}, height {heights[0]} to {heights[1]}"
    return [
        *unlike_kinds(headers, summary["kinds"]),
        *tell(
            headers,
            lambda h: not (widths[0] <= h.size[0] <= widths[1] and heights[0] <= h.size[1] <= heights[1]),
            f"have a size that no training image had ({sides})",
        ),
        *tell(
            headers,
            lambda h: not least / 1.02 <= h.aspect <= greatest * 1.02,
            f"have an aspect that no training image had (width by height {least:g} to {greatest:g})",
        ),
    ]


def unlike_kinds(headers: Sequence[Header], kinds: Sequence[str]) -> Iterator[str]:
    """One line on the images whose mode and depth are none of these `kinds`, those of the training images."""
    listed = ", ".join(kinds)
    yield from tell(headers, lambda h: h.kind not in kinds, f"have a kind that no training image had ({listed})")


def tell(headers: Sequence[Header], holds: Callable[[Header], bool], text: str) -> Iterator[str]:
    """One line on the images for which it holds: how many of how many, `text`, the first of them."""
    found = [header for header in headers if holds(header)]
    if found:
        (width, height), kind, path = found[0].size, found[0].kind, printable(found[0].path)
        yield f"{len(found)} of {len(headers)} images {text}, the first {path}: {width} x {height}, {kind}"
