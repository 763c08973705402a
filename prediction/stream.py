"""Images in, lines and predictions.csv out, batch by batch in bounded memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from dataset import Sample
from detector import Detector
from prediction.images import Named, ReadableImages
from prediction.output import COLUMNS, Output, Totals
from report.overlays import OverlayWriter
from run_files.csv_files import csv_line
from scoring.predictions import Rule
from utils import printable, sweep_partials, write_atomically


@dataclass(frozen=True)
class Show:
    """Where predictions go: lines (default), JSON lines, or the last line alone; overlays or none."""

    out: Path
    jsonl: bool = False
    quiet: bool = False
    overlays: bool = True


def predict_files(
    detector: Detector, rule: Rule, chunks: Iterable[Sequence[Named]], training: Mapping[str, Any] | None, show: Show
) -> int:
    """Predict all files; returns the exit code: 0 all OK, 1 some NG, 3 some not read.

    `chunks` are lists of files with the names that are shown, `training` what metrics.json tells of the training
    images. predictions.csv in `show.out` is written beside and renamed when all images are done, so an earlier one
    stays whole until then.
    """
    totals, warnings = Totals(rule), []
    side = sys.stderr if show.jsonl else sys.stdout

    def write(file: BinaryIO) -> None:
        file.write(csv_line(COLUMNS).encode())
        for chunk in chunks:
            images = ReadableImages(
                [Sample(path, anomalous=False, defect=path.parent.name, upright=True) for _, path in chunk],
                detector.config.image_size,
                detector.config.tiling,
            )
            overlays = None
            if show.overlays and detector.color_scale is not None:
                overlays = OverlayWriter(show.out / "overlays", images.samples, detector.color_scale, rule)
            outputs = _outputs(detector, rule, images, overlays, totals)
            for (name, _), output in zip(chunk, _progress(outputs, len(images), show), strict=True):
                file.write(csv_line(output.cells()).encode(errors="surrogateescape"))
                if show.jsonl:
                    print(output.as_json(), flush=True)
                elif not show.quiet:
                    print(output.line(name), flush=True)
            if training is not None:
                warnings.extend(images.warnings(training))

    sweep_partials(show.out)
    write_atomically(show.out / "predictions.csv", write)
    for warning in filter(None, [*dict.fromkeys(warnings), totals.drift()]):
        print(f"warning: {warning}", file=sys.stderr)
    print(totals.summary(), file=side)
    return totals.exit_code


def _outputs(
    detector: Detector, rule: Rule, images: ReadableImages, overlays: OverlayWriter | None, totals: Totals
) -> Iterator[Output]:
    """The results in order, counted in `totals`; the overlay of each is written."""
    started, number = time.perf_counter(), 0
    for scores, maps in detector.score_batches(images):
        seconds = time.perf_counter() - started
        batch = []
        for score, anomaly_map in zip(scores, maps, strict=True):
            problem = images.errors.get(number, "")
            prediction = None if problem else rule.judge(score, anomaly_map)
            if overlays is not None and prediction is not None:
                overlays.write(number, anomaly_map[None], score[None])
            path = images.samples[number].image
            text = problem.removeprefix(f"{printable(path)}: ")
            batch.append(Output(path, prediction, text, 1000 * seconds / len(scores)))
            number += 1
        totals.add(batch, seconds)
        yield from batch
        started = time.perf_counter()


def _progress(outputs: Iterator[Output], count: int, show: Show) -> Iterable[Output]:
    """A bar on the terminal where no lines go there."""
    wanted = sys.stderr.isatty() and (show.quiet or not sys.stdout.isatty())
    return tqdm(outputs, total=count, unit="image", leave=False, disable=not wanted)
