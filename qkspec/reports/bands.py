"""The bands of a baseline as a picture shows them: over the baseline's own steps, of one layer or around them all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec.baseline import SIZES, Bands, Place

F64 = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    """One band.

    Args:
        steps: (n,) of the baseline; empty where they are not known, and then the band is one for every step.
        low, high: (n,) or (1,) what the baseline's heads showed, NaN where it has nothing.
        limit: likewise, where a head of another run leaves the band: the margin beyond its grave side.
        above: whether that side is the upper one.
    """

    steps: Steps
    low: F64
    high: F64
    limit: F64
    above: bool

    def flat(self) -> "Band":
        """Return the band around all its steps, for a run whose steps are not known."""
        widest = np.fmax if self.above else np.fmin
        low, high, limit = np.fmin.reduce(self.low), np.fmax.reduce(self.high), widest.reduce(self.limit)
        return Band(self.steps[:0], np.array([low]), np.array([high]), np.array([limit]), self.above)

    def over(self, first: int, last: int) -> "Band":
        """Return the band from the step ``first`` to ``last``, its ends drawn out to where it has none of its own."""
        if not len(self.steps):
            low, high, limit = np.repeat(self.low, 2), np.repeat(self.high, 2), np.repeat(self.limit, 2)
            return Band(np.array([first, last]), low, high, limit, self.above)
        kept = [i for i, step in enumerate(self.steps.tolist()) if first < step < last]
        before = max(int(np.searchsorted(self.steps, first, side="right")) - 1, 0)
        after = min(int(np.searchsorted(self.steps, last, side="left")), len(self.steps) - 1)
        places = [before, *kept, after]
        steps = np.array([first, *self.steps[kept].tolist(), last], dtype=np.int64)
        return Band(steps, self.low[places], self.high[places], self.limit[places], self.above)


def band_of(bands: Bands, metric: str, place: Place) -> Band | None:
    """Return the band of one layer; None where the baseline has none of that metric or layer."""
    low, high = (side.get(metric, {}).get(place) for side in (bands.low, bands.high))
    if low is None or high is None or not np.isfinite(high).any():
        return None
    above = metric in SIZES
    limit = high * bands.margin if above else low - bands.margin / 10
    return Band(bands.steps, low, high, limit, above)


def around(bands: Bands, metric: str) -> Band | None:
    """Return the band around those of all layers."""
    found = [band for place in bands.high.get(metric, {}) if (band := band_of(bands, metric, place)) is not None]
    if not found:
        return None
    low, high, limit = (np.stack([getattr(band, side) for band in found]) for side in ("low", "high", "limit"))
    above = found[0].above
    outer = np.fmax if above else np.fmin
    return Band(bands.steps, np.fmin.reduce(low), np.fmax.reduce(high), outer.reduce(limit), above)
