"""Commands beside main.py and test.py: python -m scripts.NAME"""

import commandline  # noqa: F401 - before anything slow: Ctrl-C is one line from here on
