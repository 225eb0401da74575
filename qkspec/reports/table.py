"""The summary in the terminal: what was read, how the run is, which head turned first and why, the worst, a map."""

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.text import Text

from qkspec.analysis import Report
from qkspec.reports.glyphs import Glyphs
from qkspec.reports.headmap import draw_map
from qkspec.reports.notes import notes
from qkspec.reports.palette import LOOKS, STATES
from qkspec.reports.view import (
    QUIET,
    RunView,
    maps_sentence,
    number,
    reasons,
    state_sentence,
    turn_sentence,
    turn_word,
    views,
    what_was_read,
)
from qkspec.theorem import GRAVITY, Verdict

WORST = 8  # heads listed with their numbers
SKIPPED = 10  # skipped files listed with their reasons
MAX_WIDTH = 120  # columns used of a wider terminal; longer lines are hard to read


def render(report: Report, console: Console) -> None:
    """Print the summary of a report, never wider than the console.

    Args:
        report: the report.
        console: where to; its width, colours and encoding decide how it looks.
    """
    glyphs = Glyphs.of(console)
    width = max(min(console.width, MAX_WIDTH), 20)
    runs = list(views(report))
    for view in runs:
        for line in _run(view, glyphs, width):
            console.print(line, soft_wrap=True, highlight=False)
    for line in _strays(report, runs, glyphs, width):
        console.print(line, soft_wrap=True, highlight=False)
    if len(runs) > 1:
        for view in runs:
            console.print(_one_line(view, glyphs, width), soft_wrap=True, highlight=False)


def _run(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    yield from _wrap(Text(glyphs.name(view.name), "bold"), width)
    yield from _wrap(Text(glyphs.name(what_was_read(view), 1000)), width, indent=2)
    state = Text.assemble((f" {view.state.verdict.upper()} ", STATES[view.state.verdict]), "  ")
    yield from _wrap(state.append(glyphs.name(state_sentence(view))), width, indent=2)
    yield from _first(view, glyphs, width)
    yield from _trends(view, glyphs, width)
    yield Text("")
    yield from _worst(view, glyphs, width)
    yield from _counts(view, width)
    yield Text("")
    yield from draw_map(view, glyphs, width)
    yield from _notes(view, glyphs, width)
    yield Text("")


def _first(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    yield from _wrap(Text(glyphs.name(f"{turn_word(view)}: {turn_sentence(view)}")), width, indent=2, hang=7)
    row = view.first_turn()
    if row is not None:
        because = ", ".join(reasons(view, row))
        yield from _wrap(Text(glyphs.say(f"why: {because}"), "dim"), width, indent=4, hang=5)
    for word, sentence in notes(view):
        yield from _wrap(Text(glyphs.name(f"{word}: {sentence}", 500)), width, indent=2, hang=len(word) + 2)


def _trends(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    """Draw the largest σ1 and κ over the checkpoints."""
    if len(view.grid) < 2:
        return
    for metric, label in (("sigma1", "max σ1"), ("freezing_ratio", "max κ")):
        values = view.metric(metric)
        known = np.isfinite(values)
        if not known.any():
            continue
        tops = np.where(known.any(axis=1), np.where(known, values, -np.inf).max(axis=1), np.nan)
        ends = [number(tops[i]) for i in (0, -1)]
        text = glyphs.say(f"{label:>6}  ")
        after = glyphs.say(f"  {ends[0]} → {ends[1]}")
        room = width - 2 - len(text) - len(after)
        if room >= 4:
            yield Text.assemble("  ", text, (glyphs.sparkline(tops, min(room, 60)), "cyan"), after)


def _worst(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    rows = view.worst()
    if not rows:
        return
    kinds = view.judged_map("entropy", rows[:WORST])[1]
    columns = _columns(view, rows[:WORST], kinds, glyphs)
    while sum(len(c[1][0]) + 2 for c in columns) > width and len(columns) > 1:
        least = max(range(len(columns)), key=lambda i: columns[i][0])  # the column that is needed least
        columns.pop(least)
    what = "heads that stand out" if view.state.verdict == "sound" else "worst heads"
    title = Text.assemble((glyphs.name(f"{what} at {view.at(-1)}"), "bold"), (f"; {maps_sentence(kinds)}", "dim"))
    yield from _wrap(title, width, indent=2)
    for i, row in enumerate([None, *rows[:WORST]]):
        style = "dim" if row is None else ""
        line = Text("  ")
        for need, cells in columns:
            word_style = LOOKS[view.verdict(row)].word if row is not None and need == 1 else style
            text = cells[i].rstrip()
            line.append(text, word_style).append(cells[i][len(text) :] + "  ")
        line.rstrip()
        line.truncate(width)
        yield line
    if len(rows) > WORST:
        yield from _wrap(Text(glyphs.say(f"… and {len(rows) - WORST} more"), "dim"), width, indent=2)


def _columns(view: RunView, rows: list[int], kinds: list[str], glyphs: Glyphs) -> list[tuple[int, list[str]]]:
    """Return (how dispensable, padded cells with the heading first) of the table of worst heads."""
    readings = view.report.readings
    blocks = {str(readings["block"][row]) for row in rows}

    def values(metric: str) -> list[str]:
        return [number(float(readings.metric(metric)[row])) for row in rows]

    def of_map(index: str) -> list[str]:
        return [number(value) for value in view.judged_map(index, rows)[0]]

    table = [
        (0, "layer", [str(readings["layer"][row]) for row in rows], ">"),
        (0, "head", [str(readings["head"][row]) for row in rows], ">"),
        (1, "verdict", [view.verdict(row).value for row in rows], "<"),
        (3, "κ", values("freezing_ratio"), ">"),
        (4, "σ1", values("sigma1"), ">"),
        (5, "eff. rank", values("effective_rank"), ">"),
        (8, "SEC(s*)", values("sec_star"), ">"),
        (6, "entropy", of_map("entropy"), ">"),
        (7, "map rank", of_map("rank"), ">"),
    ]
    if len(set(kinds)) > 1:
        table.append((6, "map", kinds, "<"))
    if len(view.grid) > 1:
        table.append((2, "since", [_since(view, row) for row in rows], ">"))
    if len({block for block, *_ in view.modules()}) > 1 or len(blocks) > 1:
        table.insert(0, (0, "block", [glyphs.name(readings["block"][row], 20) for row in rows], "<"))
    out = []
    for need, heading, cells, side in table:
        texts = [glyphs.say(heading), *cells]
        size = max(len(text) for text in texts)
        out.append((need, [f"{text:{side}{size}}" for text in texts]))
    return out


def _since(view: RunView, row: int) -> str:
    index = view.since(row)
    return "-" if index is None else (str(view.steps[index]) if view.has_steps else f"#{view.steps[index] + 1}")


def _counts(view: RunView, width: int) -> Iterator[Text]:
    counts = view.counts()
    line = Text("heads: ")
    for i, verdict in enumerate(v for v in GRAVITY if counts[v]):
        line.append(", " if i else "").append(f"{counts[verdict]} {verdict.value}", _count_style(verdict))
    yield from _wrap(line, width, indent=2)


def _count_style(verdict: Verdict) -> str:
    return "" if verdict in QUIET else LOOKS[verdict].word


def _notes(view: RunView, glyphs: Glyphs, width: int) -> Iterator[Text]:
    for remark in view.remarks()[:SKIPPED]:
        yield from _wrap(Text(glyphs.name(f"note: {remark}")), width, indent=2, hang=6)
    yield from _skips(view.skipped(), glyphs, width, indent=2)


def _skips(skipped: dict[str, str], glyphs: Glyphs, width: int, indent: int) -> Iterator[Text]:
    for name, reason in list(skipped.items())[:SKIPPED]:
        text = reason if reason.startswith(name) else f"{name}: {reason}"
        yield from _wrap(Text(glyphs.name(f"skipped: {text}", 500), "bold"), width, indent=indent, hang=9)
    if len(skipped) > SKIPPED:
        more = f"… and {len(skipped) - SKIPPED} more skipped; report.json lists them (-o DIR)"
        yield from _wrap(Text(glyphs.say(more), "bold"), width, indent=indent, hang=2)


def _strays(report: Report, runs: list[RunView], glyphs: Glyphs, width: int) -> Iterator[Text]:
    """Name what was skipped in runs of which nothing was measured."""
    measured = tuple(f"{view.name}/" for view in runs)
    yield from _skips(
        {name: why for name, why in report.skipped.items() if not name.startswith(measured)}, glyphs, width, indent=0
    )


def _one_line(view: RunView, glyphs: Glyphs, width: int) -> Text:
    counts = view.counts()
    found = ", ".join(f"{counts[v]} {v.value}" for v in GRAVITY if counts[v] and v is not Verdict.HEALTHY)
    word = f" {view.state.verdict} "
    line = Text.assemble((word, STATES[view.state.verdict]), " ", glyphs.name(view.name), f": {found or 'all healthy'}")
    line.truncate(width, overflow="ellipsis" if glyphs.unicode else "crop")
    return line


def _wrap(text: Text, width: int, *, indent: int = 0, hang: int = 0) -> Iterator[Text]:
    """Break a text into lines no wider than ``width``: the first at ``indent``, the others at ``indent + hang``."""
    hang = hang if width > 60 else min(hang, 2)
    console = Console(width=10_000, file=None)
    rest, at = text, indent
    while True:
        lines = rest.wrap(console, max(width - at, 8), overflow="fold")
        first = lines[0]
        first.rstrip()
        yield Text(" " * at).append_text(first)
        if len(lines) == 1:
            return
        rest, at = rest[len(lines[0].plain) :], indent + hang
        rest = _lstrip(rest)


def _lstrip(text: Text) -> Text:
    return text[len(text.plain) - len(text.plain.lstrip()) :]
