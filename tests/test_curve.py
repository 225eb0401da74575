import math

import numpy as np
import pytest

from qkspec.curve import Curve, broke, final, parted, rose, trouble

STEPS = np.arange(1, 601)


def loss(*, rise_at=None, height=0.5, floor=2.0, seed=0):
    rng = np.random.default_rng(seed)
    values = floor + 3 * np.exp(-STEPS / 80) + 0.1 * rng.standard_normal(len(STEPS))
    if rise_at is not None:
        values[rise_at - 1 :] += height
    return Curve(STEPS, values)


def test_a_falling_loss_is_no_trouble():
    assert trouble(loss()) is None


@pytest.mark.parametrize("at", [200, 400, 550])
def test_a_rise_for_good_is_found_where_it_began(at):
    found = rose(loss(rise_at=at))
    assert found.kind == "rose"
    assert abs(found.step - at) <= 12
    assert 0.25 < found.value < 0.6  # the loss goes on falling from its higher place


def test_a_spike_that_heals_is_no_trouble():
    curve = loss()
    curve.values[300:320] += 3
    assert trouble(curve) is None


def test_a_loss_that_is_not_finite_is_trouble_at_once():
    curve = loss()
    curve.values[99:] = np.nan
    assert broke(curve).step == 100
    assert trouble(curve, loss(), "other").kind == "not finite"


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_loss_is_trouble_of_its_own_step_alone(value):
    curve, other = loss(), loss()
    curve.values[[99, 105]] = value, -value
    other.values[99] = value
    assert trouble(curve, other, "other") == broke(curve)
    assert (broke(curve).step, rose(curve), parted(curve, other, "other")) == (100, None, None)
    curve.values[-2:] = value, -value
    assert math.isnan(final(curve))


def test_a_loss_whose_sum_is_too_large_for_a_float_says_nothing():
    curve = Curve(STEPS, np.full(600, 1e308))
    assert rose(curve) is None
    assert parted(curve, Curve(STEPS, -curve.values), "other") is None


def test_parting_from_a_better_run():
    """Both see the same batches, so their noise is shared and a small difference counts."""
    better, worse = loss(), loss()
    worse.values[69:] += np.linspace(0, 1, 531)
    found = parted(worse, better, "better")
    assert found.reference == "better"
    assert 70 < found.step < 120
    naive = [
        s
        for s in STEPS
        if (np.convolve(worse.values - better.values, np.ones(13) / 13, "same")[s - 1 : -6] > found.limit).all()
    ]
    assert abs(found.step - naive[0]) <= 1
    assert parted(better, worse, "worse") is None


def test_parting_needs_more_than_the_noise_of_two_seeds():
    assert parted(loss(seed=1), loss(seed=2), "x") is None
    assert parted(loss(seed=1, floor=2.4), loss(seed=2), "x").step < 10


def test_runs_that_recorded_no_step_in_common_cannot_part():
    assert parted(loss(), Curve(STEPS + 1000, loss().values), "x") is None


def test_the_end_of_a_curve():
    assert final(Curve(np.arange(10), np.arange(10.0))) == 9
    assert math.isnan(final(Curve(np.arange(0), np.zeros(0))))
    assert trouble(Curve(np.arange(1), np.ones(1))) is None
