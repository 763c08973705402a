"""Milliseconds an image of the exported formats beside PyTorch: all in one process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector import Detector
from export.formats import FORMATS
from export.graph import ScoringGraph
from export.parity import import_predict

BATCHES = (1, 8)
ROUNDS = 7
SECONDS = 0.3  # that each takes in a round, at least
Score = Callable[[np.ndarray], object]


def time_formats(detector: Detector, folder: Path, formats: Mapping[str, object]) -> dict[str, dict[int, float]]:
    """{title: {batch size: milliseconds an image}}, from images in memory to scores and maps in memory.

    Eager and compiled PyTorch come first; compiled is left out where this machine cannot compile. All have as many
    threads as PyTorch. Each takes its turn in every round; a figure is the median of the rounds.
    """
    threads = torch.get_num_threads()
    predict = import_predict(folder)
    entrants: dict[str, Score] = {"PyTorch eager": _eager(detector)}
    if compiled := _compiled(detector):
        entrants["PyTorch compiled"] = compiled
    for name in formats:
        entrants[FORMATS[name].title] = predict.Model(folder, name, threads)
    found: dict[str, dict[int, float]] = {title: {} for title in entrants}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, 3, *[detector.config.image_size] * 2), np.uint8)
        for score in entrants.values():
            score(images)
        rounds = [{title: _seconds(score, images) for title, score in entrants.items()} for _ in range(ROUNDS)]
        for title in entrants:
            found[title][batch] = round(1000 * float(np.median([r[title] for r in rounds])) / batch, 2)
    return found


def _eager(detector: Detector) -> Score:
    graph = ScoringGraph(detector.network.eval(), detector)

    @torch.no_grad()
    def score(images: np.ndarray) -> object:
        scores, maps = graph(torch.from_numpy(images))
        return scores.numpy(), maps.numpy()

    return score


def _compiled(detector: Detector) -> Score | None:
    """The same with --compile; None where it cannot be compiled."""
    other = Detector(replace(detector.config, compile=True), detector.distiller)
    other.map_statistics = detector.map_statistics
    try:
        score = _eager(other)
        for batch in BATCHES:
            score(np.zeros((batch, 3, *[detector.config.image_size] * 2), np.uint8))
    except Exception:  # no C++ compiler, a compiler that is too old, an operation: torch has a kind for each
        return None
    return score


def _seconds(score: Score, images: np.ndarray) -> float:
    """Of one call."""
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < SECONDS or not calls:
        score(images)
        calls += 1
    return taken / calls
