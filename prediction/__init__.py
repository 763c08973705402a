"""Predictions on new images: reading what can be read, lines and files of what was found."""

from prediction.images import Named, ReadableImages, find_images, standard_input
from prediction.output import Output, Totals
from prediction.stream import Show, predict_files

__all__ = ["Named", "Output", "ReadableImages", "Show", "Totals", "find_images", "predict_files", "standard_input"]
