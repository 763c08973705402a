"""What is trained: variants as rows, presets, losses and the pairs that they compare, synthetic anomalies."""

import importlib
from typing import TYPE_CHECKING, Any

from methods.presets import NARROW, PRESETS, PUBLISHED
from methods.recipe import SCHEDULES, Recipe, Scoring, Term, Training
from methods.variants import CONSISTENCY_WEIGHT, SKIPS, VARIANTS

if TYPE_CHECKING:
    from methods.build import build_distiller
    from methods.pairs import StepFeatures, TeacherFeatures

# What needs torch is imported on first use: flags and their errors do without it.
LAZY = {
    "StepFeatures": "methods.pairs",
    "TeacherFeatures": "methods.pairs",
    "build_distiller": "methods.build",
}

__all__ = [
    "CONSISTENCY_WEIGHT",
    "NARROW",
    "PRESETS",
    "PUBLISHED",
    "SCHEDULES",
    "SKIPS",
    "VARIANTS",
    "Recipe",
    "Scoring",
    "StepFeatures",
    "TeacherFeatures",
    "Term",
    "Training",
    "build_distiller",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)
