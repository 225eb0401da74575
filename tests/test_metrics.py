import math

import numpy as np
import pytest
from build import collapsed_layer, layer_of, random_layer

from qkspec import attention, energy, metrics
from qkspec.qk import Norm, QKNorm, Rotary
from qkspec.spectrum import singular_values


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logit_std_against_drawn_logits(kv_heads):
    rng = np.random.default_rng(0)
    gain = np.exp(0.3 * rng.standard_normal(32))
    norm = Norm("rms", gain)
    layer = random_layer(kv_heads=kv_heads, q_input=norm, k_input=norm)
    x, y = rng.standard_normal((2, 4000, 32)) * gain
    for h in range(4):
        q, k = x @ layer.q[h].T, y @ layer.k[h // (4 // kv_heads)].T
        drawn = np.std(np.sum(q * k, axis=1)) * layer.scale
        assert metrics.logit_std(layer)[h] == pytest.approx(drawn, rel=0.1)


def test_logit_std_without_gains_is_the_frobenius_norm():
    layer = random_layer(kv_heads=2)
    expected = energy.frobenius(singular_values(layer.q, layer.k)) * layer.scale
    np.testing.assert_allclose(metrics.logit_std(layer), expected, rtol=1e-12)


def test_logit_std_under_qk_norm_comes_from_the_gains():
    gain = np.array([[2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 4)
    layer = random_layer(qk_norm=QKNorm("rms", q_gain=gain))
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 20000, 8))
    q *= np.sqrt(8) / np.linalg.norm(q, axis=1, keepdims=True)
    k *= np.sqrt(8) / np.linalg.norm(k, axis=1, keepdims=True)
    drawn = np.std(np.sum(q * gain[0] * k, axis=1)) * layer.scale
    assert metrics.logit_std(layer)[0] == pytest.approx(drawn, rel=0.05)


def test_unknown_input_norm_leaves_the_logits_unmeasured():
    values, sigma = metrics.measure(random_layer(unknown=("input norm",)))
    assert np.isfinite(sigma).all()
    for name in ("logit_std", "freezing_ratio", "mean_diagonal", "predicted_entropy"):
        assert np.isnan(values[name]).all(), name
    assert np.isfinite(values["sigma1"]).all()


def test_mean_diagonal_logit_against_drawn_tokens():
    layer = random_layer(d_q=4, d=16)
    x = np.random.default_rng(1).standard_normal((200_000, 16))
    for h in range(4):
        drawn = np.mean(np.sum((x @ layer.q[h].T) * (x @ layer.k[h].T), axis=1)) * layer.scale
        assert metrics.mean_diagonal_logit(layer)[h] == pytest.approx(drawn, abs=0.02)


def test_every_metric_is_measured_and_named():
    values, sigma = metrics.measure(random_layer(), sizes=(1, 3))
    assert tuple(values) == metrics.names((1, 3))
    assert all(len(column) == 4 for column in values.values())
    missing = {name for name, column in values.items() if not np.isfinite(column).all()}
    assert missing == {"logit_bound"}, "which only QK-norm has"
    np.testing.assert_array_equal(values["sigma1"], sigma[:, 0])
    for metric in metrics.METRICS:
        assert metric.meaning


def test_positive_fraction_of_a_symmetric_head_is_one():
    layer = random_layer()
    same = random_layer().__class__(**{**layer.__dict__, "k": layer.q})
    assert (metrics.measure(same)[0]["positive_fraction"] == 1).all()
    opposite = layer.__class__(**{**layer.__dict__, "k": -layer.q})
    assert (metrics.measure(opposite)[0]["positive_fraction"] == 0).all()


def test_a_collapsed_head_shows_it():
    values, _ = metrics.measure(collapsed_layer())
    assert values["effective_rank"][0] < 1.1
    assert values["freezing_ratio"][0] > 1
    assert values["predicted_entropy"][0] < 0.5
    assert values["predicted_rank"][0] < 0.2


@pytest.mark.parametrize("kind", ["rms", "layer", "l2"])
@pytest.mark.parametrize("per_head", [True, False])
def test_no_input_gives_a_logit_above_the_bound_of_qk_norm(kind, per_head):
    rng = np.random.default_rng(0)
    gain_q, gain_k, bias_q, bias_k = (rng.standard_normal((heads, 8)) for heads in (4, 2, 4, 2))
    norm = QKNorm(kind, per_head, gain_q, gain_k, bias_q, bias_k)
    layer = random_layer(heads=4, kv_heads=2, d_q=8, d=32, qk_norm=norm)
    bound = metrics.logit_bound(layer)
    largest = np.zeros(4)
    for seed in range(20):
        largest = np.maximum(largest, np.abs(attention.predicted_logits(layer, tokens=64, seed=seed)).max(axis=(1, 2)))
    assert (largest <= bound * (1 + 1e-5)).all()
    assert (largest > bound / 20).all()


def test_the_bound_of_qk_norm_is_attained():
    """One coordinate holds the whole length: √d_q · √d_q · scale · max γ_q γ_k."""
    gain = np.array([[1.0, 3.0, 1.0, 1.0]])
    w = np.zeros((1, 4, 4))
    w[0, 1, 0] = 1
    layer = layer_of(w, w, q_input=None, k_input=None, qk_norm=QKNorm("rms", q_gain=gain, k_gain=gain))
    x = np.eye(4, dtype=np.float32)[:2] * 5
    found = attention.logits(layer, x, x)[0, 0, 0]
    assert metrics.logit_bound(layer)[0] == pytest.approx(found, rel=1e-5)
    assert found == pytest.approx(4 * 9 * layer.scale)
    assert np.isnan(metrics.logit_bound(random_layer())).all()


@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
def test_spectra_at_rotary_offsets_against_a_rotation_written_out(pairing):
    rotary = Rotary(4, theta=100.0, pairing=pairing, start=2)
    layer = random_layer(heads=4, kv_heads=2, d_q=8, d=32, rotary=rotary)
    found = metrics.at_offsets(layer, (0, 3, 100))
    for offset in (0, 3, 100):
        turn = np.eye(8)
        for i, frequency in enumerate((1.0, 0.1)):
            a, b = (2 + i, 4 + i) if pairing == "halves" else (2 + 2 * i, 3 + 2 * i)
            angle = -offset * frequency  # the key stands before the query
            turn[[a, a, b, b], [a, b, a, b]] = [math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)]
        for h in range(4):
            sigma = np.linalg.svd(layer.q[h].T @ turn @ layer.k[h // 2], compute_uv=False)
            assert found[f"sigma1_at_{offset}"][h] == pytest.approx(sigma[0])
            assert found[f"sec_star_at_{offset}"][h] == pytest.approx(sigma[0] ** 2 / np.sum(sigma**2))
    np.testing.assert_allclose(found["sigma1_at_0"], metrics.measure(layer)[0]["sigma1"])
    assert np.isnan(metrics.at_offsets(random_layer(), (1,))["sigma1_at_1"]).all()


def test_a_logit_between_two_tokens_depends_on_their_offset_as_that_matrix_says():
    rotary = Rotary(8)
    layer = random_layer(heads=1, d_q=8, d=16, rotary=rotary, q_input=None, k_input=None)
    x = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    found = attention.logits(layer, x, x)[0]
    for i in range(6):
        for j in range(6):
            m = layer.q[0].T @ attention.rotated(layer.k, rotary, j - i)[0]
            assert found[i, j] == pytest.approx(float(x[i] @ m @ x[j]) * layer.scale, abs=1e-4)


def test_the_floor_of_the_entropy_lies_below_what_such_rows_have():
    rng = np.random.default_rng(0)
    for std in (0.1, 0.5, 1.0, 3.0):
        rows = rng.standard_normal((200, 64))
        rows = std * (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1) / math.log(64)
        assert metrics.floor(np.array([std]), 64)[0] <= entropy.min() + 1e-12
    assert metrics.floor(np.array([0.0]), 64)[0] == pytest.approx(1)
