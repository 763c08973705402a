"""The networks and their weights: a frozen teacher, a one-class bottleneck, a student."""

import importlib
from typing import TYPE_CHECKING, Any

from model.specs import TEACHERS, Skip, is_resnet

if TYPE_CHECKING:
    from model.bottleneck import OCBE
    from model.distiller import Distiller
    from model.published import load_published
    from model.student import Student
    from model.teacher import Teacher, build_teacher

# What needs torch is imported on first use: flags and their errors do without it.
LAZY = {
    "OCBE": "model.bottleneck",
    "Distiller": "model.distiller",
    "Student": "model.student",
    "Teacher": "model.teacher",
    "build_teacher": "model.teacher",
    "load_published": "model.published",
}

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


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)
