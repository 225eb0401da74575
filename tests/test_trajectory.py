import numpy as np
import pytest

from qkspec import trajectory


def test_growth_of_an_exponential_is_its_rate():
    steps = np.array([0, 10, 15, 40])
    sigma = np.exp(0.03 * steps)[:, None] * np.array([1.0, 5.0])
    np.testing.assert_allclose(trajectory.growth(steps, sigma), 0.03)


def test_growth_is_not_a_number_where_it_cannot_be_told():
    steps = np.array([0, 10, 10, 20])
    sigma = np.array([[1.0], [2.0], [3.0], [0.0]])
    found = trajectory.growth(steps, sigma)[:, 0]
    assert found[0] == pytest.approx(np.log(2) / 10)
    assert np.isnan(found[1:]).all()


def test_first_and_settled_crossing():
    steps = np.array([0, 5, 10, 20])
    condition = np.array([[0, 0, 1], [1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=bool)
    np.testing.assert_array_equal(trajectory.first(steps, condition), [5, np.nan, 0])
    np.testing.assert_array_equal(trajectory.settled(steps, condition), [20, np.nan, 0])


def state(**given):
    shape = (2, 4)
    flags = {name: np.zeros(shape, dtype=bool) for name in ("malignant", "both", "frozen", "broken", "dead")} | {
        "judged": np.ones(shape, dtype=bool)
    }
    return trajectory.run_state(np.array([0, 10]), np.ones(shape), **{**flags, **given})


def heads(last, first=(0, 0, 0, 0)):
    return np.array([first, last], dtype=bool)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "sound"),
        ({"both": heads((1, 0, 0, 0))}, "warned"),
        ({"both": heads((1, 1, 1, 1))}, "warned"),
        ({"both": heads((1, 1, 1, 1)), "frozen": heads((1, 0, 0, 0))}, "warned"),
        ({"both": heads((1, 1, 0, 0)), "frozen": heads((1, 1, 0, 0))}, "lost"),
        ({"malignant": heads((1, 0, 0, 0))}, "warned"),
        ({"broken": heads((1, 0, 0, 0))}, "broken"),
        ({"judged": heads((0, 0, 0, 0))}, "unjudged"),
        ({"judged": heads((1, 1, 1, 0)), "dead": heads((0, 0, 0, 1))}, "warned"),
        ({"judged": heads((0, 0, 0, 0)), "dead": heads((1, 1, 1, 1))}, "unjudged"),
    ],
)
def test_a_run_is_judged_by_shares_of_heads(given, verdict):
    assert state(**given).verdict == verdict


def test_the_step_at_which_the_first_head_turned():
    assert state(malignant=heads((1, 1, 0, 0), (1, 0, 0, 0))).turned == 0
    assert state(malignant=heads((0, 1, 0, 0))).turned == 10
    assert state().turned is None


def test_surge_is_growth_of_the_median_head():
    steps = np.array([0, 2, 4])
    fast = np.exp(0.3 * steps)[:, None] * np.ones((1, 4))
    flags = {name: np.zeros((3, 4), dtype=bool) for name in ("malignant", "both", "frozen", "broken", "dead")}
    assert trajectory.run_state(steps, fast, judged=np.ones((3, 4), dtype=bool), **flags).surge == 2
    slow = np.exp(0.01 * steps)[:, None] * np.ones((1, 4))
    assert trajectory.run_state(steps, slow, judged=np.ones((3, 4), dtype=bool), **flags).surge is None


def test_the_step_at_which_a_quarter_was_concentrated_and_large():
    assert state(both=heads((1, 0, 0, 0))).crossed == 10
    assert state(both=heads((0, 0, 0, 0), (1, 0, 0, 0))).crossed == 0
    assert state().crossed is None
    few = heads((1, 0, 0, 0))
    assert state(both=few, judged=np.array([[1, 1, 1, 1], [0, 1, 1, 1]], dtype=bool)).crossed is None


def test_the_largest_growth_of_the_median_head():
    steps = np.array([0, 10, 20])
    sigma = np.exp(np.array([[0.0, 0, 0], [1, 2, 9], [1, 2, 9.5]]))
    flags = {name: np.zeros((3, 3), dtype=bool) for name in ("malignant", "both", "frozen", "broken", "dead")}
    found = trajectory.run_state(steps, sigma, judged=np.ones((3, 3), dtype=bool), **flags)
    assert found.growth == pytest.approx(0.2)
    assert np.isnan(state(malignant=heads((0, 0, 0, 0))).growth) or state().growth == 0


@pytest.mark.parametrize(("heads_", "bad", "verdict"), [(8, 1, "warned"), (20, 1, "warned"), (144, 7, "sound")])
def test_a_malignant_head_warns_by_its_share(heads_, bad, verdict):
    """Of 144 heads a sound model has some that look so; of 8, one is an eighth of the model."""
    given = {name: np.zeros((1, heads_), dtype=bool) for name in ("both", "frozen", "broken", "dead")}
    malignant, judged = np.arange(heads_)[None] < bad, np.ones((1, heads_), dtype=bool)
    found = trajectory.run_state(np.array([0]), np.ones((1, heads_)), malignant=malignant, judged=judged, **given)
    assert (found.verdict, found.malignant, found.judged) == (verdict, bad, heads_)
