"""A policy of thresholds held against a report. What was not measured never passes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.errors import UsageError
from qkspec.readings import plain
from qkspec.theorem import Verdict


@dataclass(frozen=True)
class Policy:
    """Thresholds that every head of every checkpoint must hold. None leaves a rule out.

    Args:
        max_sec: SEC(d_q, s) must stay at or below this, between 0 and 1.
        s: of max_sec.
        max_sigma1: σ_1(W_q'W_k) must stay at or below this.
        max_freezing: the freezing ratio κ must stay at or below this.
        fail_on: verdicts that no head may have.
        last: hold only the last checkpoint of each run to it.
        allow_skipped: pass although something could not be measured.
    """

    max_sec: float | None = None
    s: int = 4
    max_sigma1: float | None = None
    max_freezing: float | None = None
    fail_on: frozenset[Verdict] = frozenset()
    last: bool = False
    allow_skipped: bool = False

    def __post_init__(self) -> None:
        for name in ("max_sec", "max_sigma1", "max_freezing"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
                raise UsageError(f"threshold {option(name)} is {value!r}: give a number that is not negative")
            if value is not None and math.isinf(value):
                raise UsageError(f"threshold {option(name)} is infinite: leave it out to drop the rule")
        if self.max_sec is not None and self.max_sec > 1:
            raise UsageError(f"threshold --max-sec is {self.max_sec!r}: SEC lies between 0 and 1")
        if self.s < 1:
            raise UsageError(f"-s is {self.s}: SEC(d_q, s) needs s of at least 1")

    @property
    def rules(self) -> tuple[tuple[str, str, float], ...]:
        """(option, metric, limit) of every numeric rule in force."""
        known = (
            ("--max-sec", f"sec_{self.s}", self.max_sec),
            ("--max-sigma1", "sigma1", self.max_sigma1),
            ("--max-freezing", "freezing_ratio", self.max_freezing),
        )
        return tuple((rule, metric, float(limit)) for rule, metric, limit in known if limit is not None)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], where: str) -> "Policy":
        """Build a policy from a settings table, refusing keys and types that are not its own.

        Raises:
            UsageError: naming ``where`` and the key.
        """
        allowed = {field.name for field in fields(cls)}
        for key in settings:
            if key.replace("-", "_") not in allowed:
                raise UsageError(f"{where}: no gate setting is called {key!r}; known: {', '.join(sorted(allowed))}")
        values = {key.replace("-", "_"): value for key, value in settings.items()}
        if "fail_on" in values:
            names = values["fail_on"]
            values["fail_on"] = verdicts([names] if isinstance(names, str) else names, where)
        for name in ("last", "allow_skipped"):
            if not isinstance(values.get(name, False), bool):
                raise UsageError(f"{where}: {name} must be true or false")
        if not isinstance(values.get("s", 1), int) or isinstance(values.get("s", 1), bool):
            raise UsageError(f"{where}: s must be a whole number")
        return cls(**values)


@dataclass(frozen=True)
class Failure:
    """One threshold crossed: where, by which rule, the value and the limit (as text where the rule is a verdict)."""

    where: str
    rule: str
    value: float | str | None
    limit: float | str

    @property
    def message(self) -> str:
        """One sentence for a log."""
        if self.value is None:
            return f"{self.where}: {self.rule} could not be measured (limit {self.limit})"
        shown = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        return f"{self.where}: {self.rule} {shown} (limit {self.limit})"


@dataclass(frozen=True)
class Outcome:
    """What a gate found.

    Args:
        failures: thresholds crossed, in the order of the table.
        unmeasured: values that a rule needed and that could not be computed.
        skipped: inputs that could not be read.
        heads: rows that were held to the policy.
    """

    failures: tuple[Failure, ...]
    unmeasured: tuple[Failure, ...]
    skipped: Mapping[str, str]
    heads: int
    allow_skipped: bool = False

    @property
    def exit_code(self) -> int:
        """1: a threshold was crossed; 3: something could not be measured; 0: everything held."""
        if self.failures:
            return 1
        incomplete = bool(self.unmeasured) or (bool(self.skipped) and not self.allow_skipped)
        return 3 if incomplete or self.heads == 0 else 0


def check(report: Report, policy: Policy) -> Outcome:
    """Hold a report against a policy.

    A value is accepted only by ``value <= limit``, so NaN never passes: it is reported as unmeasured. A broken head
    (NaN or Inf weights) crosses every numeric rule, since no limit holds for it.
    """
    rows = _last_rows(report) if policy.last else np.arange(len(report.readings))
    failures: list[Failure] = []
    unmeasured: list[Failure] = []
    verdict = report.verdicts
    columns = [(rule, metric, limit, report.readings.metric(metric)) for rule, metric, limit in policy.rules]
    applicable_sec = report.readings["d_q"] >= policy.s
    for row in rows:
        for rule, metric, limit, values in columns:
            if values[row] <= limit or (metric.startswith("sec_") and not applicable_sec[row]):
                continue
            value = plain(values[row])
            if verdict[row] is Verdict.BROKEN:
                failures.append(Failure(where(report, row), f"{rule} {metric}", Verdict.BROKEN.value, limit))
            elif value is not None or np.isposinf(values[row]):
                failures.append(Failure(where(report, row), f"{rule} {metric}", float(values[row]), limit))
            elif verdict[row] is not Verdict.DEAD:  # an all-zero head has no SEC, and cannot exceed one
                unmeasured.append(Failure(where(report, row), f"{rule} {metric}", None, limit))
        if verdict[row] in policy.fail_on:
            failures.append(Failure(where(report, row), "verdict", verdict[row].value, "--fail-on"))
        elif verdict[row] is Verdict.BROKEN and not policy.rules:
            failures.append(Failure(where(report, row), "verdict", verdict[row].value, "weights must be finite"))
        elif verdict[row] is Verdict.UNJUDGED and policy.fail_on:
            unmeasured.append(Failure(where(report, row), "verdict", None, "--fail-on"))
    return Outcome(tuple(failures), tuple(unmeasured), report.skipped, len(rows), policy.allow_skipped)


def where(report: Report, row: int) -> str:
    """Return "run/checkpoint module head h" of one row."""
    r = report.readings
    return f"{r['run'][row]}/{r['checkpoint'][row]} {r['module'][row]} head {r['head'][row]}"


def verdicts(names: object, source: str) -> frozenset[Verdict]:
    """Parse verdict names ("malignant", "not-applicable").

    Raises:
        UsageError: a name is no verdict.
    """
    if not isinstance(names, (list, tuple)):
        raise UsageError(f"{source}: fail_on must be a verdict or a list of verdicts")
    known = {verdict.value.replace(" ", "-"): verdict for verdict in Verdict}
    chosen = set()
    for name in names:
        key = str(name).strip().lower().replace(" ", "-").replace("_", "-")
        if key not in known:
            raise UsageError(f"{source}: {name!r} is no verdict; known: {', '.join(known)}")
        chosen.add(known[key])
    return frozenset(chosen)


def option(name: str) -> str:
    """Return a setting's name as its command-line option."""
    return "--" + name.replace("_", "-")


def _last_rows(report: Report) -> NDArray[np.int64]:
    rows = []
    for _, in_run in report.readings.groups("run"):
        checkpoints = report.readings["checkpoint"][in_run]
        rows.append(np.flatnonzero(in_run & (report.readings["checkpoint"] == checkpoints[-1])))
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
