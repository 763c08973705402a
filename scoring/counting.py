"""The counting pass behind the pixel metrics: how many of many scores lie above each of some others, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 16  # scores handled at a time: few enough to stay in the processor's cache


class ScoreCounter:
    """For each of some distinct scores, rising (the cuts), counts how many of many other scores exceed or equal it.

    By definition, and as the tests have it:

        exceed[i] = sum(score > cuts[i] for score in others)
        equal[i] = sum(score == cuts[i] for score in others)

    Sorting the others, or searching each among the cuts, takes about twice as long. Here a rising function lays scores
    into bins: of the lower cuts, among which most of the others lie, nearly every bin holds one or none, and comparing
    with that one settles a score. The upper cuts share the last bin; only scores in a bin of several cuts are sorted.
    The function is linear, or a root where a sample of the others would crowd (products of distances do).
    """

    @np.errstate(over="ignore")
    def __init__(self, cuts: np.ndarray, others: Sequence[np.ndarray]) -> None:
        self.cuts = cuts
        self.n_bins = min(max(4 * len(cuts), 1 << 12), 1 << 18)  # tables for the processor's cache
        every = 1 + sum(scores.size for scores in others) // 10_000
        sample = np.concatenate([scores[::every] for scores in others]).astype(cuts.dtype)
        crowding: list[float] = []
        for roots in range(4):
            self._lay_bins(roots)
            crowding.append(np.isnan(self.only[self._bins(sample)]).mean())
            if crowding[-1] < 0.05 + (sample > self.high).mean():
                return
        self._lay_bins(int(np.argmin(crowding)))

    def _lay_bins(self, roots: int) -> None:
        number = self.cuts.dtype.type
        finite = self.cuts[np.isfinite(self.cuts)]
        last = min(self.n_bins // 4, int(0.999 * (len(finite) - 1)))  # a few outliers must not squeeze all others
        self.low, self.high = finite[[0, last]] if len(finite) else (number(0), number(0))
        self.span, self.roots = min(self.high - self.low, np.finfo(number).max), roots
        width = float(self.span) ** (0.5**roots)
        self.scale = number(min(0.9999 * self.n_bins / width, np.finfo(number).max)) if width else number(1)
        self.bin_of_cut = self._bins(self.cuts)
        self.only = np.full(self.n_bins + 2, np.inf, number)  # the cut of a bin, NaN where it has several
        self.only[self.bin_of_cut] = self.cuts
        self.only[self.bin_of_cut[1:][np.diff(self.bin_of_cut) == 0]] = np.nan

    def _bins(self, scores: np.ndarray, work: np.ndarray | None = None) -> np.ndarray:
        """Scores (n,) -> bins (n,), int32, a higher score never in a lower bin; `work` (n,) is overwritten if given."""
        work = np.subtract(scores, self.low, out=work)
        np.clip(work, 0, self.span, out=work)
        for _ in range(self.roots):
            np.sqrt(work, out=work)
        np.multiply(work, self.scale, out=work)
        return work.astype(np.int32)

    @np.errstate(over="ignore")
    def count(
        self, others: Sequence[np.ndarray], left_out: Sequence[np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arrays of scores, and in each the rising places to leave out -> how many exceed each cut, how many equal it.

        What lies in a bin above its cut is tallied with the next bin: up to that one's cut, both exceed the same cuts.
        """
        total, number, waste = sum(scores.size for scores in others), self.cuts.dtype, self.n_bins + 1
        tally, ties = np.zeros((2, waste + 1), np.int32 if total < 1 << 31 else np.int64)
        one = tally.dtype.type(1)  # of the same type, or np.add.at is thirty times slower
        exceed, equal = np.zeros((2, len(self.cuts)), np.int64)
        crowd = np.empty(CHUNK + min(total, max(16 * len(self.cuts), 1 << 20), 1 << 26), number)
        n_crowd = 0
        buffers = [np.empty(CHUNK, kind) for kind in (np.intp, number, bool)]
        for scores, places in zip(others, left_out, strict=True):
            for start in range(0, scores.size, CHUNK):
                chunk = scores[start : start + CHUNK].astype(number, copy=False)
                slots, cut, above = (buffer[: chunk.size] for buffer in buffers)
                np.copyto(slots, self._bins(chunk, cut))
                if places is not None:
                    first, last = np.searchsorted(places, (start, start + CHUNK))
                    slots[places[first:last] - start] = waste
                self.only.take(slots, out=cut, mode="clip")
                np.greater(chunk, cut, out=above)
                tied = np.flatnonzero(chunk == cut)
                if tied.size:
                    np.add.at(ties, slots[tied], one)
                several = np.flatnonzero(np.isnan(cut))
                if several.size:
                    crowd[n_crowd : n_crowd + several.size] = chunk[several]
                    n_crowd += several.size
                    slots[several] = waste
                if n_crowd > len(crowd) - CHUNK:
                    self._count_sorted(crowd[:n_crowd], exceed, equal)
                    n_crowd = 0
                np.add(slots, above, out=slots)
                np.add.at(tally, slots, one)
        self._count_sorted(crowd[:n_crowd], exceed, equal)
        up_to = np.cumsum(tally[:waste], dtype=np.int64)
        return exceed + (up_to[-1] - up_to[self.bin_of_cut]), equal + ties[self.bin_of_cut]

    def _count_sorted(self, crowd: np.ndarray, exceed: np.ndarray, equal: np.ndarray) -> None:
        """Adds up what of the crowd (n,) exceeds and equals each cut; leaves it sorted."""
        if not crowd.size:
            return
        crowd.sort()
        upper = np.searchsorted(crowd, self.cuts, "right")
        exceed += crowd.size - upper
        tied = np.flatnonzero(crowd[upper - 1] == self.cuts)
        equal[tied] += upper[tied] - np.searchsorted(crowd, self.cuts[tied])
