"""The thresholds of a gate: one set for every head, and overrides for some layers or blocks."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkspec.baseline import MARGIN
from qkspec.errors import UsageError
from qkspec.ranges import whole_numbers
from qkspec.readings import Readings
from qkspec.theorem import Verdict

NUMERIC = ("max_sec", "max_sigma1", "max_freezing", "min_entropy")
FRACTIONS = ("max_sec", "min_entropy", "max_share")
SWITCHES = ("last", "allow_skipped", "strict")


@dataclass(frozen=True)
class Held:
    """One numeric rule laid over the rows of a table.

    Args:
        option: as it is written on the command line.
        metric: the column that it holds.
        sign: "<=" or ">=": how a value must lie to its limit.
        limits: (rows,); NaN where no limit is known, which no value holds.
        in_force: (rows,) where the rule applies.
    """

    option: str
    metric: str
    sign: str
    limits: NDArray[np.float64]
    in_force: NDArray[np.bool_]


@dataclass(frozen=True)
class Override:
    """Other thresholds for some heads.

    Args:
        layers: numbers of the layers; empty is all.
        block: of the modules ("decoder.cross"); empty is all.
        limits: rule name to limit; None drops the rule there.
        fail_on: verdicts that these heads must not have; None leaves the policy's.
    """

    layers: frozenset[int]
    block: str
    limits: Mapping[str, float | None]
    fail_on: frozenset[Verdict] | None = None

    def covers(self, readings: Readings) -> NDArray[np.bool_]:
        """Return the rows (rows,) that it speaks of."""
        rows = np.ones(len(readings), dtype=bool)
        if self.layers:
            rows &= np.isin(readings["layer"].astype(np.int64), sorted(self.layers))
        if self.block:
            rows &= readings.rows("block", self.block)
        return rows


@dataclass(frozen=True)
class Policy:
    """Thresholds that every head of every checkpoint must hold. None leaves a rule out.

    Args:
        max_sec: SEC(d_q, s) must stay at or below this, between 0 and 1.
        s: of max_sec; a head narrower than s counts as not measured.
        max_sigma1: σ_1(W_q'W_k) must stay at or below this.
        max_freezing: the freezing ratio κ must stay at or below this.
        min_entropy: the predicted map's entropy / ln T must stay at or above this, between 0 and 1.
        max_share: largest share of a run's heads that may be concentrated and large at its last checkpoint.
        fail_on: verdicts that no head may have.
        last: hold only the last checkpoint of each run to it.
        allow_skipped: pass although an input could not be read.
        strict: do not pass when something had to be assumed (a context length that the config lacks).
        baseline: report directory of a healthy run; heads must stay within its bands.
        margin: how far outside a baseline's band a head may lie: a factor on sizes, a tenth of it on shares.
        layer: overrides in the order of the file; a later one wins.
    """

    max_sec: float | None = None
    s: int = 4
    max_sigma1: float | None = None
    max_freezing: float | None = None
    min_entropy: float | None = None
    max_share: float | None = None
    fail_on: frozenset[Verdict] = frozenset()
    last: bool = False
    allow_skipped: bool = False
    strict: bool = False
    baseline: str | None = None
    margin: float = MARGIN
    layer: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for name in (*NUMERIC, "max_share"):
            threshold(name, getattr(self, name))
        if self.s < 1:
            raise UsageError(f"-s is {self.s}: SEC(d_q, s) needs s of at least 1")
        numeric = isinstance(self.margin, (int, float)) and not isinstance(self.margin, bool)
        if not numeric or not 1 <= self.margin < math.inf:
            raise UsageError(f"--margin is {self.margin!r}: give a factor of at least 1")

    @property
    def rules(self) -> tuple[tuple[str, str, float], ...]:
        """(option, metric, limit) of every numeric rule in force for all layers."""
        limits = [(name, getattr(self, name)) for name in NUMERIC]
        return tuple((option(name), self._metric(name), float(limit)) for name, limit in limits if limit is not None)

    @property
    def says_something(self) -> bool:
        """Whether any threshold is given; a baseline's bands are held beside the rules, not in place of them."""
        overridden = any(o.fail_on or any(v is not None for v in o.limits.values()) for o in self.layer)
        return bool(self.rules or self.fail_on or self.max_share is not None or overridden)

    @property
    def needs_sec(self) -> bool:
        """Whether SEC(d_q, s) has to be measured."""
        return self.max_sec is not None or any(o.limits.get("max_sec") is not None for o in self.layer)

    def held(self, readings: Readings) -> Iterator[Held]:
        """Yield every numeric rule with its limit for each row of a table, overrides applied."""
        covered = [override.covers(readings) for override in self.layer]
        for name in NUMERIC:
            limit = getattr(self, name)
            limits = np.full(len(readings), math.nan if limit is None else float(limit))
            in_force = np.full(len(readings), limit is not None)
            for override, rows in zip(self.layer, covered, strict=True):
                if name in override.limits:
                    value = override.limits[name]
                    limits[rows] = math.nan if value is None else float(value)
                    in_force[rows] = value is not None
            if in_force.any():
                yield Held(option(name), self._metric(name), sign(name), limits, in_force)

    def forbidden(self, readings: Readings) -> list[frozenset[Verdict]]:
        """Return the verdicts that each row must not have."""
        out = [self.fail_on] * len(readings)
        for override in self.layer:
            if override.fail_on is not None:
                for row in np.flatnonzero(override.covers(readings)):
                    out[row] = override.fail_on
        return out

    def _metric(self, name: str) -> str:
        metrics = {"max_sigma1": "sigma1", "max_freezing": "freezing_ratio", "min_entropy": "predicted_entropy"}
        return metrics.get(name, f"sec_{self.s}")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], where: str) -> "Policy":
        """Build a policy from a settings table, refusing keys and types that are not its own.

        Raises:
            UsageError: naming ``where`` and the key.
        """
        allowed = {field.name for field in fields(cls)}
        values = _known(settings, allowed, where)
        if "fail_on" in values:
            values["fail_on"] = verdicts(values["fail_on"], where)
        if "layer" in values:
            tables = values["layer"]
            if not isinstance(tables, list):
                raise UsageError(f"{where}: overrides are written as [[gate.layer]] tables")
            values["layer"] = tuple(_override(table, f"{where}: gate.layer {i + 1}") for i, table in enumerate(tables))
        for name in SWITCHES:
            if not isinstance(values.get(name, False), bool):
                raise UsageError(f"{where}: {name} must be true or false")
        if not isinstance(values.get("s", 1), int) or isinstance(values.get("s", 1), bool):
            raise UsageError(f"{where}: s must be a whole number")
        if not isinstance(values.get("baseline", ""), str):
            raise UsageError(f"{where}: baseline must be the path of a report directory")
        try:
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def threshold(name: str, value: object) -> None:
    """Refuse a threshold that is no number, negative, NaN, infinite, or over 1 where it is a share.

    Raises:
        UsageError: naming the option.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0 or 1e300 < value < math.inf:
        raise UsageError(f"threshold {option(name)} is {value!r}: give a number that is not negative")
    if math.isinf(value):
        raise UsageError(f"threshold {option(name)} is infinite: leave it out to drop the rule")
    if name in FRACTIONS and value > 1:
        raise UsageError(f"threshold {option(name)} is {value!r}: it lies between 0 and 1")


def verdicts(names: object, source: str) -> frozenset[Verdict]:
    """Parse a verdict's name, or a list of them ("malignant", "not-applicable").

    Raises:
        UsageError: a name is no verdict.
    """
    names = [names] if isinstance(names, str) else names
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


def sign(name: str) -> str:
    """Return how a value must lie to the limit of a rule."""
    return ">=" if name.startswith("min_") else "<="


def _override(table: object, where: str) -> Override:
    if not isinstance(table, dict):
        raise UsageError(f"{where} must be a table")
    values = _known(table, {"layers", "block", "fail_on", *NUMERIC}, where)
    if not isinstance(values.get("block", ""), str):
        raise UsageError(f'{where}: block must be text, such as "decoder.cross"')
    if "layers" not in values and "block" not in values:
        raise UsageError(f"{where}: say which heads it speaks of, with layers or block")
    limits: dict[str, float | None] = {}
    for name in NUMERIC:
        if name in values:
            limit = None if values[name] is False else values[name]
            try:
                threshold(name, limit)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
            limits[name] = limit
    fail_on = verdicts(values["fail_on"], where) if "fail_on" in values else None
    if values.get("layers") == []:
        raise UsageError(f"{where}: layers is empty; leave it out to speak of every layer of a block")
    return Override(whole_numbers(values.get("layers"), f"{where}: layers"), values.get("block", ""), limits, fail_on)


def _known(settings: Mapping[str, Any], allowed: set[str], where: str) -> dict[str, Any]:
    values = {key.replace("-", "_"): value for key, value in settings.items()}
    for key in values:
        if key not in allowed:
            raise UsageError(f"{where}: no gate setting is called {key!r}; known: {', '.join(sorted(allowed))}")
    return values
