"""The course of each head over a run: surging, stagnant, when each condition was crossed, onset, and a forecast.

Pure functions on (checkpoints, heads) arrays; checkpoints may be spaced unevenly, as log-spaced sequences are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qkspec.trajectory import SURGE, Truth, first, growth, settled

F64 = NDArray[np.float64]
Steps = NDArray[np.int64]

GROWTH = "growth of ln sigma1 a step"
STILL = 0.01  # a spectrum is still while its effective rank stays within this share of its last value
STILL_SHARE = 1 / 3  # of the run's steps, for which it must have been still
FORECAST_POINTS = 8  # newest checkpoints that a forecast is fitted to
LEAST_POINTS = 4
LEAST_ONSET = 6  # checkpoints up to the end of the fast growth, to see a change in it
CONFIDENCE = 0.9  # of the forecast's interval, two-sided
REACH = 0.5  # a forecast looks ahead by at most this share of the steps that it was fitted to ...
FRESH = 0.5  # ... and only while the newest interval keeps at least this share of the fitted growth


@dataclass(frozen=True)
class Onset:
    """Where the growth of a metric's logarithm changed: one break in a line of two pieces, against a straight line.

    Args:
        step: (heads,) of the break; NaN where a straight line does as well, or the second piece is not steeper.
        before, after: (heads,) growth of the logarithm a step on either side.
        gain: (heads,) how much the break lowers the Bayesian information criterion; above 0 it is worth its two
            parameters, above 10 it is strong.
    """

    step: F64
    before: F64
    after: F64
    gain: F64


@dataclass(frozen=True)
class Forecast:
    """When a metric will reach its limit if the trend of the newest checkpoints goes on.

    Args:
        step: (heads,) the step at which the fitted exponential reaches the limit; NaN where there is no rising trend,
            it has ended, the limit lies too far ahead, or is crossed already.
        low, high: (heads,) 90 % interval from the fit's own scatter alone, so rather too narrow; high is infinite where
            the trend may be flat.
        rate: (heads,) growth of the metric's logarithm a step.
        points: checkpoints fitted.
    """

    step: F64
    low: F64
    high: F64
    rate: F64
    points: int


@dataclass(frozen=True)
class Courses:
    """What the heads of one run did over its checkpoints. Every array is (heads,); steps are NaN for never.

    Args:
        surge: first step by which a head surged (see ``surging``).
        surge_rate: its growth of ln σ_1 a step over that interval.
        stagnant: the step from which its spectrum has been still to the end (see ``stagnation``).
        crossed: condition to the first step at which it held.
        held: condition to the step from which it holds to the end.
        onset: change point of ln σ_1.
        onset_freezing: change point of ln κ, which the norm's gains drive, too.
        forecast: of κ reaching its limit.
        limits: the numbers behind the flags.
    """

    surge: F64
    surge_rate: F64
    stagnant: F64
    crossed: Mapping[str, F64]
    held: Mapping[str, F64]
    onset: Onset
    onset_freezing: Onset
    forecast: Forecast
    limits: Mapping[str, float] = field(default_factory=dict)

    def flags(self, head: int) -> tuple["Flag", ...]:
        """Return what is to be said of one head, in the order of steps."""
        found = [
            Flag("surging", self.surge[head], GROWTH, self.surge_rate[head], SURGE),
            Flag("stagnant", self.stagnant[head], "change of effective_rank", STILL, STILL),
        ]  # fmt: skip
        found += [
            Flag(name, change.step[head], quantity, change.after[head], change.before[head])
            for name, change, quantity in (
                ("onset", self.onset, GROWTH),
                ("onset of κ", self.onset_freezing, "growth of ln freezing_ratio a step"),
            )
        ]
        found += [
            Flag(f"crossing: {name}", steps[head], name, math.nan, self.limits.get(name, math.nan))
            for name, steps in self.crossed.items()
        ]
        return tuple(sorted((flag for flag in found if np.isfinite(flag.step)), key=lambda flag: flag.step))


@dataclass(frozen=True)
class Flag:
    """One thing that happened to a head: what, at which step, by which quantity, its value and the limit (or NaN)."""

    name: str
    step: float
    quantity: str
    value: float
    limit: float


def surging(steps: Steps, sigma1: F64) -> tuple[F64, F64]:
    """Return the first step by which each head surged, and its growth of ln σ_1 a step over that interval.

    A head surges where ln σ_1 grows by SURGE a step: 0.2 to 0.7 in the first steps of runs that were lost. Over an
    interval of hundreds of steps nothing can, so it takes checkpoints that are close. Later growth is not held against
    the run's own pace: after warmup that of sound runs stands out as much as that of lost ones.

    Args:
        steps: (n,) increasing.
        sigma1: (n, heads).

    Returns:
        (step, rate), each (heads,); NaN where it never does.
    """
    if len(steps) < 2:
        return _never(sigma1), _never(sigma1)
    rates = growth(steps, sigma1)
    with np.errstate(invalid="ignore"):
        when = rates >= SURGE
    rate = np.take_along_axis(rates, when.argmax(axis=0)[None], 0)[0]
    return first(steps[1:], when), np.where(when.any(axis=0), rate, math.nan)


def stagnation(steps: Steps, rank: F64) -> F64:
    """Return the step from which each head's spectrum has kept its shape to the end, (heads,); NaN where it did not.

    A head whose gradient has died is not still: weight decay shrinks it. Its spectrum keeps its shape, so the effective
    rank is what is watched: within STILL of its last value for at least STILL_SHARE of the run and three checkpoints.

    Args:
        steps: (n,) increasing.
        rank: (n, heads) effective rank.
    """
    if len(steps) < 3:
        return _never(rank)
    with np.errstate(invalid="ignore"):
        still = np.abs(rank - rank[-1]) <= STILL * rank[-1]
    since = settled(steps, still)
    long = steps[-1] - since >= max(float(steps[-1] - steps[0]) * STILL_SHARE, 1.0)
    enough = np.sum(steps[:, None] >= since[None, :], axis=0) >= 3
    return np.where(long & enough, since, math.nan)


def onset(steps: Steps, values: F64) -> Onset:
    """Find where the growth of a metric's logarithm, of ln σ_1 or ln κ, changed for the worse.

    Growth ends in a plateau, so only the checkpoints up to the end of the fast growth are looked at: the last interval
    that is half as steep as the steepest one. For every inner checkpoint t of these the hinge
    y = a + b·step + c·max(step - t, 0) is fitted by least squares; the best t counts if it beats the straight line by
    the Bayesian information criterion, c is positive, and the metric grew by half after it.

    Args:
        steps: (n,) increasing.
        values: (n, heads) positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(values)
    usable = np.isfinite(y).all(axis=0)
    found = np.stack([_never(y)] * 4)
    ends = np.where(usable, _end_of_growth(steps, np.where(usable, y, 0.0)), 0)
    for end in set(ends.tolist()):
        if end >= LEAST_ONSET - 1:
            chosen = ends == end
            found[:, chosen] = _bend(steps[: end + 1], y[: end + 1, chosen])
    step, _, after, gain = found
    at = np.array([np.interp(s, steps, y[:, h]) if np.isfinite(s) else math.nan for h, s in enumerate(step)])
    with np.errstate(invalid="ignore"):
        sure = (gain > 0) & (after > 0) & (y.max(axis=0) - at >= math.log(1.5)) if len(steps) else usable
    return Onset(*np.where(sure, found, math.nan))


def _end_of_growth(steps: Steps, y: F64) -> NDArray[np.int64]:
    """Return the index of the checkpoint at which each head's fast growth ends, (heads,); 0 where nothing grows.

    An interval in which y rises by less than a tenth of its range is too short to call steep.
    """
    if len(steps) < 2:
        return np.zeros(y.shape[1], dtype=np.int64)
    rise = np.diff(y, axis=0)
    slope = np.where(rise >= (y.max(axis=0) - y.min(axis=0)) / 10, rise / np.maximum(np.diff(steps), 1)[:, None], 0.0)
    steep = (slope >= slope.max(axis=0) / 2) & (slope > 0)
    last = len(slope) - steep[::-1].argmax(axis=0)
    return np.where(steep.any(axis=0), last, 0)


def _bend(steps: Steps, y: F64) -> F64:
    """Return step, growth before and after, and gain of the best hinge through y (n, heads), as (4, heads)."""
    n, heads = y.shape
    x, scale = _unit(steps), max(float(steps[-1] - steps[0]), 1.0)
    best = np.full(heads, math.inf)
    found = np.stack([_never(y)] * 3)
    for at in range(1, n - 1):
        fit, rest = _residual(np.stack([np.ones(n), x, np.maximum(x - x[at], 0)], axis=1), y)
        better = (rest < best) & (fit[2] > 0)
        best = np.where(better, rest, best)
        growth_here = np.stack([np.full(heads, float(steps[at])), fit[1] / scale, (fit[1] + fit[2]) / scale])
        found = np.where(better, growth_here, found)
    flat = _residual(np.stack([np.ones(n), x], axis=1), y)[1]
    return np.vstack([found, _information(flat, best, n)])


def forecast(steps: Steps, values: F64, limit: float) -> Forecast:
    """Say when a growing metric will reach its limit, from a straight line through the newest logarithms.

    The interval is that of the fitted line (Student's t, the scatter estimated from the same points): it holds if the
    trend goes on, and nothing can promise that. Growth ends in a plateau, so a trend counts only while its newest
    interval keeps FRESH of it, and REACH ahead. Of 51 small runs that these shares were not chosen on, cut at every
    checkpoint, 84 % of the crossings that were due within the run came (51 % without the shares), and the interval held
    58 % of those that could be told (22 %).

    Args:
        steps: (n,) increasing.
        values: (n, heads) positive.
        limit: reached from below.
    """
    points = min(len(steps), FORECAST_POINTS)
    nothing = _never(values)
    if points < LEAST_POINTS or not limit > 0:
        return Forecast(nothing, nothing, nothing, nothing, points)
    x = steps[-points:].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(values[-points:])
    usable = np.isfinite(y).all(axis=0)
    y = np.where(usable, y, 0.0)
    fit, rest = _residual(np.stack([np.ones(points), x - x[-1]], axis=1), y)
    spread = float(np.sum((x - x.mean()) ** 2))
    if spread == 0:  # all at one step
        return Forecast(nothing, nothing, nothing, nothing, points)
    variance = rest / (points - 2)
    slope, target, centre = fit[1], math.log(limit), float(x.mean() - x[-1])
    rising = usable & (slope > np.sqrt(variance / spread)) & (y[-1] < target)
    level = fit[0] + slope * centre  # of the line at the mean of the points, where it is known best
    low, high = _fieller(target - level, np.where(rising, slope, 1.0), variance, points, spread)
    reached = (target - fit[0]) / np.where(rising, slope, 1.0)
    going = rising & (y[-1] - y[-2] >= FRESH * slope * (x[-1] - x[-2])) & (reached <= REACH * (x[-1] - x[0]))
    found = (np.maximum(reached, 0.0), np.maximum(centre + low, 0.0), np.maximum(centre + high, 0.0))
    step, first_, last = (np.where(going, x[-1] + after, math.nan) for after in found)
    return Forecast(step, first_, last, np.where(going, slope, math.nan), points)


def _fieller(rise: F64, slope: F64, variance: F64, points: int, spread: float) -> tuple[F64, F64]:
    """Return Fieller's interval of rise / slope, independent and normal with variances /points and /spread.

    Where the slope may be zero the interval has no upper end, and none at all where the rise may be zero as well.
    """
    t2 = _student(points - 2) ** 2
    a = slope**2 - t2 * variance / spread
    b = -2 * rise * slope
    c = rise**2 - t2 * variance / points
    root = np.sqrt(np.maximum(b**2 - 4 * a * c, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where((a <= 0) & (c <= 0), -math.inf, (-b - root) / (2 * a))
        high = np.where(a > 0, (-b + root) / (2 * a), math.inf)
    return low, high


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def courses(
    steps: Steps, sigma1: F64, rank: F64, freezing: F64, conditions: Mapping[str, Truth], limits: Mapping[str, float]
) -> Courses:
    """Describe the course of every head of one run.

    Args:
        steps: (n,) increasing.
        sigma1: (n, heads) σ_1.
        rank: (n, heads) effective rank.
        freezing: (n, heads) κ.
        conditions: name to (n, heads) whether it held ("large", "concentrated", "malignant", ...).
        limits: condition to its limit, "large" among them, which is what the forecast waits for.
    """
    surge, rate = surging(steps, sigma1)
    return Courses(
        surge,
        rate,
        stagnation(steps, rank),
        {name: first(steps, held) for name, held in conditions.items()},
        {name: settled(steps, held) for name, held in conditions.items()},
        onset(steps, sigma1),
        onset(steps, freezing),
        forecast(steps, freezing, limits["large"]),
        limits,
    )


def _unit(steps: Steps) -> F64:
    span = max(float(steps[-1] - steps[0]), 1.0) if len(steps) else 1.0
    return np.asarray((steps - steps[0]) / span if len(steps) else steps, dtype=np.float64)


def _residual(design: F64, y: F64) -> tuple[F64, F64]:
    """Return coefficients (k, heads) and the residual sum of squares (heads,) of y (n, heads) on design (n, k)."""
    fit = np.linalg.lstsq(design, y, rcond=None)[0]
    rest = np.sum((y - design @ fit) ** 2, axis=0)
    return np.asarray(fit), np.asarray(rest)


def _information(flat: F64, bent: F64, n: int) -> F64:
    """Return how much two more parameters lower the Bayesian information criterion of a fit to n points."""
    floor = 1e-12 * max(n, 1)  # logarithms known to a millionth: below, both fits are perfect
    with np.errstate(divide="ignore", invalid="ignore"):  # a fit that was never made is infinitely bad
        return np.asarray(n * np.log(np.maximum(flat, floor) / np.maximum(bent, floor)) - 2 * math.log(max(n, 1)))


def _never(values: F64) -> F64:
    return np.full(values.shape[1], math.nan)
