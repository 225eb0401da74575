"""From readings to a report: the verdict of each head, the state of each run, and its story over the steps."""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qkspec import __version__, courses, curve, energy, theorem, trajectory
from qkspec.baseline import Bands
from qkspec.courses import Courses
from qkspec.curve import Curve, Trouble
from qkspec.maps import Maps
from qkspec.readings import NO_STEP, Readings
from qkspec.theorem import Condition, Limits, Verdict
from qkspec.trajectory import ALARM, LOST, SURGE, WARNED, HeadTable, RunState

F64 = NDArray[np.float64]

SCHEMA = 1
NOT_JUDGED = (Verdict.UNJUDGED, Verdict.NOT_APPLICABLE, Verdict.BROKEN, Verdict.DEAD)


@dataclass(frozen=True)
class CheckpointFacts:
    """Where a checkpoint's numbers came from: one entry of a report's provenance.

    ``heads`` of ``found`` heads were measured; ``size`` is the bytes of its files and ``digest`` identifies their
    content (see checkpoints/fingerprint.py), None and "" for a live model.
    """

    run: str
    name: str
    step: int | None
    path: str
    format: str
    family: str
    stored: str
    modules: int
    heads: int
    remarks: tuple[str, ...] = ()
    found: int | None = None
    size: int | None = None
    digest: str = ""


@dataclass(frozen=True)
class Story:
    """One run over its steps.

    Args:
        heads: (module, head) of each column of ``courses``.
        courses: what each head did.
        alarms: what first spoke against the run, and the step: "surge" (the median head's growth), "crossing" (a
            quarter of the heads concentrated and large), "malignant" (the first such head).
        reasons: the conditions behind the run's verdict.
        loss: its loss curve, where one was found.
        trouble: when the loss went wrong, judged by itself and by the best run of the report.
    """

    heads: tuple[tuple[str, int], ...]
    courses: Courses
    alarms: Mapping[str, int]
    reasons: tuple[Condition, ...]
    loss: Curve | None = None
    trouble: Trouble | None = None

    @property
    def leads(self) -> dict[str, int]:
        """Steps by which each alarm came before the loss went wrong; negative: after it."""
        return {} if self.trouble is None else {name: self.trouble.step - step for name, step in self.alarms.items()}


@dataclass(frozen=True)
class Report:
    """Readings with their verdicts.

    Args:
        readings: one row a run, checkpoint, module and head.
        verdicts: (rows,) Verdict.
        limits: the thresholds that the verdicts were judged by.
        random_rank: (rows,) median effective rank of random weights of the head's shape.
        applicable: (rows,) whether Theorem 1 applies.
        states: run name to what its heads say together.
        checkpoints: provenance of each checkpoint measured.
        skipped: "run/checkpoint" or "run/checkpoint/module" to why it was not measured.
        spectra: "run/checkpoint/module" to (heads, d_q) singular values; empty if they were not kept.
        provenance: what computed the numbers.
        stories: run name to what its heads and its loss did over the steps.
        bands: of a baseline that the heads are held against beside the verdicts, or None.
        maps: pictures of predicted attention maps; none unless they were asked for.
    """

    readings: Readings
    verdicts: NDArray[np.object_]
    limits: Limits
    random_rank: F64
    applicable: NDArray[np.bool_]
    states: Mapping[str, RunState]
    checkpoints: tuple[CheckpointFacts, ...]
    skipped: Mapping[str, str]
    spectra: Mapping[str, F64]
    provenance: Mapping[str, str]
    stories: Mapping[str, Story] = field(default_factory=dict)
    bands: Bands | None = None
    maps: Maps = field(default_factory=Maps)

    def evidence(self, row: int) -> tuple[Condition, ...]:
        """Return the conditions behind one row's verdict."""
        return theorem.evidence(self.readings, self.limits, row, float(self.random_rank[row]))

    def confidence(self) -> NDArray[np.object_]:
        """Return how sure each row's malignant verdict is, (rows,) words: see ``theorem.confidence``."""
        return theorem.confidence(self.readings, self.limits, self.verdicts)

    def against_baseline(self, row: int) -> tuple[Condition, ...]:
        """Return how one row lies to the bands of the baseline; a condition holds where the head leaves its band."""
        if self.bands is None:
            return ()
        one = self.readings.where(np.arange(len(self.readings)) == row)
        found = []
        for _, metric, sign, limits, _ in self.bands.rules(one):
            value, limit = float(one.metric(metric)[0]), float(limits[0])
            outside = value < limit if sign == ">=" else value > limit
            beyond = "<=" if sign == ">=" else ">="
            known = math.isfinite(value) and math.isfinite(limit)
            name = f"outside the band of {self.bands.name}"
            found.append(Condition(name, metric, value if known else None, beyond, limit, outside if known else None))
        return tuple(found)

    def random_band(self, row: int) -> tuple[float, float, float]:
        """Return what random weights of a row's shape show: 5th and 95th percentile of SEC(d_q, s*), median rank.

        Keys are taken to be as wide as queries; readings do not hold the width of what cross-attention reads.
        """
        d, d_q = (int(self.readings[name][row]) for name in ("d_model", "d_q"))
        return energy.random_init(d, d, d_q, energy.star(d_q))


def assemble(
    readings: Readings,
    applicable: NDArray[np.bool_],
    limits: Limits,
    *,
    checkpoints: tuple[CheckpointFacts, ...],
    skipped: Mapping[str, str],
    spectra: Mapping[str, F64],
    losses: Mapping[str, Curve] | None = None,
) -> Report:
    """Judge readings by limits; a saved report's readings enter here again.

    Args:
        readings: the table.
        applicable: (rows,) whether Theorem 1 applies.
        limits: thresholds.
        checkpoints: as in Report.
        skipped: as in Report.
        spectra: as in Report.
        losses: run name to its loss.
    """
    random_rank = _random_ranks(readings)
    verdicts = theorem.classify(readings, limits, applicable, random_rank)
    states, stories = {}, {}
    for run, rows in readings.groups("run"):
        own = readings.where(rows)
        states[run] = run_state(own, verdicts[rows], limits)
        stories[run] = _story(own, verdicts[rows], limits, states[run], random_rank[rows])
    return Report(
        readings, verdicts, limits, random_rank, applicable, states, checkpoints, skipped, spectra, provenance(),
        _with_losses(stories, losses or {}),
    )  # fmt: skip


def run_state(readings: Readings, verdicts: NDArray[np.object_], limits: Limits) -> RunState:
    """Judge one run from its rows."""
    table, rank = HeadTable.of(readings), _random_ranks(readings)
    return trajectory.run_state(
        table.steps,
        table.spread(readings.metric("sigma1")),
        malignant=table.spread(_are(verdicts, Verdict.MALIGNANT), fill=0),
        both=table.spread(theorem.collapsing(readings, limits, rank), fill=0),
        frozen=table.spread(theorem.frozen(readings, limits, rank), fill=0),
        judged=table.spread(~_are(verdicts, *NOT_JUDGED), fill=0),
        broken=table.spread(_are(verdicts, Verdict.BROKEN), fill=0),
        dead=table.spread(_are(verdicts, Verdict.DEAD), fill=0),
    )


def provenance() -> dict[str, str]:
    """Return what computed the numbers. SciPy, which few heads need, is not imported to be named."""
    return {
        "qkspec": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "precision": "float64",
    }


def _story(
    readings: Readings, verdicts: NDArray[np.object_], limits: Limits, state: RunState, random_rank: F64
) -> Story:
    table = HeadTable.of(readings)
    found = theorem.conditions(readings, limits, random_rank)
    held = {
        "concentrated": found.concentrated,
        "large": found.large,
        "sparse": found.sparse,
        "malignant": _are(verdicts, Verdict.MALIGNANT),
    }
    values = [table.spread(readings.metric(name)) for name in ("sigma1", "effective_rank", "freezing_ratio")]
    course = courses.courses(
        table.steps,
        values[0],
        values[1],
        values[2],
        {name: table.spread(rows, fill=0) for name, rows in held.items()},
        {"concentrated": limits.effective_rank, "large": limits.freezing, "sparse": limits.entropy},
    )
    alarms = {"surge": state.surge, "crossing": state.crossed, "malignant": state.turned}
    known = {name: step for name, step in alarms.items() if step is not None}
    return Story(table.heads, course, known if _has_steps(readings) else {}, _reasons(state))


def _reasons(state: RunState) -> tuple[Condition, ...]:
    found = (
        ("heads concentrated and large", "share", state.share, WARNED),
        ("heads concentrated and frozen", "frozen", state.frozen, LOST),
        ("dead heads", "dead", float(state.dead), max(1.0, WARNED * (state.judged + state.dead))),
        ("malignant heads", "malignant", float(state.malignant), max(1.0, ALARM * state.judged)),
        ("median growth of ln sigma1 a step", "growth", state.growth, SURGE),
    )
    return tuple(
        Condition(name, metric, None, ">=", least, None)
        if math.isnan(value)
        else Condition(name, metric, value, ">=", least, value >= least)
        for name, metric, value, least in found
    )


def _with_losses(stories: Mapping[str, Story], losses: Mapping[str, Curve]) -> dict[str, Story]:
    """Add each run's loss, held against that of the run which ended best."""
    ends = {run: end for run, loss in losses.items() if math.isfinite(end := curve.final(loss))}
    best = min(ends, key=lambda run: ends[run], default=None)
    out = {}
    for run, story in stories.items():
        loss = losses.get(run)
        if loss is not None:
            reference = losses[best] if best is not None and best != run else None
            trouble = curve.trouble(loss, reference, best or "")
            story = Story(story.heads, story.courses, story.alarms, story.reasons, loss, trouble)  # noqa: PLW2901
        out[run] = story
    return out


def _are(verdicts: NDArray[np.object_], *which: Verdict) -> NDArray[np.bool_]:
    return np.array([verdict in which for verdict in verdicts], dtype=bool)


def _has_steps(readings: Readings) -> bool:
    return bool((readings["step"] != NO_STEP).all())


def _random_ranks(readings: Readings) -> F64:
    out = np.empty(len(readings))
    shapes = np.stack([readings["d_model"], readings["d_q"]], axis=1).astype(np.int64)
    for d, d_q in set(zip(*shapes.T.tolist(), strict=True)):  # np.unique would import numpy.ma
        rank = energy.random_init(int(d), int(d), int(d_q), energy.star(int(d_q)))[2]
        out[(shapes == (d, d_q)).all(axis=1)] = rank
    return out
