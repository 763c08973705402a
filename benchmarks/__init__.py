"""How fast this project is, compared with a plain restatement of the published loop and with other packages."""

import commandline  # noqa: F401 - before anything slow: Ctrl-C is one line from here on
