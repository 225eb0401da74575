"""Heads over steps: how fast σ_1 grows, when a head turned, and what that says of the run."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qkspec.readings import NO_STEP, Readings

F64 = NDArray[np.float64]
Truth = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

SURGE = 0.1  # growth of ln σ_1 a step: 0.2-0.7 in runs that were lost, below 0.1 in nearly all sound ones
STATES = ("sound", "unjudged", "warned", "lost", "broken")  # verdicts of a run, each graver than the one before
LOST = 0.5  # share of heads that are concentrated and frozen
WARNED = 0.25  # share of heads that are concentrated and large
ALARM = 0.05  # share of heads that are malignant: of heads with open maps, weights alone called 0.1 to 3 % so, and a
# large model has hundreds of heads


def growth(steps: NDArray[np.int64], sigma1: F64) -> F64:
    """Return the growth of ln σ_1 a step between consecutive checkpoints, the quantity that Rule 1 bounds by ln(1 + τ).

    Args:
        steps: (n,) increasing.
        sigma1: (n, heads).

    Returns:
        (n - 1, heads); NaN where a value is missing or not positive, or the steps do not increase.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sigma1)
        gap = np.diff(steps).astype(np.float64)
        rate = np.diff(logs, axis=0) / np.where(gap > 0, gap, np.nan)[:, None]
    return np.where(np.isfinite(rate), rate, np.nan)


def first(steps: NDArray[np.int64], condition: Truth) -> F64:
    """Return the first step at which each head's condition holds, (heads,); NaN where it never does.

    Args:
        steps: (n,).
        condition: (n, heads).
    """
    if not len(steps):
        return np.full(condition.shape[1], math.nan)
    return np.where(condition.any(axis=0), steps[condition.argmax(axis=0)].astype(np.float64), np.nan)


def settled(steps: NDArray[np.int64], condition: Truth) -> F64:
    """Return the step from which each head's condition holds to the end, (heads,); NaN where it does not hold there."""
    held = np.logical_and.accumulate(condition[::-1], axis=0)[::-1]
    return first(steps, held)


@dataclass(frozen=True)
class HeadTable:
    """The rows of one run as (checkpoints, heads), for trajectories.

    Args:
        checkpoints: names in step order.
        steps: (checkpoints,) the step, or the checkpoint's number where steps are not known.
        heads: (module, head) of each column.
        row, column: (rows,) where each row of the readings stands.
    """

    checkpoints: tuple[str, ...]
    steps: NDArray[np.int64]
    heads: tuple[tuple[str, int], ...]
    row: NDArray[np.int64]
    column: NDArray[np.int64]

    @classmethod
    def of(cls, readings: Readings) -> "HeadTable":
        """Index the rows of one run."""
        checkpoints = {name: i for i, name in enumerate(dict.fromkeys(readings["checkpoint"].tolist()))}
        pairs = list(zip(readings["module"].tolist(), readings["head"].tolist(), strict=True))
        heads = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        row = np.array([checkpoints[name] for name in readings["checkpoint"].tolist()], dtype=np.int64)
        steps = np.arange(len(checkpoints), dtype=np.int64)
        known = readings["step"] != NO_STEP
        if known.all():
            steps[row] = readings["step"]
        column = np.array([heads[pair] for pair in pairs], dtype=np.int64)
        return cls(tuple(checkpoints), steps, tuple(heads), row, column)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the heads that any module has, ascending."""
        return sorted({head for _, head in self.heads})

    def spread(self, values: NDArray[Scalar], *, fill: float = math.nan) -> NDArray[Scalar]:
        """Lay a column out as (checkpoints, heads); ``fill`` stands where a checkpoint lacks a head."""
        out = np.full((len(self.checkpoints), len(self.heads)), fill, dtype=values.dtype)
        out[self.row, self.column] = values
        return out


@dataclass(frozen=True)
class RunState:
    """What a run's heads say together, at its last checkpoint and on the way.

    Args:
        verdict: "broken" (NaN or Inf weights), "lost", "warned", "sound", or "unjudged" when nothing could be judged,
            a model of zeros too.
        share: of the judged heads that are concentrated and large at the last checkpoint.
        malignant: heads that are malignant at the last checkpoint.
        turned: the step at which the first head turned malignant, or None.
        surge: the first step by which the median head's ln σ_1 had grown by SURGE a step, or None.
        crossed: the first step at which a share WARNED of the judged heads was concentrated and large, or None.
        growth: the largest growth of the median head's ln σ_1 a step between two checkpoints; NaN if there is none.
        frozen: of the judged heads, the share that is concentrated and frozen at the last checkpoint.
        judged: heads that could be judged at the last checkpoint.
        dead: heads whose W_qᵀW_k is zero at the last checkpoint.
    """

    verdict: str
    share: float
    malignant: int
    turned: int | None
    surge: int | None
    crossed: int | None = None
    growth: float = math.nan
    frozen: float = math.nan
    judged: int = 0
    dead: int = 0


def run_state(
    steps: NDArray[np.int64], sigma1: F64, *,
    malignant: Truth, both: Truth, frozen: Truth, judged: Truth, broken: Truth, dead: Truth,
) -> RunState:  # fmt: skip
    """Judge a run by its heads: shares of them, never their mean.

    Args:
        steps: (n,) increasing.
        sigma1: (n, heads).
        malignant: (n, heads) verdicts.
        broken: (n, heads) verdicts.
        both: (n, heads) concentrated and large.
        frozen: (n, heads) those of them that are frozen, see ``theorem.frozen``.
        judged: (n, heads) verdict other than unjudged, broken, dead or not applicable.
        dead: (n, heads) verdicts.
    """
    last = judged[-1]
    share = float(both[-1][last].mean()) if last.any() else math.nan
    lost = float(frozen[-1][last].mean()) if last.any() else math.nan
    bad = int(malignant[-1].sum())
    if broken[-1].any():
        verdict = "broken"
    elif np.isnan(share):
        verdict = "unjudged"
    elif lost >= LOST:
        verdict = "lost"
    elif share >= WARNED or (bad and bad >= ALARM * last.sum()) or dead[-1].sum() >= WARNED * (last | dead[-1]).sum():
        verdict = "warned"
    else:
        verdict = "sound"
    shares = np.where(judged, both, 0).sum(axis=1) / np.maximum(judged.sum(axis=1), 1)
    rates = _median_growth(steps, sigma1)
    return RunState(
        verdict,
        share,
        bad,
        _least(first(steps, malignant)),
        _least(first(steps[1:], (rates >= SURGE)[:, None])),
        _least(first(steps, (shares >= WARNED)[:, None])),
        float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan,
        lost,
        int(last.sum()),
        int(dead[-1].sum()),
    )


def _median_growth(steps: NDArray[np.int64], sigma1: F64) -> F64:
    """Return the median over heads of the growth between consecutive checkpoints, (n - 1,); NaN where no head tells."""
    rates = growth(steps, sigma1)
    known = [row[np.isfinite(row)] for row in rates]
    return np.array([np.median(row) if row.size else math.nan for row in known], dtype=np.float64)


def _least(values: F64) -> int | None:
    known = values[np.isfinite(values)]
    return int(known.min()) if known.size else None
