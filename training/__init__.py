"""Training: the loop of one run, all runs of a command, and what is printed meanwhile."""
