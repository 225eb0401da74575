import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exact_values, orthonormal, planted, product_values

from qkspec.spectrum import singular_values, spectra


def draw(seed, heads, kv_heads, d_q, d, d_k=None):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((heads, d_q, d)), rng.standard_normal((kv_heads, d_q, d_k or d))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_equals_the_svd_of_the_product(seed, kv_heads, group, d_q, d, d_k):
    q, k = draw(seed, kv_heads * group, kv_heads, d_q, d, d_k)
    sigma = singular_values(q, k)
    assert sigma.shape == q.shape[:2]
    assert np.all(np.diff(sigma, axis=1) <= 0)
    np.testing.assert_allclose(sigma, product_values(q, k), rtol=1e-10, atol=1e-12 * sigma.max())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(-30, 30), st.floats(-30, 30))
def test_scales_with_either_factor(seed, a, b):
    q, k = draw(seed, 2, 1, 4, 9)
    scaled = singular_values(q * 10.0**a, k * 10.0**b)
    np.testing.assert_allclose(scaled / 10.0**a / 10.0**b, singular_values(q, k), rtol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_depends_on_the_product_alone(seed):
    """An invertible mix of the d_q coordinates, A on q and A^-T on k, leaves M and so its spectrum unchanged."""
    q, k = draw(seed, 1, 1, 5, 11)
    mix = np.eye(5) + 0.2 * np.random.default_rng(seed).standard_normal((5, 5))
    mixed = singular_values((mix @ q[0])[None], (np.linalg.inv(mix).T @ k[0])[None])
    np.testing.assert_allclose(mixed, singular_values(q, k), rtol=1e-9)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("order", ["falling", "rising", "shuffled"])
def test_every_value_at_condition_1e13(order, mixed):
    """The least singular value keeps nine digits, whichever way the planted spectrum is ordered; the oracle has 60."""
    rng = np.random.default_rng(5)
    sigma = np.logspace(0, -13, 16)
    given_order = {"falling": sigma, "rising": sigma[::-1], "shuffled": rng.permutation(sigma)}[order]
    q, k = planted(rng, given_order, 40, mixed=mixed)
    exact = exact_values(q, k)
    assert exact[0] / exact[-1] > 1e12
    np.testing.assert_allclose(singular_values(q[None], k[None])[0], exact, rtol=1e-9)


def test_collapsed_head_of_the_width_of_a_real_one():
    """d_q = 64 on d = 256: two strong directions over a floor 1e-6 of them, so that M has condition above 1e12."""
    rng = np.random.default_rng(1)
    q, k = (
        rng.standard_normal((64, 2)) @ rng.standard_normal((2, 256)) + 1e-6 * rng.standard_normal((64, 256))
        for _ in "qk"
    )
    ours = singular_values(q[None], k[None])[0]
    assert ours[0] / ours[-1] > 1e12
    # M's least value is determined to about 1e-9 by float64 weights; a head of 8 of its rows is checked with 60 digits.
    np.testing.assert_allclose(singular_values(q[None, :8], k[None, :8])[0], exact_values(q[:8], k[:8]), rtol=1e-9)


def test_grouped_queries_share_their_key():
    q, k = draw(0, 6, 2, 4, 10)
    np.testing.assert_allclose(singular_values(q, k), singular_values(q, np.repeat(k, 3, axis=0)), rtol=1e-11)


def test_float32_weights_are_read_without_loss():
    q, k = (w.astype(np.float32) for w in draw(3, 2, 2, 4, 10))
    np.testing.assert_array_equal(singular_values(q, k), singular_values(q.astype(float), k.astype(float)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_head_that_is_not_finite_is_nan_and_no_other(bad):
    q, k = draw(0, 4, 2, 3, 5)
    q[1, 2, 4] = bad
    sigma = singular_values(q, k)
    assert np.isnan(sigma[1]).all()
    assert np.isfinite(sigma[[0, 2, 3]]).all()
    k[1, 0, 0] = bad
    assert np.isnan(singular_values(q, k)[[2, 3]]).all()
    assert np.isnan(spectra(q, k).sigma1_k[1])


def test_a_zero_head_has_zero_singular_values():
    q, k = draw(0, 2, 2, 3, 5)
    q[0] = 0
    found = spectra(q, k)
    assert (found.sigma[0] == 0).all()
    assert found.sigma1_q[0] == 0
    assert found.sigma[1, 0] > 0


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e150])
def test_weights_at_the_ends_of_float64(scale):
    q, k = draw(0, 1, 1, 3, 5)
    ratio = singular_values(q * scale, k)[0] / singular_values(q, k)[0] / scale
    np.testing.assert_allclose(ratio, 1, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 3), st.integers(1, 7), st.integers(1, 9))
def test_norms_traces_and_eigenvalues(seed, kv_heads, group, d_q, d):
    q, k = draw(seed, kv_heads * group, kv_heads, d_q, d)
    found = spectra(q, k)
    np.testing.assert_allclose(found.sigma, singular_values(q, k), rtol=1e-12)
    np.testing.assert_allclose(found.sigma1_q, np.linalg.norm(q, 2, axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.sigma1_k, np.linalg.norm(k, 2, axis=(1, 2)), rtol=1e-12)
    for h in range(len(q)):
        m = q[h].T @ k[h // group]
        assert found.trace[h] == pytest.approx(np.trace(m), abs=1e-10 * np.abs(m).sum())
        assert np.sum(found.eigenvalues[h]).real == pytest.approx(found.trace[h], abs=1e-9 * np.abs(m).sum())


def test_eigenvalues_are_those_of_the_product():
    rng = np.random.default_rng(0)
    q, k = draw(0, 1, 1, 3, 8)
    whole = np.linalg.eigvals(q[0].T @ k[0])
    nonzero = whole[np.argsort(-np.abs(whole))][:3]
    found = spectra(q, k).eigenvalues[0]
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(nonzero), atol=1e-9)
    basis = orthonormal(rng, 8, 3)
    assert (spectra(basis.T[None], basis.T[None]).eigenvalues.real > 0).all()  # a projection


def test_cross_attention_has_no_trace():
    q, k = draw(0, 2, 2, 3, 5, 7)
    found = spectra(q, k)
    assert np.isfinite(found.sigma).all()
    assert np.isnan(found.trace).all()
    assert np.isnan(found.eigenvalues).all()


@pytest.mark.parametrize("square", [0.5e-5, 0.9e-5, 1.1e-5, 2e-5, 1e-3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_value_where_the_gram_matrix_only_just_proves_its_factor(square, seed):
    """On both sides of WELL_CONDITIONED, in both factors at once, against 60 digits."""
    rng = np.random.default_rng(seed)
    fall = np.sqrt(np.logspace(0, np.log10(square), 12))
    q, k = (orthonormal(rng, 12, 12) @ (fall[:, None] * orthonormal(rng, 40, 12).T) for _ in "qk")
    np.testing.assert_allclose(singular_values(q[None], k[None])[0], exact_values(q, k), rtol=1e-10)


@pytest.mark.parametrize("gained", [False, True])
def test_float32_products_are_good_to_what_float32_weights_determine(gained):
    """float32 weights are multiplied as they are for eigenvalues and gains; for σ and the trace they are not."""
    q, k = (0.02 * w.astype(np.float32) for w in draw(0, 4, 2, 16, 512))
    gains = np.exp(np.random.default_rng(1).standard_normal((2, 512))).astype(np.float32) if gained else (None, None)
    low = spectra(q, k, *gains)
    high = spectra(*(None if w is None else w.astype(np.float64) for w in (q, k, *gains)))
    np.testing.assert_allclose(low.sigma, high.sigma, rtol=1e-12)
    np.testing.assert_allclose(low.trace, high.trace, rtol=1e-11)
    np.testing.assert_allclose(low.gained_trace, high.gained_trace, rtol=1e-5)
    np.testing.assert_allclose(low.gained, high.gained, rtol=1e-6)
    size = (high.sigma1_q * np.repeat(high.sigma1_k, 2))[:, None]
    close = np.abs(np.sort_complex(low.eigenvalues) - np.sort_complex(high.eigenvalues)) / size
    assert np.median(close) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(-60, 60))
def test_gains_are_those_of_the_folded_product(seed, power):
    rng = np.random.default_rng(seed)
    q, k = draw(seed, 4, 2, 3, 8)
    gain_q, gain_k = 10.0**power * np.exp(rng.standard_normal(8)), np.exp(rng.standard_normal(8))
    found = spectra(q, k, gain_q, gain_k)
    for h in range(4):
        m = gain_q[:, None] * (q[h].T @ k[h // 2]) * gain_k
        assert found.gained[h] == pytest.approx(np.linalg.norm(m))
        assert found.gained_trace[h] == pytest.approx(np.trace(m), abs=1e-9 * np.abs(m).sum())


def test_eigenvalues_can_be_left_out_and_nothing_else_changes():
    q, k = draw(1, 4, 2, 5, 9)
    whole, lean = spectra(q, k), spectra(q, k, eigenvalues=False)
    assert np.isnan(lean.eigenvalues).all()
    for name in ("sigma", "sigma1_q", "sigma1_k", "trace", "gained", "gained_trace"):
        np.testing.assert_array_equal(getattr(lean, name), getattr(whole, name))
