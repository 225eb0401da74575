"""A policy of thresholds held against a report. What was not measured never passes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.baseline import Bands
from qkspec.judging import NOT_JUDGED
from qkspec.policy import Held, Policy
from qkspec.readings import NO_STEP, Readings
from qkspec.theorem import Verdict

__all__ = ["Failure", "Outcome", "Policy", "check", "where"]

NO_BAND = "the baseline has no band for it"
UNKNOWN_IF_UNJUDGED = frozenset(Verdict) - {Verdict.BROKEN, Verdict.DEAD}


@dataclass(frozen=True)
class Failure:
    """One threshold crossed, or a value that a rule needed and that could not be computed.

    Args:
        where: "run/checkpoint module head h", or a run's name.
        rule: the option and the metric.
        value: None where it could not be measured; text where the rule is a verdict.
        limit: text where the rule is a verdict; None where the baseline has no band for the head.
        row: of the report's readings, or -1 for a run.
        head: "run module head h", the same at every checkpoint; "" for a run.
        at: "step 40", or the checkpoint's name where it has no step; "" for a run.
    """

    where: str
    rule: str
    value: float | str | None
    limit: float | str | None
    row: int = -1
    head: str = ""
    at: str = ""

    @property
    def told(self) -> str:
        """Rule, value and limit."""
        if self.limit is None and self.value is None:
            return f"{self.rule}: {NO_BAND}"
        limit = f"limit {self.limit:.6g}" if isinstance(self.limit, float) else f"limit {self.limit}"
        limit = NO_BAND if self.limit is None else limit
        if self.value is None:
            return f"{self.rule} could not be measured ({limit})"
        shown = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        return f"{self.rule} {shown} ({limit})"

    @property
    def message(self) -> str:
        """One sentence for a log."""
        return f"{self.where}: {self.told}"


@dataclass(frozen=True)
class Outcome:
    """What a gate found.

    Args:
        failures: thresholds crossed, in the order of the table.
        unmeasured: values that a rule needed and that could not be computed.
        skipped: inputs that could not be read.
        heads: rows that were held to at least one rule of the policy.
        allow_skipped: the skipped ones do not count.
        warnings: what had to be assumed; counts only under ``strict``.
        strict: whether they count.
    """

    failures: tuple[Failure, ...]
    unmeasured: tuple[Failure, ...]
    skipped: Mapping[str, str]
    heads: int
    allow_skipped: bool = False
    warnings: tuple[str, ...] = ()
    strict: bool = False

    @property
    def exit_code(self) -> int:
        """1: a threshold was crossed; 3: something could not be measured; 0: everything held."""
        if self.failures:
            return 1
        incomplete = bool(self.unmeasured) or (bool(self.skipped) and not self.allow_skipped)
        return 3 if incomplete or self.heads == 0 or (self.strict and bool(self.warnings)) else 0


@dataclass
class _Findings:
    """Failures under construction, put into the order of the table at the end."""

    failures: list[Failure] = field(default_factory=list)
    unmeasured: list[Failure] = field(default_factory=list)


def check(report: Report, policy: Policy, bands: Bands | None = None) -> Outcome:
    """Hold a report against a policy.

    A value is accepted only by ``value <= limit``, so NaN never passes: it is reported as unmeasured. A broken head
    (NaN or Inf weights) crosses every numeric rule, since no limit holds for it.

    Args:
        report: the evidence.
        policy: the rules.
        bands: of a baseline that every head must stay within, too.
    """
    rows = _last_rows(report) if policy.last else np.arange(len(report.readings))
    found = _Findings()
    readings = report.readings.where(_mask(rows, len(report.readings)))
    rows = np.sort(rows)
    held = list(policy.held(readings))
    if bands is not None:
        held += [Held(*rule) for rule in bands.rules(readings)]
    touched = np.zeros(len(rows), dtype=bool)
    for rule in held:
        _hold(report, readings, rows, rule, found)
        touched |= rule.in_force
    touched |= _judge(report, policy, readings, rows, found)
    touched |= _runs(report, policy, rows, found)
    remarks = dict.fromkeys(remark for fact in report.checkpoints for remark in fact.remarks)
    return Outcome(
        tuple(sorted(found.failures, key=lambda failure: failure.row)),
        tuple(sorted(found.unmeasured, key=lambda failure: failure.row)),
        report.skipped,
        int(touched.sum()),
        policy.allow_skipped,
        tuple(remarks),
        policy.strict,
    )


def where(report: Report, row: int) -> str:
    """Return "run/checkpoint module head h" of one row."""
    r = report.readings
    return f"{r['run'][row]}/{r['checkpoint'][row]} {r['module'][row]} head {r['head'][row]}"


def _of_head(report: Report, row: int, rule: str, value: float | str | None, limit: float | str | None) -> Failure:
    """Return the failure of one row."""
    r = report.readings
    step = int(r["step"][row])
    head = f"{r['run'][row]} {r['module'][row]} head {r['head'][row]}"
    at = str(r["checkpoint"][row]) if step == NO_STEP else f"step {step}"
    return Failure(where(report, row), rule, value, limit, row, head, at)


def _hold(report: Report, readings: Readings, rows: NDArray[np.int64], rule: Held, found: _Findings) -> None:
    """Hold the rows of a table to one numeric rule."""
    values = readings.metric(rule.metric)
    with np.errstate(invalid="ignore"):
        accepted = values >= rule.limits if rule.sign == ">=" else values <= rule.limits
    name = f"{rule.option} {rule.metric}"
    for at in np.flatnonzero(rule.in_force & ~accepted):
        row, limit = int(rows[at]), None if np.isnan(rule.limits[at]) else float(rule.limits[at])
        verdict = report.verdicts[row]
        if verdict is Verdict.BROKEN:
            found.failures.append(_of_head(report, row, name, Verdict.BROKEN.value, limit))
        elif not np.isnan(values[at]) and limit is not None:
            found.failures.append(_of_head(report, row, name, float(values[at]), limit))
        elif verdict is not Verdict.DEAD:  # an all-zero head has no SEC, and cannot exceed one
            found.unmeasured.append(_of_head(report, row, name, None, limit))


def _judge(
    report: Report, policy: Policy, readings: Readings, rows: NDArray[np.int64], found: _Findings
) -> NDArray[np.bool_]:
    """Hold the rows' verdicts to the policy; return which rows have a verdict that it forbids."""
    forbidden = policy.forbidden(readings)
    unmapped = _unmapped(readings)
    for at, row in enumerate(rows.tolist()):
        verdict = report.verdicts[row]
        if verdict in forbidden[at]:
            found.failures.append(_of_head(report, row, "verdict", verdict.value, "--fail-on"))
        elif verdict is Verdict.BROKEN and not policy.rules:
            limit = "weights must be finite"
            found.failures.append(_of_head(report, row, "verdict", verdict.value, limit))
        elif verdict is Verdict.UNJUDGED and forbidden[at] & UNKNOWN_IF_UNJUDGED:
            found.unmeasured.append(_of_head(report, row, "verdict", None, "--fail-on"))
        elif unmapped[at] and verdict not in _WITHOUT_MAPS and forbidden[at] & UNKNOWN_IF_UNJUDGED:
            found.unmeasured.append(_of_head(report, row, "map of its inputs", None, "--fail-on"))
    return np.array([bool(verdicts) for verdicts in forbidden], dtype=bool)


_WITHOUT_MAPS = frozenset({Verdict.BROKEN, Verdict.DEAD, Verdict.NOT_APPLICABLE})


def _unmapped(readings: Readings) -> NDArray[np.bool_]:
    """Return which rows (rows,) lack the map of real or random inputs that --text or --activations asked for."""
    asked = [f"{kind}_entropy" for kind in ("random", "measured") if f"{kind}_entropy" in readings.metrics]
    if not asked:
        return np.zeros(len(readings), dtype=bool)
    return np.asarray(~np.logical_or.reduce([np.isfinite(readings.metric(name)) for name in asked]))


def _runs(report: Report, policy: Policy, rows: NDArray[np.int64], found: _Findings) -> NDArray[np.bool_]:
    """Hold what a run's heads say together at its last checkpoint; return which rows a share was taken over."""
    for run, state in report.states.items():
        if state.dead and not state.judged:  # there is no spectrum that could cross a threshold
            what = f"W_q'W_k = 0 in {state.dead} heads, and no other was judged: health"
            found.unmeasured.append(Failure(run, what, None, "a living head"))
    if policy.max_share is None:
        return np.zeros(len(rows), dtype=bool)
    for run, state in report.states.items():
        if state.share <= policy.max_share:
            continue
        if np.isnan(state.share) and state.verdict != Verdict.BROKEN.value:
            found.unmeasured.append(Failure(run, "--max-share", None, policy.max_share))
        else:
            value = state.verdict if np.isnan(state.share) else state.share
            found.failures.append(Failure(run, "--max-share", value, policy.max_share))
    judged = np.array([report.verdicts[row] not in NOT_JUDGED for row in rows.tolist()], dtype=bool)
    return judged & np.isin(rows, _last_rows(report))


def _last_rows(report: Report) -> NDArray[np.int64]:
    rows, readings = [], report.readings
    for _, in_run in readings.groups("run"):
        last = readings["checkpoint"][in_run][-1]
        rows.append(np.flatnonzero(in_run & readings.rows("checkpoint", last)))
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)


def _mask(rows: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, dtype=bool)
    mask[rows] = True
    return mask
