"""``python -m qkspec``."""

import sys
from collections import namedtuple

from qkspec.cli import main

if __name__ == "__main__":
    code = main()
    # CPython remembers a Ctrl-C that fell into the exec() of a string, as dataclasses do on import, and would end by
    # the signal instead of by our exit code, though it was handled. Evaluating another string makes it forget.
    namedtuple("Forget", ())
    sys.exit(code)
