"""Bands of a baseline as drawn: those of the readings, over the steps that are shown."""

from collections.abc import Callable

import numpy as np
import pytest

from qkspec.analysis import Report
from qkspec.baseline import Bands
from qkspec.reports.bands import around, band_of


def test_a_layers_band_is_its_heads_and_its_limit_is_the_gates(make_report: Callable[..., Report]) -> None:
    readings = make_report(("base", (0.0, 0.5)), steps=(0, 10)).readings
    bands = Bands.of(readings, "base", margin=3.0)
    for metric, layer in (("sigma1", 1), ("predicted_entropy", 2)):
        band = band_of(bands, metric, ("self", layer))
        assert band is not None
        for i, step in enumerate((0, 10)):
            mask = (readings["layer"] == layer) & (readings["step"] == step)
            values = readings.metric(metric)[mask]
            assert (band.low[i], band.high[i]) == (values.min(), values.max())
            gate = bands.limits(readings.where(mask), metric)
            assert gate == pytest.approx(np.full(4, band.limit[i]))
    assert band_of(bands, "sigma1", ("self", 9)) is None
    assert band_of(bands, "trace", ("self", 1)) is None


def test_all_layers_together_reach_from_the_lowest_to_the_highest(make_report: Callable[..., Report]) -> None:
    readings = make_report(("base", (0.5,)), steps=(0,)).readings
    bands = Bands.of(readings, "base")
    for metric, worst in (("sigma1", max), ("predicted_entropy", min)):
        whole = around(bands, metric)
        parts = [band_of(bands, metric, ("self", layer)) for layer in range(3)]
        assert whole is not None
        values = readings.metric(metric)
        assert (whole.low[0], whole.high[0]) == (values.min(), values.max())
        assert whole.limit[0] == worst(part.limit[0] for part in parts if part is not None)
    assert around(bands, "trace") is None


@pytest.mark.parametrize(
    ("first", "last", "steps", "high"),
    [
        (0, 50, [0, 10, 20, 50], [1, 2, 3, 3]),  # after its last step the last holds
        (12, 15, [12, 15], [2, 3]),  # between two steps nothing is left out
        (30, 40, [30, 40], [3, 3]),
        (0, 0, [0, 0], [1, 1]),
        (5, 20, [5, 10, 20], [1, 2, 3]),
    ],
)
def test_a_band_is_drawn_out_to_the_steps_shown(first: int, last: int, steps: list[int], high: list[int]) -> None:
    place = {("self", 0): np.array([1.0, 2.0, 3.0])}
    bands = Bands("b", np.array([0, 10, 20]), {"sigma1": place}, {"sigma1": place})
    band = band_of(bands, "sigma1", ("self", 0))
    assert band is not None
    shown = band.over(first, last)
    assert shown.steps.tolist() == steps
    assert shown.high.tolist() == high
    flat = {("self", 0): np.array([4.0])}
    stepless = band_of(Bands("b", np.empty(0, np.int64), {"sigma1": flat}, {"sigma1": flat}), "sigma1", ("self", 0))
    assert stepless is not None
    assert stepless.over(first, last).high.tolist() == [4, 4]
