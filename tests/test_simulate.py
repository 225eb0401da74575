import numpy as np
import pytest

from qkspec import simulate
from qkspec.errors import UsageError
from qkspec.simulate import BENIGN, MALIGNANT, MODES, NORMAL, Setup
from qkspec.theorem import Limits, Verdict


def by_name(**options):
    return {mode.name: mode for mode in simulate.simulate(Setup(**options))}


def appendix_g(seed, d_q, d, tokens):
    """Code 1 of the paper, line for line in NumPy: the d x d product, its full SVD, the softmax over rows."""
    rng = np.random.default_rng(seed)
    w_q, w_k = rng.standard_normal((2, d_q, d))
    x = rng.standard_normal((tokens, d)).astype(np.float32).T.astype(float)
    w1 = w_q.T @ w_k
    u, s, vt = np.linalg.svd(w1)
    few = s.copy()
    few[0:3] = [3.0, 2.0, 1.0] * few[0:3]
    few[3:] = 0.0
    w2 = u @ np.diag(few) @ vt
    s[d_q:] = 0.0
    w3 = u @ np.diag(s) @ u.T
    return dict(zip(MODES, (w1, w2, w3), strict=True)), x


def softmax(p):
    e = np.exp(p - p.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_as_printed_is_the_papers_code():
    found = by_name(d_q=8, d=48, tokens=20, as_printed=True)
    products, x = appendix_g(0, 8, 48, 20)
    for name in MODES:
        logits = x.T @ products[name] @ x
        best = np.sort(logits, axis=1)
        clear = best[:, -1] - best[:, -2] > 0.1  # float32 logits in the hundreds
        np.testing.assert_allclose(found[name].map[clear], softmax(logits)[clear], atol=2e-3)
        np.testing.assert_allclose(found[name].sigma, np.linalg.svd(products[name], compute_uv=False)[:8], atol=1e-9)


def test_as_printed_the_normal_head_is_frozen_too():
    """Without 1/√d_q its logits have a standard deviation near 6,000 and its entropy is 0: a slip of the appendix."""
    found = by_name(as_printed=True)
    assert 5500 < found[NORMAL].values["logit_std"] < 6700
    assert found[NORMAL].values["predicted_entropy"] < 1e-3
    assert [found[name].verdict for name in MODES] == [Verdict.SHARP, Verdict.MALIGNANT, Verdict.BENIGN]


@pytest.mark.parametrize("seed", range(5))
def test_the_three_modes_are_told_apart(seed):
    found = by_name(seed=seed)
    assert [found[name].verdict for name in MODES] == [Verdict.HEALTHY, Verdict.MALIGNANT, Verdict.BENIGN]
    normal, malignant, benign = (found[name].values for name in MODES)
    assert normal["predicted_entropy"] > 0.85
    assert malignant["predicted_entropy"] < 0.5
    assert malignant["predicted_rank"] < 0.1
    assert benign["predicted_entropy"] < 0.1
    assert benign["predicted_diagonal"] > 0.9
    assert benign["predicted_rank"] > 0.9


@pytest.mark.parametrize("kappa", [0.3, 1.0, 3.0])
def test_a_chosen_freezing_ratio_is_that_of_the_logits(kappa):
    for mode in simulate.simulate(Setup(kappa=kappa)):
        assert mode.values["freezing_ratio"] == pytest.approx(kappa)
    rng = np.random.default_rng(0)
    normal = by_name(kappa=kappa, d_q=8, d=48, tokens=100)[NORMAL]
    m, _ = appendix_g(0, 8, 48, 100)
    scale = kappa * np.sqrt(2 * np.log(100)) / np.linalg.norm(m[NORMAL])
    x, y = rng.standard_normal((2, 20_000, 48))
    assert np.std(np.einsum("ni,ij,nj->n", x, m[NORMAL], y) * scale) == pytest.approx(
        normal.values["logit_std"], rel=0.03
    )


def test_benign_collapse_follows_appendix_c():
    """E[x'Mx] = trace(M), E[x'My] = 0 for y ≠ x: the diagonal wins once the trace exceeds √(2 ln T) of the spread."""
    mode = by_name(kappa=0.5)[BENIGN]
    assert mode.values["trace"] == pytest.approx(mode.sigma.sum())
    assert mode.values["trace"] / mode.values["frobenius"] > np.sqrt(2 * np.log(197))
    rng = np.random.default_rng(1)
    u = np.linalg.qr(rng.standard_normal((48, 8)))[0]
    m = u @ np.diag(np.arange(1.0, 9.0)) @ u.T
    x, y = rng.standard_normal((2, 40_000, 48))
    assert np.einsum("ni,ij,nj->n", x, m, x).mean() == pytest.approx(np.trace(m), rel=0.02)
    assert abs(np.einsum("ni,ij,nj->n", x, m, y).mean()) < 0.02 * np.trace(m)


def test_limits_are_those_that_are_given():
    found = {mode.name: mode for mode in simulate.simulate(Setup(), Limits(freezing=5.0))}
    assert found[MALIGNANT].verdict is Verdict.CONCENTRATED
    large = next(c for c in found[MALIGNANT].conditions if c.name == "large")
    assert (large.limit, large.holds) == (5.0, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"d_q": 0},
        {"d_q": 9, "d": 8},
        {"tokens": 1},
        {"kappa": 0.0},
        {"kappa": float("nan")},
        {"kappa": 1.0, "as_printed": True},
    ],
)
def test_setups_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        Setup(**wrong)


def test_one_direction_is_enough():
    assert len(simulate.simulate(Setup(d_q=1, d=4, tokens=8))) == 3
