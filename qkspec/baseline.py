"""Bands of a healthy run: what each layer's heads showed at each step, which another run's heads are held against."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkspec.errors import UsageError
from qkspec.readings import NO_STEP, Readings

F64 = NDArray[np.float64]
Place = tuple[str, int]  # block, layer

SIZES = ("sigma1", "freezing_ratio")  # large is grave; compared by ratio
SHARES = ("predicted_entropy",)  # small is grave; compared by difference
MARGIN = 2.0  # how far outside its band a head may lie: a factor on sizes, a tenth of it on shares
MANY = 20  # readings from which the band is a quantile band; of fewer, all of them
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class Bands:
    """Quantile bands of a baseline per metric, layer and step.

    Args:
        name: of the baseline, for messages.
        steps: (n,) increasing; empty where the baseline's steps are not known, and then each band has one row.
        low, high: metric to {(block, layer): (n,) bound}, NaN where the baseline has nothing.
        margin: how far outside a value may lie: a factor on sizes, a tenth of it on shares.
    """

    name: str
    steps: NDArray[np.int64]
    low: Mapping[str, Mapping[Place, F64]]
    high: Mapping[str, Mapping[Place, F64]]
    margin: float = MARGIN

    @classmethod
    def of(cls, readings: Readings, name: str, *, margin: float = MARGIN) -> "Bands":
        """Read the bands off the readings of one or several healthy runs.

        Raises:
            UsageError: the margin is no factor.
        """
        if not 1 <= margin < math.inf:
            raise UsageError(f"--margin is {margin!r}: give a factor of at least 1")
        step = readings["step"].astype(np.int64)
        known = bool((step != NO_STEP).all()) and len(readings) > 0
        steps = np.unique(step) if known else np.empty(0, dtype=np.int64)
        moments = [step == at for at in steps] if known else [np.ones(len(readings), dtype=bool)]
        low: dict[str, dict[Place, F64]] = {}
        high: dict[str, dict[Place, F64]] = {}
        for metric in (*SIZES, *SHARES):
            values = readings.metric(metric)
            low[metric], high[metric] = {}, {}
            for place, rows in _places(readings).items():
                pairs = [_band(values[rows & moment]) for moment in moments]
                low[metric][place] = np.array([pair[0] for pair in pairs])
                high[metric][place] = np.array([pair[1] for pair in pairs])
        return cls(name, steps, low, high, margin)

    def plain(self) -> dict[str, Any]:
        """Return the bands as plain values, None for NaN: what ``from_plain`` takes."""
        return {
            "name": self.name,
            "margin": self.margin,
            "steps": self.steps.tolist(),
            "layers": [
                {
                    "block": place[0],
                    "layer": place[1],
                    **{f"low_{metric}": _plain(places[place]) for metric, places in self.low.items()},
                    **{f"high_{metric}": _plain(places[place]) for metric, places in self.high.items()},
                }
                for place in self.low[SIZES[0]]
            ],
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> "Bands":
        """Return the bands that ``plain`` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no such document.
        """
        steps = np.array([int(step) for step in document["steps"]], dtype=np.int64)
        low: dict[str, dict[Place, F64]] = {metric: {} for metric in (*SIZES, *SHARES)}
        high: dict[str, dict[Place, F64]] = {metric: {} for metric in (*SIZES, *SHARES)}
        for entry in document["layers"]:
            place = str(entry["block"]), int(entry["layer"])
            for side, bound in (("low", low), ("high", high)):
                for metric, places in bound.items():
                    values = np.array([math.nan if v is None else float(v) for v in entry[f"{side}_{metric}"]])
                    if len(values) != max(len(steps), 1):
                        raise ValueError(f"{len(values)} bounds for {len(steps)} steps")
                    places[place] = values
        margin = float(document["margin"])
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin {margin}")
        return cls(str(document["name"]), steps, low, high, margin)

    def limits(self, readings: Readings, metric: str) -> F64:
        """Return the limit of each row (rows,) for a metric, margin included; NaN where the baseline says nothing.

        Between two steps of the baseline the wider of their bounds holds; after its last step, the last.
        """
        out = np.full(len(readings), math.nan)
        bounds = self.high[metric] if metric in SIZES else self.low[metric]
        widest = np.fmax if metric in SIZES else np.fmin
        step = readings["step"].astype(np.int64)
        for place, rows in _places(readings).items():
            bound = bounds.get(place)
            if bound is None:
                continue
            if len(self.steps) == 0 or (step[rows] == NO_STEP).any():
                out[rows] = widest.reduce(bound)
                continue
            before = np.clip(np.searchsorted(self.steps, step[rows], side="right") - 1, 0, len(self.steps) - 1)
            after = np.clip(np.searchsorted(self.steps, step[rows], side="left"), 0, len(self.steps) - 1)
            out[rows] = widest(bound[before], bound[after])
        return out * self.margin if metric in SIZES else out - self.margin / 10

    def rules(self, readings: Readings) -> Iterator[tuple[str, str, str, F64, NDArray[np.bool_]]]:
        """Yield (option, metric, sign, limits, in force) of every band, as a gate holds them."""
        everywhere = np.ones(len(readings), dtype=bool)
        for metric in SIZES:
            yield "--baseline", metric, "<=", self.limits(readings, metric), everywhere
        for metric in SHARES:
            yield "--baseline", metric, ">=", self.limits(readings, metric), everywhere

    def outside(self, readings: Readings) -> NDArray[np.bool_]:
        """Return the rows (rows,) that leave at least one band; a value or a bound that is missing leaves none."""
        found = np.zeros(len(readings), dtype=bool)
        for _, metric, sign, limits, _ in self.rules(readings):
            values = readings.metric(metric)
            with np.errstate(invalid="ignore"):
                found |= values < limits if sign == ">=" else values > limits
        return found


def _plain(values: F64) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _places(readings: Readings) -> dict[Place, NDArray[np.bool_]]:
    layers = readings["layer"].astype(np.int64)
    out: dict[Place, NDArray[np.bool_]] = {}
    for block, in_block in readings.groups("block"):
        for layer in np.unique(layers[in_block]):
            out[block, int(layer)] = in_block & (layers == layer)
    return out


def _band(values: F64) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return math.nan, math.nan
    if known.size < MANY:
        return float(known.min()), float(known.max())
    low, high = np.quantile(known, QUANTILES)
    return float(low), float(high)
