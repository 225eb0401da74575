"""Lines of text on stdout, as wide as the terminal is and in the letters that it has."""

import sys
from collections.abc import Iterable

from qkspec.clean import in_ascii

WIDEST = 120  # columns used of a wider terminal; longer lines are hard to read
NARROWEST = 20


def columns() -> int | None:
    """Return how wide lines may be; None where stdout is no terminal, and lines stay whole."""
    from shutil import get_terminal_size

    return max(min(get_terminal_size().columns, WIDEST), NARROWEST) if sys.stdout.isatty() else None


def fitted(line: str, hang: int = 2) -> str:
    """Return a line broken to the terminal's width, its further lines indented by ``hang`` more."""
    from textwrap import fill

    text, width = plain(line), columns()
    if width is None or len(text) <= width:
        return text
    indent = len(text) - len(text.lstrip())
    return fill(text, width, subsequent_indent=" " * min(indent + hang, width // 3), break_on_hyphens=False)


def plain(text: str) -> str:
    """Return text of ours as stdout's encoding can show it."""
    return text if (sys.stdout.encoding or "").lower().startswith("utf") else in_ascii(text)


def show(lines: Iterable[str], hang: int = 2) -> None:
    """Print a command's result."""
    for line in lines:
        print(fitted(line, hang), flush=True)  # noqa: T201 - the command's result
