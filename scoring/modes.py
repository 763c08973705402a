"""Names of what a score can be made of: plain values, so that flags need no torch."""

MAP_SIZES = RESIZED, OWN = ("resized", "own")  # of the maps that pixel metrics are computed from
MAP_MODES = ("add", "mean", "multiply", "standardized")  # how the levels' maps are combined
