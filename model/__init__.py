"""Teacher, bottleneck and student; a variant is a row of `VARIANTS`."""

from model.bottleneck import OCBE
from model.distiller import Distiller, Pair
from model.published import load_published
from model.student import Skip, Student
from model.teacher import TEACHERS, Teacher, build_teacher
from model.variants import SKIPS, VARIANTS, Recipe, build_distiller

__all__ = [
    "OCBE",
    "SKIPS",
    "TEACHERS",
    "VARIANTS",
    "Distiller",
    "Pair",
    "Recipe",
    "Skip",
    "Student",
    "Teacher",
    "build_distiller",
    "build_teacher",
    "load_published",
]
