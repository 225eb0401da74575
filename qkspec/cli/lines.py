"""Lines of text on stdout, as wide as the terminal is and in the letters that it has."""

import sys
from collections.abc import Iterable

WIDEST = 120  # columns used of a wider terminal; longer lines are hard to read
NARROWEST = 20


def fitted(line: str, hang: int = 2) -> str:
    """Return a line broken to the terminal's width, its further lines indented; whole where stdout is no terminal."""
    from shutil import get_terminal_size
    from textwrap import fill

    text = plain(line)
    if not sys.stdout.isatty():
        return text
    width = max(min(get_terminal_size().columns, WIDEST), NARROWEST)
    if len(text) <= width:
        return text
    return fill(text, width, subsequent_indent=" " * min(hang, width // 3), break_on_hyphens=False)


def plain(text: str) -> str:
    """Return text of ours as stdout's encoding can show it."""
    from qkspec.reports.glyphs import Glyphs

    return Glyphs((sys.stdout.encoding or "").lower().startswith("utf")).say(text)


def show(lines: Iterable[str], hang: int = 2) -> None:
    """Print a command's result."""
    for line in lines:
        print(fitted(line, hang), flush=True)  # noqa: T201 - the command's result
