"""The report as Markdown, for a pull request or a ticket."""

import re
from collections.abc import Iterator, Sequence
from typing import TextIO

from qkspec.analysis import Report
from qkspec.clean import clean
from qkspec.reports.notes import notes
from qkspec.reports.view import (
    RunView,
    head_name,
    number,
    reasons,
    state_sentence,
    turn_sentence,
    turn_word,
    views,
    what_was_read,
)
from qkspec.theorem import GRAVITY, Verdict

MAX_HEADS = 20  # a run's worst heads in the table; report.json has all of them
MAX_SKIPPED = 20

_SPECIAL = frozenset(r"\`*_[]|~$")


def write(report: Report, out: TextIO) -> None:
    """Write the report to an open text file."""
    out.writelines(f"{line}\n" for line in lines(report))


def lines(report: Report) -> Iterator[str]:
    """Yield the document line by line."""
    runs = list(views(report))
    yield "# Query-key spectra"
    yield ""
    yield from table(
        ("run", "state", "checkpoints", "heads", "verdicts at the end", "max σ1", "max κ"),
        [_run_row(view) for view in runs],
    )
    for view in runs:
        yield from _run(view)
    yield from _skipped(report)
    yield f"qkspec {inert(report.provenance.get('qkspec', ''))}, {inert(report.provenance.get('precision', ''))}"


def code(name: object, limit: int = 200) -> str:
    """Return a name as a code span, in which no link, mention, reference or HTML comes to life, also in a table."""
    text = clean(name, limit).replace("|", r"\x7c")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if len(fence) > 1 or text != text.strip() or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def inert(sentence: object, limit: int = 400) -> str:
    """Return a sentence that shows as it stands: escaped, or a code span if a forge would make a link of some of it."""
    text = clean(sentence, limit)
    if any(mark in text for mark in ("@", "#", "://", "www.", "&", "<")):
        return code(text, limit)
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table whose cells are Markdown already, with an empty line behind it."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join(' --- ' for _ in header)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _run_row(view: RunView) -> list[str]:
    counts = view.counts()
    found = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in GRAVITY if counts[verdict])
    return [
        code(view.name),
        f"**{view.state.verdict}**" if view.state.verdict != "sound" else "sound",
        str(len(view.grid)),
        str(len(view.table.heads)),
        found,
        _largest(view, "sigma1"),
        _largest(view, "freezing_ratio"),
    ]


def _largest(view: RunView, metric: str) -> str:
    values = view.metric(metric)[-1]
    known = values[values == values]  # noqa: PLR0124 - NaN alone differs from itself
    return number(float(known.max())) if known.size else "–"


def _run(view: RunView) -> Iterator[str]:
    yield f"## {code(view.name)}"
    yield ""
    row = view.first_turn()
    why = "" if row is None else f" ({inert(', '.join(reasons(view, row)))})"
    facts = [
        inert(what_was_read(view), 1000),
        f"**{view.state.verdict}**: {inert(state_sentence(view))}",
        f"{turn_word(view).capitalize()}: {inert(turn_sentence(view))}{why}",
    ]
    facts += [f"{word.capitalize()}: {inert(sentence, 500)}" for word, sentence in notes(view)]
    yield "  \n".join(facts)
    yield ""
    worst = view.worst()
    if worst:
        yield from _worst(view, worst[:MAX_HEADS])
    if len(worst) > MAX_HEADS:
        yield f"… and {len(worst) - MAX_HEADS} more."
        yield ""
    for remark in view.remarks():
        yield f"- {inert(remark)}"
    if view.remarks():
        yield ""


def _worst(view: RunView, rows: list[int]) -> Iterator[str]:
    """Yield the table of the worst heads, with the indices of the maps that they were judged by."""
    readings = view.report.readings
    (entropy, kinds), (rank, _) = view.judged_map("entropy", rows), view.judged_map("rank", rows)
    names = ("freezing_ratio", "sigma1", "effective_rank", "sec_star")
    values = [*(readings.metric(name)[rows].tolist() for name in names), entropy, rank]
    yield from table(
        ("head", "module", "verdict", "κ", "σ1", "effective rank", "SEC(s\\*)", "entropy", "map rank", "map"),
        [
            [
                inert(head_name(view, row)),
                code(readings["module"][row]),
                _verdict(view.verdict(row)),
                *(number(column[i]) for column in values),
                kinds[i],
            ]
            for i, row in enumerate(rows)
        ],
    )


def _verdict(verdict: Verdict) -> str:
    return f"**{verdict.value}**" if verdict in (Verdict.BROKEN, Verdict.MALIGNANT) else verdict.value


def _skipped(report: Report) -> Iterator[str]:
    if not report.skipped:
        return
    yield f"## Skipped ({len(report.skipped)})"
    yield ""
    for name, reason in list(report.skipped.items())[:MAX_SKIPPED]:
        yield f"- {code(name)}: {inert(reason)}"
    if len(report.skipped) > MAX_SKIPPED:
        yield f"- … and {len(report.skipped) - MAX_SKIPPED} more"
    yield ""
