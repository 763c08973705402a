"""How fast this project is, compared with a plain restatement of the published loop and with other packages."""
