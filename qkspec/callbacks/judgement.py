"""What a live run's heads say at one step: readings and verdicts, the state of the run so far, a logger's numbers."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qkspec import trajectory
from qkspec.errors import UsageError
from qkspec.judging import Report, run_state
from qkspec.readings import Readings, concatenate
from qkspec.theorem import GRAVITY, Verdict
from qkspec.trajectory import HeadTable, RunState

RUN = "live"  # the run's name in the readings
EARLY = (2, 5, 10, 20, 40, 60, 80)  # a run that will be lost grows fastest in its first steps
STOPS = ("warned", "lost", "broken")  # run verdicts that can stop a run, each graver than the one before
MAXIMA = ("sigma1", "freezing_ratio")


@dataclass(frozen=True)
class Judgement:
    """One step of a live run, judged.

    Args:
        step: updates done.
        report: readings and verdicts of this step alone, in the form of ``qkspec.analyze``; its one run state is that
            of the run so far.
        scalars: for a logger, see ``scalars_of``.
        stop: whether the run is as bad as the monitor's ``stop_on``.
    """

    step: int
    report: Report
    scalars: Mapping[str, float]
    stop: bool

    @property
    def readings(self) -> Readings:
        """One row a module and head."""
        return self.report.readings

    @property
    def verdicts(self) -> NDArray[np.object_]:
        """(rows,) Verdict."""
        return self.report.verdicts

    @property
    def state(self) -> RunState:
        """What the heads say together, with the steps of the first malignant head and of the surge on the way."""
        return self.report.states[RUN]

    @property
    def message(self) -> str:
        """One line for a console."""
        state = self.state
        share = "no head judged" if math.isnan(state.share) else f"{state.share:.0%} of heads concentrated and large"
        tops = [
            f"max {name} {self.scalars[key]:.3g}"
            for key, name in (("qkspec/max_sigma1", "σ1"), ("qkspec/max_freezing_ratio", "κ"))
            if key in self.scalars
        ]
        return ", ".join([f"step {self.step}: {state.verdict}: {share}", f"{state.malignant} malignant", *tops])


def follow(report: Report, previous: Judgement | None, *, step: int, stop_on: str | None) -> Judgement:
    """Judge a step by its report and the judgement before it; nothing older has to be kept.

    Args:
        report: of this step alone, its run called RUN.
        previous: the judgement of the step measured before, or None.
        step: updates done.
        stop_on: as of ``stops``.
    """
    both, verdicts, state = report.readings, report.verdicts, report.states[RUN]
    if previous is not None:
        both = concatenate([previous.readings, both], both.metrics)
        verdicts = np.concatenate([previous.verdicts, verdicts])
        state = _since_start(previous.state, run_state(both, verdicts, report.limits))
    report = replace(report, states={RUN: state})
    return Judgement(step, report, scalars_of(report, state, _growth(both)), stops(state, stop_on))


def stops(state: RunState, stop_on: str | None) -> bool:
    """Say whether a run is as bad as ``stop_on`` ("warned", "lost" or "broken") or worse; None never stops."""
    return stop_on is not None and state.verdict in STOPS[STOPS.index(stop_on) :]


def check_stop(stop_on: str | None) -> None:
    """Raise UsageError for a word that no run verdict is."""
    if stop_on is not None and stop_on not in STOPS:
        raise UsageError(f"stop_on is {stop_on!r}: give one of {', '.join(map(repr, STOPS))}, or None")


def scalars_of(report: Report, state: RunState, growth: float) -> dict[str, float]:
    """Return the numbers for a logger. One that could not be measured is left out: a curve has a gap there, never a 0.

    ``qkspec/max_sigma1`` and ``qkspec/max_freezing_ratio`` (κ) over the heads where they could be measured, both left
    out while a head's weights hold NaN or Inf; ``qkspec/concentrated_and_large``, the share of judged heads, 0 to 1;
    ``qkspec/growth``, the median head's growth of ln σ_1 a step since the step measured before; and a count of heads
    for each verdict, ``qkspec/heads_malignant`` and so on, which are always all there.
    """
    found: dict[str, float] = {}
    counts = Counter(report.verdicts.tolist())
    for name in MAXIMA:
        values = report.readings.metric(name)
        known = values[np.isfinite(values)]
        if known.size and not counts[Verdict.BROKEN]:
            found[f"qkspec/max_{name}"] = float(known.max())
    found |= {"qkspec/concentrated_and_large": state.share, "qkspec/growth": growth}
    found |= {f"qkspec/heads_{verdict.value.replace(' ', '_')}": float(counts[verdict]) for verdict in GRAVITY}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _growth(readings: Readings) -> float:
    table = HeadTable.of(readings)
    rates = trajectory.growth(table.steps, table.spread(readings.metric("sigma1")))
    known = rates[-1][np.isfinite(rates[-1])] if len(rates) else np.empty(0)
    return float(np.median(known)) if known.size else math.nan


def _since_start(before: RunState, now: RunState) -> RunState:
    """Return the run's state now, with what happened on the way before the two steps that ``now`` was judged from."""
    return replace(
        now,
        turned=_earlier(before.turned, now.turned),
        surge=_earlier(before.surge, now.surge),
        crossed=_earlier(before.crossed, now.crossed),
        growth=float(np.fmax(before.growth, now.growth)),
    )


def _earlier(before: int | None, now: int | None) -> int | None:
    return now if before is None else before
