"""``python -m mlpkit`` is the command ``mlpkit``."""

import sys

from mlpkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
