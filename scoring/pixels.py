"""What pixel metrics and curves are made of: the pixels of a set of maps, counted at each score of a defect pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from scoring.counting import ScoreCounter


@dataclass(frozen=True)
class PixelCounts:
    """The pixels of a set at each distinct score of a defect pixel, rising: the `cuts` (c,).

    hits      (c,) defect pixels of this score
    overlap   (c,) what PRO gains at it; the sum is 1
    above     (c,) normal pixels above it
    equal     (c,) normal pixels of this score
    n_normal  all normal pixels
    pairs     of each image with defects the flattened map and its defects
    images    (k,) which images these are
    """

    cuts: np.ndarray
    hits: np.ndarray
    overlap: np.ndarray
    above: np.ndarray
    equal: np.ndarray
    n_normal: int
    pairs: list[tuple[np.ndarray, Defects]]
    images: np.ndarray


def count_pixels(
    maps: Sequence[ArrayLike] | np.ndarray, masks: Sequence[ArrayLike | None] | np.ndarray | None
) -> PixelCounts | str:
    """Maps and masks as in `pixel_metrics` -> their counts, or in words why there are none. Raises as it does."""
    return count_subsets(maps, masks, ())[0]


def count_subsets(
    maps: Sequence[ArrayLike] | np.ndarray,
    masks: Sequence[ArrayLike | None] | np.ndarray | None,
    subsets: Sequence[np.ndarray],
) -> list[PixelCounts | str]:
    """`count_pixels` of all n images, and then of each subset of them, given as (n,) bool.

    No pixel is compared twice: images that are in the same subsets are counted together, at the cuts of all images, and
    a subset adds up at its own cuts what its images give.
    """
    checked = [checked_map(i, scores) for i, scores in enumerate(maps)]
    if masks is None or all(mask is None for mask in masks):
        return ["no masks"] * (1 + len(subsets))
    if len(masks) != len(checked):
        raise ValueError(
            f"{len(checked)} maps but {len(masks)} masks: give one per image, None where it has no defects"
        )
    defects = [find_defects(i, scores.shape, mask) for i, (scores, mask) in enumerate(zip(checked, masks, strict=True))]
    flat = [scores.reshape(-1) for scores in checked]
    members = np.stack([np.ones(len(flat), bool), *subsets])
    sorted_defects = _SortedDefects.of(flat, defects)
    counts = [_without_normal(own, flat, defects, sorted_defects) for own in members]
    whole = counts[0]
    if isinstance(whole, str):
        return [whole] * len(counts)
    places = [None if isinstance(own, str) else np.searchsorted(whole.cuts, own.cuts) for own in counts]
    counter = ScoreCounter(whole.cuts, flat)
    cells, cell_of = np.unique(members, axis=1, return_inverse=True)
    for number, cell in enumerate(cells.T):
        images = np.flatnonzero(cell_of.reshape(-1) == number).tolist()
        left_out = [None if (found := defects[i]) is None else found.places for i in images]
        above, equal = counter.count([flat[i] for i in images], left_out)
        for own, place in ((counts[i], places[i]) for i in np.flatnonzero(cell)):
            if not isinstance(own, str):
                np.add(own.above, above[place], out=own.above)
                np.add(own.equal, equal[place], out=own.equal)
    return counts


class _SortedDefects(NamedTuple):
    """The defect pixels of all images by rising score: their scores, the images they are of, (p,) each.

    shares     (p,) what each adds to PRO, if its region is one of `n_regions`
    n_regions  of all images
    """

    scores: np.ndarray
    images: np.ndarray
    shares: np.ndarray
    n_regions: int

    @classmethod
    def of(cls, flat: Sequence[np.ndarray], defects: Sequence[Defects | None]) -> _SortedDefects | None:
        """None without any."""
        marked = [(i, found) for i, found in enumerate(defects) if found]
        if not marked:
            return None
        n_regions = sum(len(found.areas) for _, found in marked)
        scores = np.concatenate([flat[i][found.places] for i, found in marked])
        shares = np.concatenate([(1 / (found.areas * n_regions))[found.regions] for _, found in marked])
        images = np.repeat(np.array([i for i, _ in marked], np.int32), [found.places.size for _, found in marked])
        order = np.argsort(scores)
        return cls(scores[order], images[order], shares[order], n_regions)


def _without_normal(
    own: np.ndarray, flat: Sequence[np.ndarray], defects: Sequence[Defects | None], marked: _SortedDefects | None
) -> PixelCounts | str:
    """The counts of the images `own` (n,) bool, without those of normal pixels yet; or why there are none."""
    pairs = {i: (flat[i], found) for i in np.flatnonzero(own).tolist() if (found := defects[i]) is not None}
    if marked is None or not pairs:
        return "no defect pixel in any mask"
    n_normal = sum(flat[i].size for i in np.flatnonzero(own).tolist()) - sum(
        found.places.size for _, found in pairs.values()
    )
    if not n_normal:
        return "no normal pixel: the masks cover every image"
    scores, shares = marked.scores, marked.shares
    if not own.all():
        n_regions = sum(len(found.areas) for _, found in pairs.values())
        chosen = own[marked.images]
        scores, shares = scores[chosen], shares[chosen] * (marked.n_regions / n_regions)
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))  # of each distinct score
    cuts, hits = scores[starts], np.diff(starts, append=scores.size)
    above, equal = np.zeros((2, len(cuts)), np.int64)
    images = np.array(list(pairs), np.intp)
    return PixelCounts(
        cuts, hits, np.add.reduceat(shares, starts), above, equal, n_normal, list(pairs.values()), images
    )


def checked_map(i: int, scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size or scores.dtype.kind not in "biuf":
        raise ValueError(
            f"image {i}: its map must be (H, W) numbers and not empty: found {scores.shape} {scores.dtype}"
        )
    scores = scores.astype(np.float32 if np.can_cast(scores.dtype, np.float32) else np.float64, copy=False)
    if np.isnan(scores.min()):
        raise ValueError(f"image {i}: its map holds {np.isnan(scores).sum()} NaN")
    return scores


@dataclass(frozen=True)
class Defects:
    """Of one image: the defect pixels' places in the flattened map (p,), rising, their regions (p,), the areas (r,)."""

    places: np.ndarray
    regions: np.ndarray
    areas: np.ndarray


def find_defects(i: int, shape: tuple[int, ...], mask: ArrayLike | None) -> Defects | None:
    """None where there are none. Looks only inside the box around the defects, most often a small part of the image."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(f"image {i}: its mask is {mask.shape}, its map {shape}")
    defect = mask != 0
    x, y, width, height = cv2.boundingRect(defect.view(np.uint8))
    if not width:
        return None
    box = (slice(y, y + height), slice(x, x + width))
    defect = np.ascontiguousarray(defect[box]).view(np.uint8)
    inside = np.flatnonzero(defect)
    values = mask[box].reshape(-1)[inside]
    if values[0] not in (1, 255) or (values != values[0]).any():
        raise ValueError(f"image {i}: a mask holds 0 and 1, or 0 and 255: found {np.unique(values)[:3]}")
    regions = cv2.connectedComponents(defect, connectivity=8, ltype=cv2.CV_32S)[1].reshape(-1)[inside] - 1
    rows, columns = np.divmod(inside, width)
    return Defects((rows + y) * shape[1] + columns + x, regions, np.bincount(regions))
