"""How fast the project is: ours against a plain restatement of the published loop, in one process."""
