"""The test images that the page shows of a run: false alarms, missed, hits, hits for the wrong reason."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dataset import Sample
from readers.image_io import limit_pixels, read_rgb
from report.overlays import overlay_names, panels_of
from report.page.runs import RunView
from report.panels import ScoredImage, below, beside, draw_panels, fit
from scoring.predictions import Rule

MOST = 6  # images of a group
SIDE = 176  # pixels: the height of a thumbnail's panels
WIDEST = 2 * SIDE  # of a panel
WIDE = 1.5  # width by height of a panel, from which the second one lies below it
MOST_BYTES = 15_000  # of a thumbnail
QUALITIES = (78, 60, 40, 20)


@dataclass(frozen=True)
class Thumbnail:
    """A WebP file and its size in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """An image of a group, and why it has no thumbnail where it has none."""

    name: str
    defect: str
    score: float
    alt: str
    thumbnail: Thumbnail | None
    problem: str = ""


@dataclass(frozen=True)
class Group:
    """Images with one title; `total` says how many there are in all, of which the first are shown."""

    title: str
    total: str
    images: Sequence[Shown]


def choose(view: RunView) -> dict[str, list[int]]:
    """{title: numbers of all its images, those to be shown first}; with a threshold by its decisions."""
    labels, scores = view.labels, view.scores
    outside = np.zeros(len(labels), bool) if view.outside is None else view.outside & labels
    rising = np.argsort(scores, kind="stable").tolist()
    falling = rising[::-1]

    def of(order: Sequence[int], chosen: np.ndarray) -> list[int]:
        return [i for i in order if chosen[i]]

    if view.decisions is None:
        return {
            "Normal images with the highest scores": of(falling, ~labels),
            "Anomalous images with the lowest scores": of(rising, labels),
            "Anomalous images whose highest pixel lies outside the mask": of(falling, outside),
            "Typical anomalous images": _typical(view, of(rising, labels & ~outside)),
        }
    flagged = np.array([view.decisions.threshold.decide(float(score)) for score in scores], bool)
    return {
        "False alarms": of(falling, ~labels & flagged),
        "Missed": of(rising, labels & ~flagged),
        "Hits for the wrong reason": of(falling, outside & flagged),
        "Typical hits": _typical(view, of(rising, labels & flagged & ~outside)),
    }


def _typical(view: RunView, hits: Sequence[int]) -> list[int]:
    """Of hits by rising score the middle one of each kind of defect, kinds in order; then the others."""
    kinds = sorted({view.predictions[i].defect for i in hits})
    by_kind = [[i for i in hits if view.predictions[i].defect == kind] for kind in kinds]
    middle = [own[len(own) // 2] for own in by_kind]
    return middle + [i for i in hits if i not in middle]


def gallery(view: RunView) -> list[Group]:
    """The groups of a run that have images, each with at most MOST of them as thumbnails."""
    limit_pixels(view.max_pixels)
    drawn = overlay_names([Sample(p.path, p.anomalous, p.defect, class_name=p.class_name) for p in view.predictions])
    groups = []
    for title, numbers in choose(view).items():
        if not numbers:
            continue
        images = [_shown(view, i, view.overlays / f"{drawn[i]}.png") for i in numbers[:MOST]]
        anomalous = view.predictions[numbers[0]].anomalous
        kind = f"{int((view.labels == anomalous).sum())} {'anomalous' if anomalous else 'normal'} images"
        if "images with" in title:  # all of the kind, by score: how many there are says nothing
            total = f"{len(images)} of {kind}"
        else:
            total = f"{len(numbers)} of {kind}" + (f"; {MOST} are shown" if len(numbers) > MOST else "")
        groups.append(Group(title, total, images))
    return groups


def legend(view: RunView) -> str:
    """What the thumbnails show, in a sentence; empty where they are images alone."""
    if view.maps is None and not view.overlays.is_dir():
        return ""
    lines = ["light blue surrounds the mask"] if view.maps is None or view.maps.masks is not None else []
    lines += ["white what lies above the pixel threshold"] if view.decisions else []
    text = "Each image with its anomaly map"
    return f"{text}; {', '.join(lines)}." if lines else f"{text}."


def _shown(view: RunView, number: int, drawn: Path) -> Shown:
    """One image with its map and mask, else the overlay that --vis has left, else the image alone."""
    prediction = view.predictions[number]
    mask = view.maps.masks[number] if view.maps is not None and view.maps.masks is not None else None
    what = "the image"
    thumbnail, problem = None, ""
    try:
        if view.maps is None and drawn.is_file():
            whole = np.asarray(read_rgb(drawn))
            panels = panels_of(whole)
            parts = [fit(panel, (SIDE, WIDEST)) for panel in panels or [whole]]
            thumbnail, what = encode(arranged(*parts)), "its overlay"
        else:
            image = np.asarray(read_rgb(prediction.path, upright=view.benchmark == "folder"))
            if view.maps is None:
                thumbnail = encode(fit(image, (SIDE, WIDEST)))
            else:
                outlined = " with the mask's outline" if mask is not None else ""
                what = f"the image and its anomaly map{outlined}"
                scored = ScoredImage(image, view.maps.maps[number], prediction.score, mask)
                rule = Rule.of(view.decisions.threshold) if view.decisions else None
                thumbnail = encode(arranged(*draw_panels(scored, view.maps.color_scale, (SIDE, WIDEST), rule)))
    except FileNotFoundError:
        problem = "the image's file is gone"
    except (OSError, ValueError):
        problem = "the image's file cannot be read"
    kind = prediction.defect if prediction.anomalous else "normal"
    alt = f"{kind}, {prediction.path.name}, score {prediction.score:.4g}: {what}"
    return Shown(prediction.path.name, kind, prediction.score, alt, thumbnail, problem)


def arranged(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """One panel (h, w, 3), or two: side by side, or one below the other where they are wide."""
    if second is None:
        return first
    return (below if first.shape[1] > WIDE * first.shape[0] else beside)(first, second)


def encode(image: np.ndarray) -> Thumbnail:
    """(H, W, 3) RGB -> WebP of at most MOST_BYTES: of the highest quality that fits, of half the size if none does."""
    for quality in QUALITIES:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= MOST_BYTES:
            return Thumbnail(file.getvalue(), image.shape[1], image.shape[0])
    height, width = image.shape[:2]
    return encode(cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
