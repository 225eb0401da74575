"""Follow a run that is still being written: each complete checkpoint once, judged together with those before it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qkspec.analysis import Measured, Report, Settings, Skipped, judge, measure_source
from qkspec.checkpoints.remote import is_url, refresh
from qkspec.checkpoints.sequence import Run, Source, find_runs
from qkspec.errors import InputError, QkspecError
from qkspec.readings import NO_STEP
from qkspec.theorem import GRAVITY, Verdict

FIRST_PAUSE = 1.0  # seconds between the first two looks, so that what is there already is measured at once
PATIENCE = 4  # looks at a checkpoint that cannot be measured before that is said: a slow save pauses between files
ALARMING = (Verdict.BROKEN, Verdict.MALIGNANT, Verdict.DEAD)


@dataclass(frozen=True)
class Arrival:
    """A checkpoint that is complete: nothing of it changed between two looks."""

    run: str
    source: Source


@dataclass(frozen=True)
class Turn:
    """A head whose verdict became graver since the checkpoint before."""

    row: int
    module: str
    head: int
    before: Verdict
    after: Verdict


@dataclass(frozen=True)
class Moment:
    """One checkpoint of a run that is being followed.

    Args:
        run: its name.
        checkpoint: name of the checkpoint.
        step: or None where it is not known.
        report: of the run so far, this checkpoint last; None if it could not be measured.
        problem: why not.
        turns: heads whose verdict became graver.
        before: verdict of the run at the checkpoint before, "" at the first.
    """

    run: str
    checkpoint: str
    step: int | None
    report: Report | None
    problem: str = ""
    turns: tuple[Turn, ...] = ()
    before: str = ""

    @property
    def verdict(self) -> str:
        """The run's verdict now, "" if the checkpoint could not be measured."""
        return "" if self.report is None else self.report.states[self.run].verdict

    @property
    def alarming(self) -> bool:
        """Whether somebody should be called: a head turned malignant, broken or dead, or the run's verdict changed."""
        turned = any(turn.after in ALARMING for turn in self.turns)
        changed = self.report is not None and self.verdict != (self.before or "sound")
        return turned or (changed and self.verdict not in ("sound", "unjudged"))


def arrivals(
    path: str, *, every: float, idle: float | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Arrival | str]:
    """Yield each complete checkpoint once, and after every look why nothing was found, "" if something was.

    A checkpoint that is written over in place (one file that a trainer saves to again) is yielded again; at a URL,
    where each question is a request, only the last one of a run. What cannot be opened yet is taken for one that is
    being written, and looked at again.

    Args:
        path: what find_runs takes, a URL included; it may not exist yet.
        every: seconds between looks.
        idle: end when nothing has arrived for so many seconds; None never ends.
        sleep: waits.

    Raises:
        UsageError: no backend for such URLs is installed.
    """
    seen: dict[str, str] = {}
    done: dict[str, str] = {}
    quiet, pause = 0.0, min(FIRST_PAUSE, every)
    while True:
        new = False
        runs, problem = _runs(path)
        for name, source, last in ((run.name, one, one is run.sources[-1]) for run in runs for one in run.sources):
            if is_url(path) and source.path in done and not last:
                continue
            try:
                state = source.fingerprint()
            except (QkspecError, OSError):
                continue
            if seen.get(source.path) == state != done.get(source.path):
                done[source.path] = state
                new = True
                yield Arrival(name, source)
            seen[source.path] = state
        yield problem
        quiet = 0.0 if new else quiet + pause
        if idle is not None and quiet > idle:
            return
        sleep(pause)
        pause = every if new or quiet >= FIRST_PAUSE else pause


def follow(
    found: Iterator[Arrival | str], settings: Settings, held: dict[str, tuple[int, Moment]] | None = None
) -> Iterator[Moment | str]:
    """Measure and judge each arrival together with those of its run before it; what else is said is passed on.

    A checkpoint that cannot be measured is told of after PATIENCE looks, unless it has been written on by then.

    Args:
        found: what ``arrivals`` yields.
        settings: how to measure and judge.
        held: filled with the looks left and the moment of each checkpoint that is not told of yet, by path: for who
            ends early.
    """
    held = {} if held is None else held
    history: dict[str, dict[str, Measured]] = {}
    verdicts: dict[str, str] = {}
    for arrival in found:
        if isinstance(arrival, str):
            for path, (looks, moment) in list(held.items()):
                held[path] = looks - 1, moment
                if looks <= 1:
                    del held[path]
                    yield moment
            yield arrival
            continue
        source = arrival.source
        held.pop(source.path, None)
        result = measure_source(arrival.run, source, settings)
        if isinstance(result, Skipped) or not len(result.readings):
            reason = result.reason if isinstance(result, Skipped) else _reason(result)
            held[source.path] = PATIENCE, Moment(arrival.run, source.name, source.step, None, reason)
            continue
        known = history.setdefault(arrival.run, {})
        known.pop(source.path, None)
        known[source.path] = replace(result, spectra={})  # spectra of a long run would fill the memory
        report = judge(_ordered(known), settings)
        before = verdicts.get(arrival.run, "")
        verdicts[arrival.run] = report.states[arrival.run].verdict
        turns = turned(report)
        yield Moment(arrival.run, result.facts.name, result.facts.step, report, "", turns, before)
    while held:
        yield held.pop(next(iter(held)))[1]


def turned(report: Report) -> tuple[Turn, ...]:
    """Return the heads of a run's last checkpoint whose verdict is graver than at the one before."""
    readings = report.readings
    names = list(dict.fromkeys(readings["checkpoint"].tolist()))
    last = np.flatnonzero(readings["checkpoint"] == names[-1])
    before: dict[tuple[str, int], Verdict] = {}
    if len(names) > 1:
        for row in np.flatnonzero(readings["checkpoint"] == names[-2]).tolist():
            before[readings["module"][row], int(readings["head"][row])] = report.verdicts[row]
    out = []
    for row in last.tolist():
        key = (readings["module"][row], int(readings["head"][row]))
        was, now = before.get(key, Verdict.HEALTHY), report.verdicts[row]
        if GRAVITY.index(now) < GRAVITY.index(was):
            out.append(Turn(row, *key, was, now))
    return tuple(out)


def _ordered(known: dict[str, Measured]) -> list[Measured]:
    """Return the measured checkpoints in the order of steps, those without one as they came."""
    steps = [m.facts.step for m in known.values()]
    if any(step is None for step in steps):
        return list(known.values())
    return sorted(known.values(), key=lambda m: NO_STEP if m.facts.step is None else m.facts.step)


def _runs(path: str) -> tuple[Sequence[Run], str]:
    """Return the runs that are there now, or the reason why there are none."""
    if is_url(path):
        refresh(path)
    try:
        return find_runs([path]), ""
    except (InputError, OSError) as error:
        return (), str(error)


def _reason(result: Measured) -> str:
    return next(iter(result.skipped.values()), "no attention head was found")
