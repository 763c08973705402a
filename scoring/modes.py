"""Names of what a score can be made of: plain values, so that flags need no torch."""

MAP_MODES = ("add", "mean", "multiply", "standardized")  # how the levels' maps are combined
