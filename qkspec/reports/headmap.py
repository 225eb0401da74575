"""A layer x head map of verdicts in letters and colours, with its legend."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from qkspec.reports.glyphs import Glyphs
from qkspec.reports.palette import LOOKS
from qkspec.reports.view import QUIET, RunView
from qkspec.theorem import GRAVITY, Verdict

MAX_ROWS = 40  # layers drawn; of more, those in which every head is healthy are left out


def draw_map(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    """Yield the lines of the map of a run's last checkpoint: a row a layer, a letter a head.

    Where only some heads were measured (--heads), a first row says their numbers.

    Args:
        view: the run.
        glyphs: of the terminal.
        width: columns; a layer with more heads than fit goes on in the next line.
    """
    rows = _rows(view, glyphs)
    hidden = 0
    if len(rows) > MAX_ROWS:
        troubled = [row for row in rows if any(v is not None and v not in QUIET for v in row[1])]
        shown = (troubled or rows)[:MAX_ROWS]
        hidden, rows = len(rows) - len(shown), shown
    if not rows:
        return
    margin = max(len(label) for label, _ in rows) + 4
    most = max(len(verdicts) for _, verdicts in rows)
    numbers = view.table.numbers
    some = numbers != list(range(len(numbers)))
    cell = len(str(numbers[-1])) if some else 1
    gap = " " if some or margin + 2 * most <= width else ""
    room = max((width - margin) // (cell + len(gap)), 1)
    cells = [(label, [_letter(verdict, glyphs) for verdict in verdicts]) for label, verdicts in rows]
    yield Text(f"  {glyphs.name(f'layer × head at {view.at(-1)}')}"[:width], "bold")
    for label, letters in [("", [(str(number), "dim") for number in numbers])] * some + cells:
        for start in range(0, len(letters), room):
            line = Text.assemble((f"{'' if start else label:>{margin - 1}} ", "dim"))
            for letter, style in letters[start : start + room]:
                line.append(f"{letter:>{cell}}", style).append(gap)
            line.rstrip()
            yield line
    if hidden:
        yield Text(glyphs.say(f"  … {hidden} more layers")[:width], "dim")
    yield from _legend({v for _, verdicts in rows for v in verdicts if v is not None}, glyphs, width)


def _rows(view: RunView, glyphs: Glyphs) -> list[tuple[str, Sequence[Verdict | None]]]:
    modules = view.modules()
    several = len({block for block, *_ in modules}) > 1
    numbers = view.table.numbers
    out: list[tuple[str, Sequence[Verdict | None]]] = []
    for block, layer, _, columns in modules:
        label = glyphs.name(short_label(block, layer), 24) if several else str(layer)
        found = {view.table.heads[column][1]: int(view.grid[-1, column]) for column in columns}
        rows = [found.get(number, -1) for number in numbers if number <= max(found)]
        out.append((label, [view.verdict(row) if row >= 0 else None for row in rows]))
    return out


def short_label(block: str, layer: int) -> str:
    """Return a short label of a layer in a model of several blocks: "decoder.cross 3" becomes "dec.cross 3"."""
    parts = [part if part in ("self", "cross") else part[:3] for part in block.split(".")]
    return f"{'.'.join(parts)} {layer}"


def _letter(verdict: Verdict | None, glyphs: Glyphs) -> tuple[str, str]:
    if verdict is None:
        return " ", ""
    letter = "·" if verdict is Verdict.HEALTHY and glyphs.unicode else LOOKS[verdict].letter
    return letter, LOOKS[verdict].terminal


def _legend(present: set[Verdict], glyphs: Glyphs, width: int) -> Iterator[Text]:
    line = Text("  ")
    for verdict in GRAVITY:
        if verdict not in present:
            continue
        entry = Text.assemble(_letter(verdict, glyphs), f" {verdict.value}")
        if len(line) > 2 and len(line) + len(entry) + 2 > width:
            line.rstrip()
            yield line
            line = Text("  ")
        line.append_text(entry).append("  ")
    line.rstrip()
    yield line
