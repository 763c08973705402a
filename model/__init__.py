"""Teacher, bottleneck and student; a variant is a row of `VARIANTS`."""

from model.bottleneck import OCBE
from model.distiller import Distiller
from model.published import load_published
from model.recipe import Recipe, Term, Training
from model.student import Skip, Student
from model.teacher import TEACHERS, Teacher, build_teacher
from model.variants import SKIPS, SSOT, VARIANTS, build_distiller
from model.views import Seen, Views

__all__ = [
    "OCBE",
    "SKIPS",
    "SSOT",
    "TEACHERS",
    "VARIANTS",
    "Distiller",
    "Recipe",
    "Seen",
    "Skip",
    "Student",
    "Teacher",
    "Term",
    "Training",
    "Views",
    "build_distiller",
    "build_teacher",
    "load_published",
]
