"""Two runs side by side as a page: their trajectories overlaid, their maps and verdicts beside each other."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from qkspec.clean import clean
from qkspec.comparison import Comparison
from qkspec.errors import UsageError
from qkspec.reports.directory import replacing
from qkspec.reports.formats import require
from qkspec.reports.html import render, summary
from qkspec.reports.pagedata import page_data
from qkspec.reports.view import RunView
from qkspec.reports.wholefile import whole_file
from qkspec.theorem import GRAVITY, Verdict

PAGE, DATA = "compare.html", "compare.json"  # of a comparison's directory
SIDES = ("A", "B")


@dataclass(frozen=True)
class Pair:
    """Two runs as they were compared.

    Args:
        found: what the comparison found.
        a, b: the runs.
        sentences: what it says in words.
        document: the same as plain values.
    """

    found: Comparison
    a: RunView
    b: RunView
    sentences: Sequence[str]
    document: Mapping[str, Any]


def check_target(out: Path) -> None:
    """Hold a place to what a comparison may replace.

    Raises:
        UsageError: something that qkspec did not write stands there, or an optional package is missing.
    """
    require(PAGE, "html")
    if _is_page(out):
        if out.is_dir():
            raise UsageError(f"{out}: is a directory; name a file, or a directory that does not end in .html")
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a directory, or a page that ends in .html")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in (PAGE, DATA)) if out.exists() else []
    if foreign:
        raise UsageError(f"{out}: holds {foreign[0]}, which compare did not write; name another directory")


def save(pair: Pair, out: Path) -> None:
    """Write a comparison: one page where ``out`` ends in .html, else a directory of the page and its numbers.

    Raises:
        UsageError: something that qkspec did not write stands there, or an optional package is missing.
        OutputError: it could not be written; what stood there before still does.
    """
    check_target(out)
    if _is_page(out):
        with whole_file(out) as file:
            write(pair, file)
        return
    with replacing(Path(os.path.realpath(out))) as folder:
        with (folder / PAGE).open("w", encoding="utf-8") as file:
            write(pair, file)
        with (folder / DATA).open("w", encoding="utf-8") as file:
            json.dump(pair.document, file, indent=1, allow_nan=False)


def write(pair: Pair, out: TextIO) -> None:
    """Write the page of a comparison to an open text file."""
    views = (pair.a, pair.b)
    data = page_data(pair.a.report.limits, views, spectra=False)
    found = pair.found
    data["parted"] = {track.metric: track.parted for track in reversed(found.tracks)}  # the median's, not the largest's
    data["loss"] = None if found.loss is None else found.loss[1].step
    limits = {name: value for name, value in vars(pair.a.report.limits).items() if value is not None}
    render(
        "compare",
        data,
        out,
        runs=[_card(view, side, found) for view, side in zip(views, SIDES, strict=True)],
        parted=found.parted,
        sentences=[clean(sentence, 500) for sentence in pair.sentences],
        verdicts=_verdicts(found),
        last=int(found.steps[-1]) if len(found.steps) else None,
        provenance={clean(name): clean(value) for name, value in pair.a.report.provenance.items()},
        limits=limits,
    )


def _card(view: RunView, side: str, found: Comparison) -> dict[str, Any]:
    """Return what a run's card says; of the losses the comparison knows more than either run's own report."""
    card = summary(view, side)
    return card if found.loss is None else {**card, "notes": [note for note in card["notes"] if note[0] != "Loss"]}


def _verdicts(found: Comparison) -> list[tuple[str, str, int]]:
    """Return (verdict in A, verdict in B, heads), those that differ first, gravest first."""

    def order(item: tuple[tuple[Verdict, Verdict], int]) -> tuple[bool, int, int]:
        a, b = item[0]
        return a is b, min(GRAVITY.index(a), GRAVITY.index(b)), -item[1]

    return [(a.value, b.value, heads) for (a, b), heads in sorted(found.verdicts.items(), key=order)]


def _is_page(out: Path) -> bool:
    return out.suffix.lower() in (".html", ".htm")
