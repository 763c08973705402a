"""What is trained: variants as rows, losses and the pairs that they compare, synthetic anomalies."""

from methods.build import build_distiller
from methods.pairs import StepFeatures, TeacherFeatures
from methods.recipe import Recipe, Scoring, Term, Training
from methods.variants import CONSISTENCY_WEIGHT, SKIPS, VARIANTS

__all__ = [
    "CONSISTENCY_WEIGHT",
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
