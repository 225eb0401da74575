import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qkspec import courses
from qkspec.courses import CONFIDENCE, Forecast, Onset

LOG_SPACED = np.array([0, 2, 5, 10, 20, 40, 60, 80, 100, 200, 300, 400, 500, 600])


def columns(*curves):
    return np.stack(curves, axis=1)


def test_a_head_surges_when_ln_sigma1_grows_by_a_tenth_a_step():
    steps = np.array([0, 10, 20, 30])
    slow, fast = np.exp(0.05 * steps), np.exp(0.2 * np.maximum(steps - 10, 0))
    when, rate = courses.surging(steps, columns(slow, fast))
    np.testing.assert_array_equal(when, [np.nan, 20])
    np.testing.assert_allclose(rate, [np.nan, 0.2])


def test_growth_after_warmup_is_no_surge():
    """σ1 doubles over 1,000 steps after 10,000 quiet ones: as it does where a sound run's warmup ends."""
    steps = np.arange(0, 11_001, 1000)
    late = np.where(steps > 10_000, 2.1, 1.0)
    when, rate = courses.surging(steps, columns(np.ones(12), late))
    assert np.isnan(when).all()
    assert np.isnan(rate).all()


def test_missing_values_never_surge():
    steps = np.array([0, 1, 2])
    when, _ = courses.surging(steps, np.array([[1.0, 0.0], [np.nan, 0.0], [100.0, 0.0]]))
    assert np.isnan(when).all()
    assert np.isnan(courses.surging(np.array([3]), np.ones((1, 2)))[0]).all()


def naive_stagnation(steps, rank):
    for i, step in enumerate(steps):
        rest = rank[i:]
        if all(abs(r - rank[-1]) <= 0.01 * rank[-1] for r in rest):
            long = steps[-1] - step >= max((steps[-1] - steps[0]) / 3, 1)
            return float(step) if long and len(rest) >= 3 else math.nan
    return math.nan


@given(st.lists(st.floats(1.0, 1.04), min_size=3, max_size=12), st.randoms())
def test_stagnation_is_a_spectrum_that_keeps_its_shape(ranks, random):
    steps = np.cumsum([random.randint(1, 50) for _ in ranks])
    found = courses.stagnation(steps, np.array(ranks)[:, None])[0]
    assert found == pytest.approx(naive_stagnation(steps, ranks), nan_ok=True)


def test_a_head_that_shrinks_by_weight_decay_alone_is_stagnant():
    rank = columns(np.full(14, 7.0), np.linspace(20, 7, 14))
    np.testing.assert_array_equal(courses.stagnation(LOG_SPACED, rank), [0, np.nan])


def naive_onset(steps, sigma1):
    """The best hinge by polynomials on either side that meet, searched with an explicit solver."""
    y, best = np.log(sigma1), (math.inf, math.nan)
    for t in steps[1:-2]:
        design = np.array([[1, s, max(s - t, 0)] for s in steps], dtype=float)
        fit = np.linalg.solve(design.T @ design, design.T @ y)
        rest = float(np.sum((y - design @ fit) ** 2))
        if fit[2] > 0 and rest < best[0]:
            best = (rest, float(t))
    return best[1]


@pytest.mark.parametrize("turn", [60, 200, 300])
def test_onset_finds_a_planted_change(turn):
    rng = np.random.default_rng(turn)
    y = 1 + 1e-4 * LOG_SPACED + 0.01 * np.maximum(LOG_SPACED - turn, 0) + 0.01 * rng.standard_normal(len(LOG_SPACED))
    found = courses.onset(LOG_SPACED, np.exp(y)[:, None])
    assert found.step[0] == turn == naive_onset(LOG_SPACED, np.exp(y))
    assert found.after[0] == pytest.approx(0.01, rel=0.1)
    assert abs(found.before[0]) < 0.001
    assert found.gain[0] > 10


def test_no_onset_without_a_change_for_the_worse():
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((len(LOG_SPACED), 4))
    levelling = np.minimum(LOG_SPACED, 60) * 0.05
    y = columns(0.002 * LOG_SPACED, levelling, 0 * LOG_SPACED, -0.001 * np.maximum(LOG_SPACED - 100, 0)) + noise
    assert np.isnan(courses.onset(LOG_SPACED, np.exp(y)).step).all()


def test_onset_needs_six_checkpoints_and_numbers():
    assert np.isnan(courses.onset(np.arange(5), np.exp(np.arange(5.0) ** 2)[:, None]).step).all()
    y = np.exp(np.arange(8.0) ** 2)
    y[3] = np.nan
    found: Onset = courses.onset(np.arange(8), y[:, None])
    assert np.isnan(found.step).all()


def naive_forecast(steps, values, limit):
    """Fieller's interval by scanning: the steps at which the fitted line does not differ from the limit."""
    x, y = steps[-8:].astype(float), np.log(values[-8:])
    line = stats.linregress(x, y)
    n, middle = len(x), x.mean()
    variance = np.sum((y - line.intercept - line.slope * x) ** 2) / (n - 2)
    t = stats.t.ppf((1 + CONFIDENCE) / 2, n - 2)
    grid = np.linspace(x[-1], x[-1] + 4000, 400_001)
    error = np.sqrt(variance * (1 / n + (grid - middle) ** 2 / np.sum((x - middle) ** 2)))
    inside = np.abs(line.intercept + line.slope * grid - math.log(limit)) <= t * error
    return (
        (math.log(limit) - line.intercept) / line.slope,
        grid[inside.argmax()],
        grid[len(grid) - 1 - inside[::-1].argmax()],
    )


def test_forecast_against_a_scan():
    rng = np.random.default_rng(1)
    values = 0.12 * np.exp(0.002 * LOG_SPACED + 0.03 * rng.standard_normal(len(LOG_SPACED)))
    found: Forecast = courses.forecast(LOG_SPACED, values[:, None], 0.45)
    step, low, high = naive_forecast(LOG_SPACED, values, 0.45)
    assert found.step[0] == pytest.approx(step)
    assert found.low[0] == pytest.approx(low, abs=0.02)
    assert found.high[0] == pytest.approx(high, abs=0.02)
    assert found.points == 8
    assert found.low[0] < found.step[0] < found.high[0]


def test_forecast_of_an_exponential_is_exact():
    steps = np.arange(0, 100, 10)
    found = courses.forecast(steps, np.exp(0.01 * steps - 1.2)[:, None], 1.0)
    assert found.step[0] == pytest.approx(120)
    assert found.rate[0] == pytest.approx(0.01)
    assert found.high[0] - found.low[0] < 1e-3


def test_no_forecast_for_what_does_not_rise_or_is_there_already():
    steps = np.arange(0, 100, 10)
    falling, flat, above = np.exp(-0.01 * steps), np.ones(10), np.exp(0.01 * steps)
    missing = np.exp(0.01 * steps - 0.7)
    missing[-1] = np.nan
    found = courses.forecast(steps, columns(falling, flat, above, missing), 1.5)
    assert np.isnan(found.step).all()
    assert np.isnan(courses.forecast(steps[:3], np.ones((3, 1)), 1.5).step).all()


def test_no_forecast_from_checkpoints_of_one_step():
    found = courses.forecast(np.full(4, 5), np.exp(0.1 * np.arange(4))[:, None], 2.0)
    assert np.isnan(found.step).all()


def test_no_forecast_from_a_trend_that_has_ended():
    """The learning rate has decayed and κ stands: the line through eight checkpoints still rises, the head does not."""
    steps = np.arange(0, 80, 10)
    rising = 0.1 * np.exp(0.02 * steps)
    slowed = np.exp(np.interp(steps, [0, 60, 70], np.log([0.1, rising[-2], rising[-2] * np.exp(0.2 * 0.4)])))
    found = courses.forecast(steps, columns(rising, np.minimum(rising, rising[-2]), slowed), 0.45)
    np.testing.assert_array_equal(np.isfinite(found.step), [True, False, False])


def test_a_forecast_does_not_reach_further_than_half_of_what_it_saw():
    steps = np.arange(0, 80, 10)
    near, far = (np.exp(0.01 * (steps - step)) for step in (104, 106))
    np.testing.assert_array_equal(np.isfinite(courses.forecast(steps, columns(near, far), 1.0).step), [True, False])


def test_a_trend_that_may_be_flat_has_no_last_step():
    steps = np.arange(0, 40, 10)
    found = courses.forecast(steps, np.exp([0.0, 0.3, 0.1, 0.35])[:, None], 1.5)
    assert np.isfinite(found.step[0])
    assert found.high[0] == math.inf


def test_forecasts_cover_what_they_promise_where_the_trend_goes_on():
    """Of 400 noisy exponentials the true crossing lies within the 90 % interval in about 90 %."""
    rng = np.random.default_rng(3)
    steps = np.arange(0, 80, 10)
    truth = 0.01 * steps - 0.9
    values = np.exp(truth[:, None] + 0.015 * rng.standard_normal((len(steps), 400)))
    found = courses.forecast(steps, values, 1.0)
    known = np.isfinite(found.step)
    covered = (found.low <= 90) & (found.high >= 90)
    assert known.mean() > 0.95
    assert 0.86 < covered[known].mean() < 0.94


def test_flags_come_in_the_order_of_steps_with_their_numbers():
    steps = np.array([0, 10, 20, 30])
    sigma1 = columns(np.exp(0.2 * np.maximum(steps - 10, 0)), np.ones(4))
    held = {"large": np.array([[0, 0], [1, 0], [0, 0], [1, 0]], dtype=bool)}
    found = courses.courses(steps, sigma1, columns([9, 9, 4, 2.0], np.full(4, 9.0)), sigma1, held, {"large": 0.45})
    names = [(flag.name, flag.step) for flag in found.flags(0)]
    assert names == [("crossing: large", 10), ("surging", 20)]
    assert found.held["large"][0] == 30
    assert [flag.name for flag in found.flags(1)] == ["stagnant"]
    assert found.flags(0)[0].limit == 0.45


def test_a_change_of_kappa_alone_is_a_flag_of_its_own():
    """Gains of the norm that begin to grow show in κ and not in σ_1."""
    steps = np.arange(0, 100, 10)
    sigma1, rank = columns(np.exp(0.002 * steps)), columns(np.linspace(9, 5, 10))
    freezing = columns(0.01 * np.exp(0.002 * steps + 0.05 * np.maximum(steps - 40, 0)))
    found = courses.courses(steps, sigma1, rank, freezing, {}, {"large": 0.45})
    (flag,) = found.flags(0)
    assert (flag.name, flag.step) == ("onset of κ", 40)
    assert flag.value == pytest.approx(0.052)
    assert flag.limit == pytest.approx(0.002)


def test_onset_is_found_though_the_growth_ends():
    """As with warmup: nothing, then growth, then a plateau for most of the run, which a straight line fits as well."""
    rng = np.random.default_rng(1)
    rise = columns(
        *(2.5 * np.clip((LOG_SPACED - turn) / length, 0, 1) for turn, length in ((20, 40), (60, 140), (80, 220)))
    )
    y = rise + 0.01 * rng.standard_normal(rise.shape)
    np.testing.assert_array_equal(courses.onset(LOG_SPACED, np.exp(y)).step, [20, 60, 80])
    noise = 0.05 * rng.standard_normal((len(LOG_SPACED), 200))
    assert np.isnan(courses.onset(LOG_SPACED, np.exp(noise)).step).all()
