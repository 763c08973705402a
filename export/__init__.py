"""A trained detector as a folder that runs without PyTorch: the model's files, model.json and predict.py."""

from export.folder import FACTS, PREDICT, check_target, replace_when_whole
from export.formats import FORMATS, check_packages, write_models
from export.graph import ScoringGraph, build_graph
from export.parity import Parity, compare, parity_images

__all__ = [
    "FACTS",
    "FORMATS",
    "PREDICT",
    "Parity",
    "ScoringGraph",
    "build_graph",
    "check_packages",
    "check_target",
    "compare",
    "parity_images",
    "replace_when_whole",
    "write_models",
]
