"""Two runs side by side: trajectories on common steps, the step at which they part, and the verdicts that differ."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec import curve
from qkspec.analysis import Report
from qkspec.curve import Trouble
from qkspec.readings import NO_STEP, Readings
from qkspec.theorem import Verdict
from qkspec.trajectory import RunState, settled

F64 = NDArray[np.float64]
Steps = NDArray[np.int64]

RATIO = 1.5  # sizes part for good when one median is this many times the other's
DIFFERENCE = 0.1  # shares likewise


@dataclass(frozen=True)
class Track:
    """One metric of both runs over their common steps.

    Args:
        metric: its name.
        how: "median" or "max" over heads.
        a, b: (n,) values.
        parted: the step from which they differ to the end by RATIO (sizes) or DIFFERENCE (shares), or None.
        limit: that ratio or difference.
    """

    metric: str
    how: str
    a: F64
    b: F64
    parted: int | None
    limit: float


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, its state, and how many heads it has at its last checkpoint."""

    name: str
    state: RunState
    heads: int
    steps: Steps


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Args:
        a, b: the runs.
        steps: (n,) that both have, increasing.
        tracks: metrics over those steps.
        parted: the earliest step at which any track parts for good, and that track's metric; None if none does.
        same_start: whether the first common step has the same σ_1 in every head.
        verdicts: (verdict in a, verdict in b) of the last common step to how many heads.
        loss: when the worse loss of the two parted from the better, and whose it was; None if unknown or it did not.
    """

    a: Side
    b: Side
    steps: Steps
    tracks: tuple[Track, ...]
    parted: tuple[int, str] | None
    same_start: bool
    verdicts: Mapping[tuple[Verdict, Verdict], int]
    loss: tuple[str, Trouble] | None


_MEDIAN: Callable[[F64], float] = lambda values: float(np.median(values))  # noqa: E731 - a pair of reductions
_MAX: Callable[[F64], float] = lambda values: float(np.max(values))  # noqa: E731
TRACKS = (
    ("sigma1", "median", _MEDIAN, True),
    ("sigma1", "max", _MAX, True),
    ("freezing_ratio", "median", _MEDIAN, True),
    ("effective_rank", "median", _MEDIAN, True),
    ("predicted_entropy", "median", _MEDIAN, False),
)


def compare(a: tuple[Report, str], b: tuple[Report, str]) -> Comparison:
    """Compare two runs.

    Args:
        a: a report and the name of one of its runs.
        b: likewise.
    """
    sides = [_side(report, run) for report, run in (a, b)]
    rows = [report.readings.where(report.readings.rows("run", run)) for report, run in (a, b)]
    steps = np.intersect1d(sides[0].steps, sides[1].steps)
    tracks = tuple(_track(rows[0], rows[1], steps, *track) for track in TRACKS)
    parted = min(((t.parted, t.metric) for t in tracks if t.parted is not None), default=None)
    first = [_at(table, steps[0]) if len(steps) else {} for table in rows]
    return Comparison(
        sides[0],
        sides[1],
        steps,
        tracks,
        parted,
        bool(first[0]) and first[0] == first[1],
        _verdicts(a, b, int(steps[-1])) if len(steps) else {},
        _loss(a, b),
    )


def _side(report: Report, run: str) -> Side:
    own = report.readings.where(report.readings.rows("run", run))
    last = own.rows("checkpoint", own["checkpoint"][-1])
    known = own["step"].astype(np.int64)
    return Side(run, report.states[run], int(last.sum()), np.unique(known[known != NO_STEP]))


def _track(
    a: Readings,
    b: Readings,
    steps: Steps,
    metric: str,
    how: str,
    over: Callable[[F64], float],
    is_size: bool,  # noqa: FBT001 - a column of TRACKS
) -> Track:
    values = [np.array([_over(table, step, metric, over) for step in steps]) for table in (a, b)]
    limit = RATIO if is_size else DIFFERENCE
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (
            np.abs(np.log(values[0] / values[1])) >= math.log(RATIO)
            if is_size
            else np.abs(values[0] - values[1]) >= limit
        )
    since = settled(steps, apart[:, None])[0] if len(steps) else math.nan
    return Track(metric, how, values[0], values[1], int(since) if np.isfinite(since) else None, limit)


def _over(table: Readings, step: int, metric: str, over: Callable[[F64], float]) -> float:
    values = table.metric(metric)[table["step"] == step]
    known = values[np.isfinite(values)]
    return over(known) if known.size else math.nan


def _at(table: Readings, step: int) -> dict[tuple[str, int], float]:
    rows = np.flatnonzero(table["step"] == step).tolist()
    sigma1 = table.metric("sigma1")
    return {(table["module"][row], int(table["head"][row])): float(sigma1[row]) for row in rows}


def _verdicts(a: tuple[Report, str], b: tuple[Report, str], step: int) -> Mapping[tuple[Verdict, Verdict], int]:
    found = []
    for report, run in (a, b):
        readings = report.readings
        rows = np.flatnonzero(readings.rows("run", run) & (readings["step"] == step)).tolist()
        found.append({(readings["module"][row], int(readings["head"][row])): report.verdicts[row] for row in rows})
    return Counter((found[0][head], found[1][head]) for head in found[0] if head in found[1])


def _loss(a: tuple[Report, str], b: tuple[Report, str]) -> tuple[str, Trouble] | None:
    known = []
    for report, run in (a, b):
        story = report.stories.get(run)
        if story is None or story.loss is None:
            return None
        known.append((run, story.loss, curve.final(story.loss)))
    worse, better = known if not known[0][2] <= known[1][2] else known[::-1]
    trouble = curve.trouble(worse[1], better[1], better[0])
    return None if trouble is None else (worse[0], trouble)
