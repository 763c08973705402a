"""What is trained: recipes, the losses and the pairs that they compare, synthetic anomalies; a variant is a row of `VARIANTS`."""

from methods.build import build_distiller
from methods.pairs import StepFeatures, TeacherFeatures
from methods.recipe import Recipe, Scoring, Term, Training
from methods.variants import SKIPS, VARIANTS

__all__ = [
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
