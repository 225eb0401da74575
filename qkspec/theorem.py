"""Theorem 1 as a judgement: malignant is a spectrum concentrated and large, with a map sparse and low-rank.

The theorem gives no numbers ("≈ 1", "≪ d_q", "very large"); Limits does. Concentration alone separates nothing, since
healthy trained heads are concentrated too, so the conditions are judged as the conjunction that the theorem states.
"""

import math
from dataclasses import dataclass, fields
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from qkspec.errors import UsageError
from qkspec.readings import Readings

F64 = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Verdict(Enum):
    """The classes of a head, gravest first. The value is the word in every file, ``meaning`` the sentence beside it."""

    BROKEN = "broken"
    MALIGNANT = "malignant"
    DEAD = "dead"
    SHARP = "sharp"
    LARGE = "large"
    CONCENTRATED = "concentrated"
    BENIGN = "benign"
    UNJUDGED = "unjudged"
    NOT_APPLICABLE = "not applicable"
    HEALTHY = "healthy"

    @property
    def meaning(self) -> str:
        """One sentence for a report."""
        return _MEANINGS[self]


_MEANINGS = {
    Verdict.BROKEN: "weights hold NaN or Inf",
    Verdict.MALIGNANT: "concentrated and large, its map sparse yet low-rank: malignant entropy collapse (Theorem 1)",
    Verdict.DEAD: "W_q'W_k is zero: every token attends to all alike",
    Verdict.SHARP: "its map is sparse, of large logits or as measured, but not malignant: peaked attention",
    Verdict.LARGE: "logits large enough to freeze the softmax; the map is not sparse yet",
    Verdict.CONCENTRATED: "spectral energy in a few directions, logits still small: one of Theorem 1's two conditions",
    Verdict.BENIGN: "the map is close to the identity: benign collapse, the layer acts as a linear map",
    Verdict.UNJUDGED: "a quantity that the verdict needs could not be computed",
    Verdict.NOT_APPLICABLE: "linear attention, which has no softmax that could freeze: Theorem 1 does not speak of it",
    Verdict.HEALTHY: "everything was measured: neither concentrated nor large, and the map has not collapsed",
}

GRAVITY = tuple(Verdict)  # the order of the enum, for sorting
BY_SEC = "concentrated by SEC"
MEASURED, CERTAIN, SUSPECT = "measured", "certain", "suspect"  # how sure a malignant verdict is
KINDS = ("predicted", "embedded", "random", "measured")  # of maps, the better one last: by the weights alone, of
# embedded random tokens, of the model run on random tokens, of real activations


@dataclass(frozen=True)
class Limits:
    """The numbers that Theorem 1 leaves open; defaults from small GPT and ViT runs with their maps measured.

    Args:
        effective_rank: concentrated at or below this many directions (and below half of what random weights show).
        sec: SEC(d_q, s*) at or above it also counts as concentrated (below half of the random effective rank), with
            s* = max(1, ⌈d_q/16⌉), the paper's 4 at d_q = 64; the paper's strict value is 0.99.
            Limits(sec=None) leaves it out.
        freezing: large at or above this κ = logit std / √(2 ln T).
        certain: κ from which a frozen row is expected: a malignant verdict by weights alone is suspect below.
        entropy: the predicted map is sparse at or below this mean row entropy / ln T; under QK-norm, which keeps real
            logits near the predicted ones, at or below random_entropy.
        embedded_entropy: the same for a map of embedded tokens.
        random_entropy: the same for a map of the model run on random tokens.
        measured_entropy: the same for a map measured on real activations, which are not isotropic.
        map_rank: the map is of low rank at or below this effective rank / T.
        diagonal: the map is diagonal at or above this mean mass on the diagonal.
    """

    effective_rank: float = 2.5
    sec: float | None = 0.85
    freezing: float = 0.45
    certain: float = 1.0
    entropy: float = 0.8
    embedded_entropy: float = 0.5
    random_entropy: float = 0.46
    measured_entropy: float = 0.3
    map_rank: float = 0.4
    diagonal: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value < 0):
                raise UsageError(f"limit {field.name} is {value!r}: give a number that is not negative")
        for name in (
            "sec",
            "entropy",
            "embedded_entropy",
            "random_entropy",
            "measured_entropy",
            "map_rank",
            "diagonal",
        ):
            value = getattr(self, name)
            if value is not None and value > 1:
                raise UsageError(f"limit {name} is {value!r}: it lies between 0 and 1")

    @property
    def sparse(self) -> tuple[float, ...]:
        """The entropy at or below which a map is sparse, for each of KINDS."""
        return self.entropy, self.embedded_entropy, self.random_entropy, self.measured_entropy


@dataclass(frozen=True)
class Condition:
    """One condition of a verdict: what was measured, against which limit, and whether it holds (None: not measured).

    ``error`` is the value's standard error where it was drawn by lot, None where it was not.
    """

    name: str
    metric: str
    value: float | None
    sign: str
    limit: float
    holds: bool | None
    error: float | None = None

    @property
    def margin(self) -> float | None:
        """How far the value lies beyond its limit, as a share of the limit: above 0 it holds; None: not measured."""
        if self.value is None or not self.limit:
            return None
        beyond = self.value / self.limit - 1
        return -beyond if self.sign == "<=" else beyond


@dataclass(frozen=True)
class Conditions:
    """Which of Theorem 1's conditions each row meets; every array is (rows,) and False where NaN was measured.

    Args:
        concentrated: spectral energy in a few directions, by effective rank or by SEC.
        large: logits large enough to freeze the softmax.
        sparse, low_rank, diagonal: of the map, measured where there is one, else predicted.
        known: every quantity that these rest on was measured.
    """

    concentrated: Truth
    large: Truth
    sparse: Truth
    low_rank: Truth
    diagonal: Truth
    known: Truth


@dataclass(frozen=True)
class _Test:
    name: str
    metric: str
    sign: str
    values: F64
    limits: F64
    errors: F64 | None = None

    def holds(self) -> Truth:
        """Whether the condition is proven; NaN is not."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.values <= self.limits if self.sign == "<=" else self.values >= self.limits)

    def known(self) -> Truth:
        return np.isfinite(self.values)


def conditions(readings: Readings, limits: Limits, random_rank: F64) -> Conditions:
    """Hold every row to each condition of Theorem 1.

    Args:
        readings: the table.
        limits: thresholds.
        random_rank: (rows,) median effective rank of random weights of the head's shape.
    """
    tests = {test.name: test for test in _tests(readings, limits, random_rank)}
    holds = {name: test.holds() for name, test in tests.items()}
    concentrated = holds["concentrated"]
    if BY_SEC in holds:
        with np.errstate(invalid="ignore"):  # a head of two directions has SEC near 1 whatever its weights are
            concentrated = concentrated | (holds[BY_SEC] & (readings.metric("effective_rank") <= random_rank / 2))
    known = np.logical_and.reduce([test.known() for test in tests.values() if test.name != BY_SEC])
    return Conditions(concentrated, holds["large"], holds["sparse"], holds["low rank"], holds["diagonal"], known)


def collapsing(readings: Readings, limits: Limits, random_rank: F64) -> Truth:
    """Return which heads (rows,) count towards a run's verdict: those concentrated and large.

    Under QK-norm the bare spectrum does not make the logits, and a head counts that is large with a sparse map.
    """
    found = conditions(readings, limits, random_rank)
    by_gains = np.isfinite(readings.metric("logit_bound"))
    return np.where(by_gains, found.large & found.sparse, found.concentrated & found.large)


def frozen(readings: Readings, limits: Limits, random_rank: F64) -> Truth:
    """Return which of the ``collapsing`` heads (rows,) have κ at ``limits.certain`` or above and no open map measured.

    A run is lost by these alone. ViTs trained well with warmup keep many heads at κ between the two limits, and their
    maps are sparse indeed; GPTs that lost their run had two thirds of their heads or more beyond the upper one. Under
    QK-norm size alone proves no loss, as Theorem 1 wants concentration, too: such a head counts by a real map only.
    """
    found = conditions(readings, limits, random_rank)
    ran, by_gains = _ran(readings), np.isfinite(readings.metric("logit_bound"))
    sure = (readings.metric("freezing_ratio") >= limits.certain) & np.where(ran, found.sparse, ~by_gains)
    return np.asarray(collapsing(readings, limits, random_rank) & sure)


def classify(readings: Readings, limits: Limits, applicable: Truth, random_rank: F64) -> NDArray[np.object_]:
    """Return the Verdict of every row.

    A head is healthy only if every quantity was measured and no condition holds; otherwise it is unjudged. Under
    QK-norm the logits do not follow W_q'W_k: such a head is judged by the logits that the norm's gains allow and by its
    map, and concentration of the bare spectrum counts for nothing.

    Args:
        readings: the table.
        limits: thresholds.
        applicable: (rows,) False where Theorem 1 does not apply (linear attention, QK-norm).
        random_rank: (rows,) median effective rank of random weights of the head's shape.

    Returns:
        (rows,) Verdict objects.
    """
    found = conditions(readings, limits, random_rank)
    concentrated = found.concentrated & applicable
    by_gains = ~applicable & np.isfinite(readings.metric("logit_bound"))
    softmax = applicable | by_gains
    sigma1 = readings.metric("sigma1")

    verdict = np.full(len(readings), Verdict.UNJUDGED, dtype=object)
    verdict[found.known] = Verdict.HEALTHY
    verdict[concentrated & found.known] = Verdict.CONCENTRATED
    verdict[found.large & found.known] = Verdict.LARGE
    verdict[found.sparse & (found.large | _ran(readings))] = Verdict.SHARP  # a real map that is sparse is not healthy
    verdict[concentrated & found.large & found.sparse & found.low_rank] = Verdict.MALIGNANT
    verdict[found.sparse & found.diagonal & ~(found.low_rank & concentrated)] = Verdict.BENIGN
    verdict[~softmax] = Verdict.NOT_APPLICABLE
    verdict[sigma1 == 0] = Verdict.DEAD
    verdict[~np.isfinite(sigma1)] = Verdict.BROKEN
    return verdict


def confidence(readings: Readings, limits: Limits, verdicts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return how sure each row's malignant verdict is, "" for other verdicts.

    MEASURED: it rests on a map of the running model. By weights alone, CERTAIN: κ is at its limit ``certain`` or above.
    On small GPT and ViT runs that no limit was chosen on, 342 of 433 such heads had collapsed maps (entropy below 0.3
    ln T), 86 were on the way and 5 were open (above 0.5). SUSPECT: the rest; 62, 103 and 38 of 203.
    """
    sure = readings.metric("freezing_ratio") >= limits.certain
    words = np.where(_ran(readings), MEASURED, np.where(sure, CERTAIN, SUSPECT)).astype(object)
    words[np.array([verdict is not Verdict.MALIGNANT for verdict in verdicts], dtype=bool)] = ""
    return np.asarray(words)


def evidence(readings: Readings, limits: Limits, row: int, random_rank: float) -> tuple[Condition, ...]:
    """Return every condition behind one row's verdict, with its value and its limit."""
    one = readings.where(np.arange(len(readings)) == row)
    return tuple(
        Condition(
            test.name,
            test.metric,
            float(test.values[0]) if test.known()[0] else None,
            test.sign,
            float(test.limits[0]),
            bool(test.holds()[0]) if test.known()[0] else None,
            float(test.errors[0]) if test.errors is not None and np.isfinite(test.errors[0]) else None,
        )
        for test in _tests(one, limits, np.array([random_rank]))
    )


def _tests(readings: Readings, limits: Limits, random_rank: F64) -> list[_Test]:
    rows = len(readings)

    def at(limit: float) -> F64:
        return np.full(rows, float(limit))

    rank = np.minimum(limits.effective_rank, np.maximum(random_rank / 2, 1.0))
    entropy, kinds = map_index(readings, "entropy")
    map_rank, _ = map_index(readings, "rank")
    diagonal, _ = map_index(readings, "diagonal")
    kind = KINDS[int(kinds[0])] if rows and (kinds == kinds[0]).all() else KINDS[0]
    sparse = np.array(limits.sparse)[kinds]
    # The real entropy of QK-norm heads lay 0.06 above to 0.17 below the predicted (r 0.64-0.93), of others 0.5 below
    predicted = (kinds == 0) & np.isfinite(readings.metric("logit_bound"))
    sparse = np.where(predicted, np.minimum(sparse, limits.random_entropy), sparse)
    errors = np.where(kinds == 0, readings.metric("predicted_entropy_error"), np.nan)
    tests = [
        _Test("concentrated", "effective_rank", "<=", readings.metric("effective_rank"), rank),
        _Test("large", "freezing_ratio", ">=", readings.metric("freezing_ratio"), at(limits.freezing)),
        _Test("sparse", f"{kind}_entropy", "<=", entropy, sparse, errors),
        _Test("low rank", f"{kind}_rank", "<=", map_rank, at(limits.map_rank)),
        _Test("diagonal", f"{kind}_diagonal", ">=", diagonal, at(limits.diagonal)),
    ]
    if limits.sec is not None:
        tests.insert(1, _Test(BY_SEC, "sec_star", ">=", readings.metric("sec_star"), at(limits.sec)))
    return tests


def _ran(readings: Readings) -> Truth:
    """Return which rows (rows,) rest on a map of the running model."""
    return np.asarray(map_index(readings, "entropy")[1] >= KINDS.index("random"))


def map_index(readings: Readings, index: str) -> tuple[F64, NDArray[np.int64]]:
    """Return an index of each row's map, of the best kind that there is, and the kind's place in KINDS."""
    values = readings.metric(f"{KINDS[0]}_{index}").copy()
    kinds = np.zeros(len(readings), dtype=np.int64)
    for place, kind in enumerate(KINDS[1:], start=1):
        better = readings.metric(f"{kind}_{index}")
        known = np.isfinite(better)
        values[known], kinds[known] = better[known], place
    return values, kinds
