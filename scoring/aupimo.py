"""AUPIMO: of each anomalous image the area under its recall, at false positive rates that normal images hardly allow.

Source: Bertoldo et al., AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance, 2024
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

LOWER, UPPER = 1e-5, 1e-4  # the false positive rates between which recall is integrated


class NormalTail:
    """The highest scores of normal images, of which AUPIMO needs no others.

    The false positive rate F(t) is one for all anomalous images: the mean over the normal images of the image's own
    share of pixels that score at least t. An image's recall at a rate f is the share of its defect pixels that are
    found at the lowest threshold whose F is at most f. It is a step function, which rises only at rates that occur;
    below the least of these, a single pixel's, it is the share that scores above every normal pixel. AUPIMO is its
    integral over log f from LOWER to UPPER, divided by log(UPPER / LOWER).

    `undefined` says in words why there is none: no normal images, or so few pixels of them that a single one is a rate
    above UPPER, and no rate up to there occurs. It is None where AUPIMO is defined.
    """

    def __init__(self, normal: Sequence[np.ndarray]) -> None:
        """From the scores of all pixels of each normal image, flattened; the images may differ in size."""
        self.n_images = len(normal)
        pixels = sum(scores.size for scores in normal)
        self.undefined: str | None = None
        if not normal:
            self.undefined = "no normal image in the test set"
        elif self.n_images * max(scores.size for scores in normal) < round(1 / UPPER):
            self.undefined = f"a false positive rate of {UPPER:g} needs 10,000 pixels of normal images; found {pixels}"
        sizes = dict.fromkeys(scores.size for scores in normal)
        self._highest = {size: self._of_size([s for s in normal if s.size == size], size) for size in sizes}

    def _of_size(self, normal: Iterable[np.ndarray], size: int) -> np.ndarray:
        """The highest scores among images of one size, rising: so many that all of them are a rate above UPPER."""
        count = math.floor(UPPER * size * self.n_images) + 2
        kept = np.empty(0, np.float32)
        for scores in normal:
            if kept.size >= count:
                scores = scores[scores > kept[0]]  # others leave as many that are at least as high
            kept = np.concatenate([kept, scores])
            if kept.size >= count:
                kept = np.partition(kept, -count)[-count:]  # the lowest of them is the first
        return np.sort(kept)

    def aupimo(self, defects: np.ndarray) -> float:
        """The scores of all defect pixels of an image (p,), at least one -> its AUPIMO in [0, 1].

        A pixel of score d is found from the rate F(d) on: it adds log(UPPER / max(F(d), LOWER)), nothing where F(d) is
        above UPPER. Exact, ties included.
        """
        rates = np.zeros(defects.size)
        for size, kept in self._highest.items():
            rates += (kept.size - np.searchsorted(kept, defects)) / (size * self.n_images)
        added = np.log(UPPER / np.maximum(rates, LOWER)) / math.log(UPPER / LOWER)
        return float(np.clip(added, 0, 1).mean())
