"""The bands of a baseline as a picture shows them: over the baseline's own steps, of one layer or around them all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec.baseline import SHARES, SIZES, Bands, Place

F64 = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    """One band.

    Args:
        steps: (n,) of the baseline; empty where they are not known, and then the band is one for every step.
        low, high: (n,) or (1,) what the baseline's heads showed, NaN where it has nothing.
        limit: likewise, where a head of another run leaves the band: the margin beyond its grave side.
    """

    steps: Steps
    low: F64
    high: F64
    limit: F64

    def over(self, first: int, last: int) -> "Band":
        """Return the band from the step ``first`` to ``last``, its ends drawn out to where it has none of its own."""
        if not len(self.steps):
            return Band(np.array([first, last]), *(np.repeat(x, 2) for x in (self.low, self.high, self.limit)))
        kept = [i for i, step in enumerate(self.steps.tolist()) if first < step < last]
        before = max(int(np.searchsorted(self.steps, first, side="right")) - 1, 0)
        after = min(int(np.searchsorted(self.steps, last, side="left")), len(self.steps) - 1)
        places = [before, *kept, after]
        steps = np.array([first, *self.steps[kept].tolist(), last], dtype=np.int64)
        return Band(steps, self.low[places], self.high[places], self.limit[places])


def band_of(bands: Bands, metric: str, place: Place) -> Band | None:
    """Return the band of one layer; None where the baseline has none of that metric or layer."""
    low, high = (side.get(metric, {}).get(place) for side in (bands.low, bands.high))
    if low is None or high is None or not np.isfinite(high).any():
        return None
    limit = high * bands.margin if metric in SIZES else low - bands.margin / 10
    return Band(bands.steps, low, high, limit)


def around(bands: Bands, metric: str) -> Band | None:
    """Return the band around those of all layers."""
    found = [band for place in bands.high.get(metric, {}) if (band := band_of(bands, metric, place)) is not None]
    if not found:
        return None
    low, high = (np.stack([getattr(band, side) for band in found]) for side in ("low", "high"))
    limits = np.stack([band.limit for band in found])
    outer = np.fmin if metric in SHARES else np.fmax
    return Band(bands.steps, np.fmin.reduce(low), np.fmax.reduce(high), outer.reduce(limits))
