"""Thresholds of a run: from which normal images, never ones that were trained on or are tested, and what they find."""

from calibration.normals import NormalSet, read_normal_folder, refuse_used, without_trained
from calibration.run_threshold import calibrate, findings, findings_of, render_threshold

__all__ = [
    "NormalSet",
    "calibrate",
    "findings",
    "findings_of",
    "read_normal_folder",
    "refuse_used",
    "render_threshold",
    "without_trained",
]
