import numpy as np
import pytest
from build import random_layer, table

from qkspec.baseline import Bands
from qkspec.metrics import names
from qkspec.readings import NO_STEP, Readings, concatenate


def run(steps, sigma1, *, heads=3, layers=(0, 1), entropy=0.9):
    """A run whose σ1 is sigma1[layer][step number] * (1, 2, ... heads)."""
    parts = []
    for i, step in enumerate(steps):
        for layer in layers:
            one = table(random_layer(heads=heads, layer=layer, name=f"h.{layer}"), checkpoint=f"s{step}", step=step)
            values = {
                "sigma1": sigma1[layer][i] * np.arange(1, heads + 1),
                "predicted_entropy": np.full(heads, entropy),
            }
            parts.append(Readings({**one.columns, **values}))
    return concatenate(parts, names())


BASE = {0: [1.0, 2.0, 4.0], 1: [10.0, 10.0, 10.0]}


def test_bands_are_the_extremes_of_few_heads():
    bands = Bands.of(run([0, 10, 100], BASE), "base")
    np.testing.assert_array_equal(bands.steps, [0, 10, 100])
    np.testing.assert_allclose(bands.high["sigma1"]["self", 0], [3, 6, 12])
    np.testing.assert_allclose(bands.low["sigma1"]["self", 1], [10, 10, 10])


def test_bands_are_quantiles_of_many_heads():
    readings = run([0], {0: [1.0]}, heads=40, layers=(0,))
    bands = Bands.of(readings, "base")
    assert bands.high["sigma1"]["self", 0][0] == pytest.approx(np.quantile(np.arange(1, 41), 0.95))


@pytest.mark.parametrize(
    ("step", "limit"), [(0, 2 * 3), (10, 2 * 6), (5, 2 * 6), (50, 2 * 12), (100, 2 * 12), (5000, 2 * 12)]
)
def test_between_two_steps_the_wider_bound_holds(step, limit):
    bands = Bands.of(run([0, 10, 100], BASE), "base")
    other = run([step], {0: [1.0], 1: [1.0]})
    found = bands.limits(other, "sigma1")
    np.testing.assert_allclose(found[other["layer"] == 0], limit)
    np.testing.assert_allclose(found[other["layer"] == 1], 60)


def test_shares_are_compared_by_difference():
    bands = Bands.of(run([0], BASE, entropy=0.9), "base", margin=3)
    np.testing.assert_allclose(bands.limits(run([0], BASE), "predicted_entropy"), 0.6)


def test_without_steps_the_widest_of_all_holds():
    bands = Bands.of(run([NO_STEP], BASE), "base")
    assert len(bands.steps) == 0
    np.testing.assert_allclose(bands.limits(run([7], BASE, layers=(0,)), "sigma1"), 6)
    known = Bands.of(run([0, 10, 100], BASE), "base")
    np.testing.assert_allclose(known.limits(run([NO_STEP], BASE, layers=(0,)), "sigma1"), 24)


def test_what_lies_outside():
    bands = Bands.of(run([0], BASE), "base")
    assert not bands.outside(run([0], BASE)).any()
    outside = bands.outside(run([0], {0: [2.1], 1: [10.0]}))
    np.testing.assert_array_equal(outside, [False, False, True, False, False, False])
    assert bands.outside(run([0], BASE, entropy=0.6)).all()
    assert not bands.outside(run([0], BASE, layers=(0,), entropy=np.nan)).any()


def test_unknown_layers_have_no_limit():
    bands = Bands.of(run([0], BASE, layers=(0,)), "base")
    assert np.isnan(bands.limits(run([0], BASE, layers=(1,)), "sigma1")).all()
