"""``qkspec compare``: two runs side by side, and the first step at which they part."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkspec.clean import clean
from qkspec.cli.lines import columns, show
from qkspec.cli.options import MODEL, VERDICT, WORK, Flags, Lines, NoProgress, Quiet, takes

if TYPE_CHECKING:
    from qkspec.analysis import Report
    from qkspec.comparison import Comparison

PAIR = 19  # columns of the terminal that a metric of both runs takes
MAX_ROWS = 24  # steps shown; more are thinned
COLUMNS = (
    ("sigma1", "median"),
    ("freezing_ratio", "median"),
    ("effective_rank", "median"),
    ("predicted_entropy", "median"),
)
HEADINGS = {
    "sigma1": "sigma1",
    "freezing_ratio": "kappa",
    "effective_rank": "eff. rank",
    "predicted_entropy": "entropy",
}


@takes("revisions", *MODEL, *VERDICT, *WORK)
def compare(
    a: Annotated[str, typer.Argument(help="A run, or a saved report of one run.", metavar="A", show_default=False)],
    b: Annotated[str, typer.Argument(help="The other one.", metavar="B", show_default=False)],
    *,
    flags: Flags,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page too: a directory, or a file that ends in .html.")
    ] = None,
    output_format: Annotated[Lines, typer.Option("--format", help="Of what goes to stdout.")] = Lines.TEXT,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Lay two runs side by side: trajectories, verdicts, the step at which they part, and that of their losses."""
    from qkspec.cli.measuring import measure
    from qkspec.cli.settings import load_file
    from qkspec.comparison import compare as compared

    table, where = load_file()
    if out is not None:
        from qkspec.reports.comparing import check_target

        check_target(out)
    sides = [measure([path], flags, table, where, quiet=quiet, progress=not no_progress) for path in (a, b)]
    runs = only_run(sides[0], a), only_run(sides[1], b)
    found = compared((sides[0], runs[0]), (sides[1], runs[1]))
    if out is not None:
        from qkspec.reports.comparing import Pair, save
        from qkspec.reports.view import RunView

        views = [RunView.of(side, run) for side, run in zip(sides, runs, strict=True)]
        save(Pair(found, views[0], views[1], findings(found), document(found)), out)
    if output_format is Lines.JSON:
        print(json.dumps(document(found), indent=1, allow_nan=False))  # noqa: T201 - the command's result
        return
    show(clean(line, 500) for line in lines(found, columns()))


def only_run(report: "Report", path: str) -> str:
    """Return the name of a report's one run.

    Raises:
        UsageError: it has several.
    """
    from qkspec.errors import UsageError

    runs = list(report.states)
    if len(runs) != 1:
        raise UsageError(f"{path}: holds {len(runs)} runs ({', '.join(runs[:4])}); name one of their folders")
    return runs[0]


def document(found: "Comparison") -> dict[str, Any]:
    """Return a comparison as plain values."""
    from qkspec.readings import plain

    return {
        "schema": 1,
        "a": _side(found.a),
        "b": _side(found.b),
        "steps": found.steps.tolist(),
        "same_start": found.same_start,
        "parted": None if found.parted is None else {"step": found.parted[0], "metric": found.parted[1]},
        "tracks": [
            {
                "metric": t.metric, "over_heads": t.how, "parted": t.parted, "limit": t.limit,
                "a": [plain(x) for x in t.a], "b": [plain(x) for x in t.b],
            }
            for t in found.tracks
        ],
        "verdicts": [{"a": a.value, "b": b.value, "heads": n} for (a, b), n in found.verdicts.items()],
        "loss": None if found.loss is None else {
            "run": found.loss[0], "step": found.loss[1].step, "kind": found.loss[1].kind,
            "difference": plain(found.loss[1].value),
        },
    }  # fmt: skip


def lines(found: "Comparison", room: int | None = None) -> list[str]:
    """Return a comparison as lines of text, its table no wider than ``room``."""
    a, b = found.a, found.b
    out = [f"A {a.name}: {_state(found, 'a')}", f"B {b.name}: {_state(found, 'b')}"]
    if not len(found.steps):
        return [*out, *findings(found)]
    if found.parted is not None:
        out.append(f"they part for good at step {found.parted[0]} ({HEADINGS.get(found.parted[1], found.parted[1])})")
    chosen = {(t.metric, t.how): t for t in found.tracks}
    width = max(len(str(found.steps[-1])), 4)
    shown = COLUMNS if room is None else COLUMNS[: max((room - width) // PAIR, 1)]
    out += ["", "medians over heads:"]
    out.append(f"{'step':>{width}}" + "".join(f"  {HEADINGS[metric] + ' A':>11} {'B':>5}" for metric, _ in shown))
    for i in _thinned(len(found.steps)):
        cells = "".join(f"  {_cell(chosen[key].a[i]):>9} {_cell(chosen[key].b[i]):>7}" for key in shown)
        out.append(f"{found.steps[i]:>{width}}{cells}")
    if len(shown) < len(COLUMNS):
        hidden = ", ".join(HEADINGS[metric] for metric, _ in COLUMNS[len(shown) :])
        out += ["", f"(wider terminals show {hidden})"]
    changed = {pair: n for pair, n in found.verdicts.items() if pair[0] is not pair[1]}
    last = f"verdicts at step {found.steps[-1]}: {_pairs(changed) or 'the same for every head'}"
    return [*out, "", *findings(found), last]


def findings(found: "Comparison") -> list[str]:
    """Return where two runs part, in sentences."""
    if not len(found.steps):
        return ["the runs have no step in common: only their ends can be compared"]
    out = ["at their first common step the weights' sigma1 are " + ("the same" if found.same_start else "different")]
    if found.parted is None:
        out.append("they do not part for good in any metric")
    out += [
        f"{t.how} {HEADINGS.get(t.metric, t.metric)} parts for good at step {t.parted}"
        for t in found.tracks
        if t.parted is not None
    ]
    if found.loss is not None:
        run, trouble = found.loss
        out.append(f"the loss of {run} {_said(trouble.kind)} at step {trouble.step}")
    return out


def _state(found: "Comparison", which: str) -> str:
    side = found.a if which == "a" else found.b
    turned = "none turned malignant" if side.state.turned is None else f"first malignant at step {side.state.turned}"
    return f"{side.state.verdict}, {side.state.malignant} of {side.heads} heads malignant at the end, {turned}"


def _side(side: Any) -> dict[str, Any]:
    state = side.state
    return {
        "run": side.name, "verdict": state.verdict, "heads": side.heads, "malignant": state.malignant,
        "first_malignant_step": state.turned,
    }  # fmt: skip


def _said(kind: str) -> str:
    return {"parted": "parted from the other's", "rose": "rose above its best for good"}.get(
        kind, "was no longer finite"
    )


def _pairs(changed: dict[Any, int]) -> str:
    return ", ".join(
        f"{n} {a.value} in A and {b.value} in B" for (a, b), n in sorted(changed.items(), key=lambda i: -i[1])
    )


def _cell(value: float) -> str:
    from qkspec.reports.view import number

    return number(value)


def _thinned(n: int) -> list[int]:
    if n <= MAX_ROWS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (MAX_ROWS - 1)) for i in range(MAX_ROWS)})
