"""Predictions on new images: reading what can be read, lines and files of what was found."""
