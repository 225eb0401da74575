r"""Names from checkpoints in files: inert as by ``clean()``, but whole and reversible: a saved report reads back.

Control, format, bidi and separator characters become \x.. escapes and a backslash is doubled. In a spreadsheet's cell,
text that starts like a formula is led by an apostrophe.
"""

import codecs
import re

from qkspec.clean import clean

_FORMULA = ("=", "+", "-", "@", "'", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_ESCAPE = re.compile(r"\\(\\|[ntr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def escape(name: str) -> str:
    """Return an inert one-line form of a name that ``unescape`` undoes."""
    return "".join("\\\\" if c == "\\" else clean(c) for c in name)


def unescape(text: str) -> str:
    """Return the name whose ``escape`` is text."""
    return _ESCAPE.sub(lambda m: codecs.decode(m[0], "unicode_escape"), text)


def cell(name: str) -> str:
    """Return a name as the content of a CSV cell that no spreadsheet runs as a formula."""
    text = escape(name)
    return f"'{text}" if name.startswith(_FORMULA) else text


def uncell(text: str) -> str:
    """Return the name whose ``cell`` is text."""
    return unescape(text.removeprefix("'"))
