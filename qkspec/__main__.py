"""``python -m qkspec``."""

import sys

from qkspec.cli import main

if __name__ == "__main__":
    sys.exit(main())
