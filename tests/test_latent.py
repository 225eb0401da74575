"""Logits through the norms inside latent attention, against loops over tokens and against chance."""

from dataclasses import replace

import numpy as np
import pytest

from qkspec import metrics
from qkspec.attention import logits, predicted_map
from qkspec.layouts.cut import latent_key_factor, latent_keys, latent_queries
from qkspec.layouts.heads import Heads
from qkspec.qk import Factored, Norm, QKLayer

HEADS, D, NOPE, ROPE, VALUE, RANK_Q, RANK = 2, 96, 6, 4, 5, 40, 32
COUNTS = Heads(HEADS, HEADS, NOPE + ROPE)


def layer(seed: int = 0, *, factored_q: bool = True) -> QKLayer:
    rng = np.random.default_rng(seed)
    q_a, q_b = rng.standard_normal((RANK_Q, D)), rng.standard_normal((HEADS * COUNTS.d_q, RANK_Q))
    kv_a, kv_b = rng.standard_normal((RANK + ROPE, D)), rng.standard_normal((HEADS * (NOPE + VALUE), RANK))
    gain_q, gain_k = rng.uniform(0.5, 2, RANK_Q), rng.uniform(0.5, 2, RANK)
    q = latent_queries((q_b, q_a), COUNTS)
    return QKLayer(
        "a",
        0,
        "self",
        q,
        latent_keys(kv_b, kv_a, COUNTS),
        0.1,
        "float64",
        q_input=Norm("rms", rng.uniform(0.5, 2, D)),
        k_input=Norm("rms", rng.uniform(0.5, 2, D)),
        q_factors=Factored(q_b.reshape(HEADS, COUNTS.d_q, RANK_Q), q_a, gain_q) if factored_q else None,
        k_factors=Factored(latent_key_factor(kv_b, kv_a, COUNTS), kv_a, gain_k),
        context=512,
    )


def naive_logit(made: QKLayer, head: int, x: np.ndarray, y: np.ndarray) -> float:
    """One logit, step by step as the reference code does it."""

    def side(w: np.ndarray, factors: Factored | None, token: np.ndarray) -> np.ndarray:
        if factors is None:
            return w[head] @ token
        latent = factors.down @ token
        n = len(factors.gain)
        normed = factors.gain * latent[:n] / np.sqrt(sum(v * v for v in latent[:n]) / n + 1e-6)
        return factors.up[head] @ np.concatenate([normed, latent[n:]])

    return float(side(made.q, made.q_factors, x) @ side(made.k, made.k_factors, y) * made.scale)


@pytest.mark.parametrize("factored_q", [True, False])
def test_logits_of_given_tokens(factored_q: bool) -> None:
    made = layer(factored_q=factored_q)
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 7, D)).astype(np.float32)
    found = logits(made, x, y)
    for head in range(HEADS):
        for i in range(7):
            for j in range(7):
                wanted = naive_logit(made, head, x[i].astype(float), y[j].astype(float))
                assert found[head, i, j] == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("factored_q", [True, False])
def test_standard_deviation_and_mean_are_those_of_random_tokens(factored_q: bool) -> None:
    made = layer(1, factored_q=factored_q)
    made = replace(made, k_input=made.q_input)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1500, D)).astype(np.float32)
    x /= np.sqrt((x * x).mean(1, keepdims=True))
    assert made.q_input is not None
    x *= made.q_input.gain.astype(np.float32)
    drawn = logits(made, x, x).astype(float)
    apart = drawn[:, ~np.eye(1500, dtype=bool)]
    np.testing.assert_allclose(metrics.logit_std(made), apart.std(axis=1), rtol=0.05)
    own = np.diagonal(drawn, axis1=1, axis2=2)
    error = own.std(axis=1) / np.sqrt(1500)
    np.testing.assert_array_less(
        np.abs(metrics.mean_diagonal_logit(made) - own.mean(axis=1)), 5 * error + 0.05 * own.std(axis=1)
    )


def test_the_size_of_a_first_factor_changes_m_and_no_logit() -> None:
    made = layer(3)
    assert made.q_factors is not None
    grown = replace(made, q=made.q * 1000, q_factors=replace(made.q_factors, down=made.q_factors.down * 1000))
    np.testing.assert_allclose(metrics.logit_std(grown), metrics.logit_std(made), rtol=1e-9)
    np.testing.assert_allclose(predicted_map(grown), predicted_map(made), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(
        metrics.folded_spectra(grown).sigma, 1000 * metrics.folded_spectra(made).sigma, rtol=1e-6
    )


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_weights_have_finite_logits(size: float) -> None:
    made = layer(4)
    assert made.k_factors is not None
    scaled = replace(made, k=made.k * size, k_factors=replace(made.k_factors, up=made.k_factors.up * size))
    np.testing.assert_allclose(metrics.logit_std(scaled), metrics.logit_std(made) * size, rtol=1e-9)


def test_weights_that_are_not_finite_have_none() -> None:
    made = layer(4)
    assert made.k_factors is not None
    broken = replace(made, k_factors=replace(made.k_factors, gain=np.full(RANK, np.nan)))
    assert np.isnan(metrics.logit_std(broken)).all()
