"""A training loss over steps: when it rose for good, or parted from that of another run."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec.trajectory import settled

F64 = NDArray[np.float64]
Steps = NDArray[np.int64]

NOISE = 4.0  # a change counts from this many standard errors of the smoothed curve ...
ROSE, PARTED = 0.05, 0.02  # ... and this share of the loss
WINDOWS = 50  # a curve is smoothed over a fiftieth of its points


@dataclass(frozen=True)
class Curve:
    """A loss curve.

    Args:
        steps: (n,) increasing.
        values: (n,) loss; NaN or Inf where the trainer recorded that.
        source: the file that it was read from.
    """

    steps: Steps
    values: F64
    source: str = ""


@dataclass(frozen=True)
class Trouble:
    """The step at which a loss went wrong for good.

    Args:
        step: from which it holds to the end.
        kind: "not finite", "rose" (above its own best) or "parted" (from a better run's loss).
        value: median of the smoothed difference from there on; NaN for "not finite".
        limit: the difference that counts.
        reference: the other run's name, for "parted".
    """

    step: int
    kind: str
    value: float
    limit: float
    reference: str = ""


def broke(curve: Curve) -> Trouble | None:
    """Return the first step whose loss is not finite."""
    bad = ~np.isfinite(curve.values)
    return Trouble(int(curve.steps[bad.argmax()]), "not finite", math.nan, math.inf) if bad.any() else None


def rose(curve: Curve) -> Trouble | None:
    """Return when the loss rose above its own best and stayed there to the end.

    A run that is lost from the start never rises: it fails to fall, which only another run's loss shows (``parted``).
    """
    if not np.isfinite(curve.values).all():
        return None
    smooth, error = _smoothed(curve.values)
    if len(smooth) < 2 or not np.isfinite(smooth).all():
        return None
    limit = max(ROSE * float(np.median(np.abs(smooth))), NOISE * error)
    above = smooth - np.minimum.accumulate(smooth)
    return _since(curve.steps, above, limit, "rose", "")


def parted(curve: Curve, reference: Curve, name: str) -> Trouble | None:
    """Return when the loss parted upwards from a reference's for good, over the steps that both recorded."""
    steps, at, other = np.intersect1d(curve.steps, reference.steps, return_indices=True)
    ours, theirs = curve.values[at], reference.values[other]
    finite = np.isfinite(ours) & np.isfinite(theirs)
    with np.errstate(over="ignore"):
        smooth, error = _smoothed(ours[finite] - theirs[finite])
    if len(smooth) < 2 or not np.isfinite(smooth).all():
        return None
    limit = max(PARTED * float(np.median(np.abs(theirs[finite]))), NOISE * error)
    return _since(steps[finite], smooth, limit, "parted", name)


def trouble(curve: Curve, reference: Curve | None = None, name: str = "") -> Trouble | None:
    """Return the earliest of what went wrong with a loss, or None.

    Args:
        curve: the run's.
        reference: a better run's.
        name: of that run.
    """
    found = [broke(curve), rose(curve), parted(curve, reference, name) if reference is not None else None]
    return min((t for t in found if t is not None), key=lambda t: t.step, default=None)


@np.errstate(over="ignore", invalid="ignore")
def final(curve: Curve) -> float:
    """Return the mean of the last tenth of a curve, NaN if a value in it is."""
    return float(curve.values[-max(len(curve.values) // 10, 1) :].mean()) if len(curve.values) else math.nan


def _since(steps: Steps, above: F64, limit: float, kind: str, reference: str) -> Trouble | None:
    step = settled(steps, (above >= limit)[:, None])[0]
    if not np.isfinite(step):
        return None
    return Trouble(int(step), kind, float(np.median(above[steps >= step])), limit, reference)


@np.errstate(over="ignore", invalid="ignore")
def _smoothed(values: F64) -> tuple[F64, float]:
    """Return the centred running mean over a fiftieth of the points, and its standard error by their scatter.

    Neither is finite where the sum of the values is not.
    """
    n = len(values)
    half = n // WINDOWS // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(n) - half, 0)
    high = np.minimum(np.arange(n) + half + 1, n)
    smooth = (total[high] - total[low]) / (high - low)
    scatter = 1.4826 * float(np.median(np.abs(values - smooth))) if half else 0.0
    return smooth, scatter / math.sqrt(2 * half + 1)
