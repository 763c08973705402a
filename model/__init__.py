"""The networks and their weights: a frozen teacher, a one-class bottleneck, a student."""

from model.bottleneck import OCBE
from model.distiller import Distiller
from model.published import load_published
from model.student import Skip, Student
from model.teacher import TEACHERS, Teacher, build_teacher, is_resnet

__all__ = [
    "OCBE",
    "TEACHERS",
    "Distiller",
    "Skip",
    "Student",
    "Teacher",
    "build_teacher",
    "is_resnet",
    "load_published",
]
