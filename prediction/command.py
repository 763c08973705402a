"""What test.py does with --images and --calibrate."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterable, Sequence

import numpy as np

from calibration import NormalSet, calibrate, findings, findings_of, read_normal_folder, refuse_used, render_threshold
from dataset import ImageSet
from detector import Detector
from experiment import Experiment
from prediction import STDIN
from prediction.images import Named, find_images, standard_input
from prediction.stream import Show, predict_files
from readers.image_io import limit_pixels
from run_files import METRICS, PREDICTIONS, THRESHOLD, Run, read_predictions
from scoring.predictions import Rule
from scoring.thresholds import CalibrationSettings, Threshold


def predict_images(detector: Detector, options: argparse.Namespace) -> int:
    """Predict on --images; returns the exit code: 0 all OK, 1 some NG, 3 some not read."""
    run, config = Run(options.run), detector.config
    limit_pixels(config.max_pixels)
    rule = decision_rule(detector, options)
    streamed = options.images == [STDIN]
    if streamed:
        chunks: Iterable[Sequence[Named]] = standard_input(detector.batch_size)
    else:
        chunks = [[named for path in options.images for named in find_images(path)]]
    overlays = options.vis if options.vis is not None else not streamed
    show = Show(options.out or options.run / "images", options.jsonl, options.quiet, overlays)
    return predict_files(detector, rule, chunks, run.read(METRICS).get("training_images"), show)


def decision_rule(detector: Detector, options: argparse.Namespace) -> Rule:
    """What decides: --threshold, or one from --calibrate for these images alone, or the run's own."""
    if options.threshold is not None:
        if not math.isfinite(options.threshold):
            raise ValueError(f"--threshold {options.threshold}: must be finite")
        return Rule(options.threshold, detector.threshold, "--threshold")
    if options.calibrate is not None:
        return Rule.of(calibrated(detector, options), "--calibrate")
    return Rule.of(detector.threshold)


def calibrated(detector: Detector, options: argparse.Namespace) -> Threshold:
    """The threshold from the images of --calibrate, none of which the run has used. Raises ValueError otherwise."""
    run, config = Run(options.run), detector.config
    record = run.read(METRICS)
    used = [row.sha256 for row in run.data().rows]
    samples = read_normal_folder(options.calibrate)
    refuse_used(samples, used, config.workers)
    rule = options.pixel_threshold or config.pixel_threshold
    settings = CalibrationSettings(options.false_alarm, rule)
    normals = NormalSet("calibrate", ImageSet(samples, config.image_size, tiling=config.tiling))
    return calibrate(detector, normals, settings, record["checkpoint_sha256"])


def calibrate_run(detector: Detector, options: argparse.Namespace) -> int:
    """Set the threshold of a finished run, and print what it promises and finds."""
    run, config = Run(options.run), detector.config
    threshold = calibrated(detector, options)
    try:
        images = Experiment(config, detector.device).test_images
        found = findings_of(threshold, detector.evaluate(images, keep_maps=True))
    except (OSError, ValueError):  # the test images are gone: their recorded scores are not
        rows = read_predictions(run.folder / PREDICTIONS) if (run.folder / PREDICTIONS).is_file() else []
        labels = np.array([row.anomalous for row in rows], bool)
        found = findings(threshold, labels, np.array([row.score for row in rows], np.float32))
    with run.lock():
        run.write_threshold(threshold, found)
    record = run.read(METRICS)
    metrics = {} if config.unified else record["metrics"]
    for line in render_threshold(threshold, found, record["n_train"], metrics):
        print(f"{config.title}: {line}")
    print(f"written to {run.folder / THRESHOLD}; python test.py {shlex.quote(str(run))} --images FOLDER uses it")
    return 0
