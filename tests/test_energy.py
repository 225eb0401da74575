import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qkspec import energy
from qkspec.spectrum import singular_values

spectra_of = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.floats(0, 1e6)).map(
    lambda s: -np.sort(-s, axis=1)
)


@settings(max_examples=100, deadline=None)
@given(spectra_of)
def test_against_naive_sums(sigma):
    for h, row in enumerate(sigma.tolist()):
        total = sum(x * x for x in row)
        assert energy.frobenius(sigma)[h] == pytest.approx(total**0.5)
        if row[0] == 0 or total < 1e-280:
            continue
        shares = [x * x / total for x in row]
        for s in range(1, len(row) + 1):
            assert energy.sec(sigma, s)[h] == pytest.approx(sum(shares[:s]))
        assert energy.stable_rank(sigma)[h] == pytest.approx(total / row[0] ** 2)
        entropy = -sum(p * np.log(p) for p in shares if p > 0)
        assert energy.spectral_effective_rank(sigma)[h] == pytest.approx(np.exp(entropy))


@settings(max_examples=100, deadline=None)
@given(spectra_of.filter(lambda s: (s[:, 0] > 1e-100).all()))
def test_sec_rises_from_its_floor_to_one(sigma):
    d_q = sigma.shape[1]
    values = np.stack([energy.sec(sigma, s) for s in range(1, d_q + 1)])
    assert (np.diff(values, axis=0) >= 0).all()
    assert (values >= np.arange(1, d_q + 1)[:, None] / d_q - 1e-12).all()
    np.testing.assert_allclose(values[-1], 1)
    s90 = energy.directions_for(sigma, 0.9).astype(int)
    for h, s in enumerate(s90):
        assert values[s - 1, h] >= 0.9
        assert s == 1 or values[s - 2, h] < 0.9


@settings(max_examples=50, deadline=None)
@given(spectra_of.filter(lambda s: (s[:, 0] > 1e-3).all()), st.integers(-150, 150))
def test_ratios_do_not_depend_on_the_scale(sigma, power):
    scaled = sigma * 2.0**power
    for metric in (energy.stable_rank, energy.spectral_effective_rank, lambda s: energy.sec(s, 1)):
        np.testing.assert_array_equal(metric(scaled), metric(sigma))


def test_an_all_zero_head_has_no_ratio():
    zero = np.zeros((1, 4))
    for metric in (energy.stable_rank, energy.spectral_effective_rank, lambda s: energy.sec(s, 1)):
        assert np.isnan(metric(zero)).all()
    assert np.isnan(energy.directions_for(zero, 0.9)).all()
    assert energy.frobenius(zero)[0] == 0


def test_a_head_that_overflowed_has_no_ratio():
    sigma = np.array([[np.inf, 1.0], [np.inf, np.inf]])
    for metric in (energy.stable_rank, energy.spectral_effective_rank, energy.frobenius, lambda s: energy.sec(s, 1)):
        assert np.isnan(metric(sigma)).all()
    assert np.isnan(energy.directions_for(sigma, 0.9)).all()


def test_sec_beyond_the_width_of_the_head_is_not_a_number():
    assert np.isnan(energy.sec(np.ones((1, 4)), 5)).all()
    assert np.isnan(energy.sec(np.ones((1, 4)), 0)).all()


@pytest.mark.parametrize(("d", "d_q", "low", "high"), [(768, 64, 0.109, 0.120)])
def test_random_init_band(d, d_q, low, high):
    """SEC(64, 4) of random weights of d = 768, against heads drawn in full."""
    found = energy.random_init(d, d, d_q, 4)
    assert low < found[0] < found[1] < high
    rng = np.random.default_rng(0)
    drawn = singular_values(rng.standard_normal((8, d_q, d)), rng.standard_normal((8, d_q, d)))
    assert found[2] == pytest.approx(np.median(energy.spectral_effective_rank(drawn)), rel=0.03)
    secs = energy.sec(drawn, 4)
    assert found[0] - 0.01 < secs.min() <= secs.max() < found[1] + 0.01


@pytest.mark.parametrize(("d", "d_q"), [(640, 640), (1280, 640), (320, 640)])
def test_a_wide_head_is_read_off_a_narrower_one_in_proportion(d, d_q):
    rng = np.random.default_rng(1)
    drawn = singular_values(rng.standard_normal((2, d_q, d)), rng.standard_normal((2, d_q, d)))[:, : min(d, d_q)]
    assert energy.random_init(d, d, d_q, 1)[2] == pytest.approx(energy.spectral_effective_rank(drawn).mean(), rel=0.01)
    for s in (8, 40, 200):
        low, high, _ = energy.random_init(d, d, d_q, s)
        assert (low + high) / 2 == pytest.approx(energy.sec(drawn, s).mean(), rel=0.02)


def test_the_bands_of_a_shape_rest_on_one_draw():
    energy._random_sigma.cache_clear()
    bands = [energy.random_init(96, 80, 16, s) for s in range(1, 17)]
    assert energy._random_sigma.cache_info().misses == 1
    assert len({rank for *_, rank in bands}) == 1
    lows, highs = np.array([band[:2] for band in bands]).T
    assert (np.diff(lows) > 0).all()
    assert (np.diff(highs) >= 0).all()
    assert (lows[-1], highs[-1]) == pytest.approx((1, 1))
