"""The threshold of a trained detector, what it finds on the test set, and both in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.normals import NormalSet
from detector import Detector, Evaluation
from scoring.metrics import image_metrics
from scoring.thresholds import LEVEL, CalibrationSettings, Threshold, clopper_pearson, decision_metrics, percent
from scoring.thresholds import images as count_images

SEPARATED = 0.7  # AUROC of bad against normal images below which scores hardly tell them apart
HANDFUL = 10  # training images


def calibrate(
    detector: Detector, normals: NormalSet, settings: CalibrationSettings, checkpoint_sha256: str
) -> Threshold:
    """The threshold from the detector's scores of normal images. Raises ValueError where they are too few."""
    scores, maps = detector.score_all(normals.images)
    origin = {"checkpoint_sha256": checkpoint_sha256, "data": normals.digest(detector.config.workers)}
    return Threshold.of(scores, maps, settings, normals.source, origin)


def findings(
    threshold: Threshold, labels: np.ndarray, scores: np.ndarray, evaluation: Evaluation | None = None
) -> dict[str, Any]:
    """What the threshold does on a test set, as threshold.json holds it; {} without test images.

    Labels (N,) and scores (N,); an `evaluation` that kept maps adds seg_f1. `found` is the number of bad images above
    the threshold; `separation` the AUROC of bad images against all normal ones, those of the threshold included.
    """
    labels = np.asarray(labels, bool)
    if not len(labels):
        return {}
    maps, masks = (evaluation.maps, evaluation.masks) if evaluation is not None else (None, None)
    bad = int(labels.sum())
    normal_scores = np.concatenate([np.asarray(threshold.scores, np.float32), scores[~labels]])
    everything = np.concatenate([normal_scores, scores[labels]])
    truth = np.arange(len(everything)) >= len(normal_scores)
    return {
        "n_normal": len(labels) - bad,
        "n_bad": bad,
        "found": int(threshold.decide(scores[labels]).sum()),
        "separation": image_metrics(truth, everything).defined()["image_auroc"],
        **decision_metrics(threshold, labels, scores, maps, masks),
    }


def findings_of(threshold: Threshold, evaluation: Evaluation) -> dict[str, Any]:
    """`findings` on all images of an evaluation; of several classes also on each of them, as `classes`.

    The threshold is one for all classes, as the model is.
    """
    found = findings(threshold, evaluation.labels, evaluation.scores, evaluation)
    if evaluation.classes:
        found["classes"] = {
            name: findings(threshold, part.labels, part.scores, part) for name, part in evaluation.classes.items()
        }
    return found


def render_threshold(
    threshold: Threshold, found: Mapping[str, Any], n_train: int, metrics: Mapping[str, float | None]
) -> list[str]:
    """Lines for people: the threshold, its promise, what it finds, and what is wrong with it.

    `metrics` are the run's own: F1-max stands beside F1 at the threshold. Leave them out where they are means over
    classes.
    """
    lines = threshold.explain()
    if classes := found.get("classes"):
        lines.append(f"it is one threshold for {len(classes)} classes, and promises nothing of a single one")
    if bad := found.get("n_bad"):
        low, high = clopper_pearson(found["found"], bad)
        lines.append(
            f"of {count_images(bad, 'bad')} {found['found']} lie above it ({percent(LEVEL)} interval of that share: "
            f"{percent(low)} to {percent(high)})"
        )
    if normal := found.get("n_normal"):
        alarms = round(found["false_alarm_rate"] * normal)
        lines.append(f"of {count_images(normal, 'normal test')} {alarms} lie above it")
    for name, own in (classes or {}).items():
        if own:
            alarms = round((own["false_alarm_rate"] or 0) * own["n_normal"])
            lines.append(
                f"{name}: of {count_images(own['n_bad'], 'bad')} {own['found']} lie above it, of "
                f"{count_images(own['n_normal'], 'normal test')} {alarms}"
            )
    for name, oracle, title in (("image_f1", "image_f1max", "image F1"), ("seg_f1", "pixel_f1max", "pixel F1")):
        if found.get(name) is not None and metrics.get(oracle) is not None:
            lines.append(
                f"{title} {found[name]:.3f} at the threshold; F1-max, chosen on the test set, is {metrics[oracle]:.3f}"
            )
    separation = found.get("separation")
    if separation is not None and separation < SEPARATED:
        lines.append(
            f"normal and bad images hardly differ in their scores (AUROC {separation:.2f}; 0.5 is chance): no "
            "threshold tells them apart"
        )
    if n_train < HANDFUL:
        lines.append(f"only {count_images(n_train)} to learn from: normal variety that they lack will be false alarms")
    return lines
