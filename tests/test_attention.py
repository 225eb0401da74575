import math

import numpy as np
import pytest
import torch
from build import collapsed_layer, random_layer
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec import attention
from qkspec.qk import Norm, QKNorm, Rotary


def test_the_three_matrices_of_appendix_p():
    uniform, identity = np.full((5, 5), 0.2), np.eye(5)
    column = np.zeros((5, 5))
    column[:, 0] = 1
    found = attention.map_indices(np.stack([uniform, identity, column]), causal=False)
    np.testing.assert_allclose(found.entropy, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found.rank, [0.2, 1, 0.2], atol=1e-12)
    np.testing.assert_allclose(found.diagonal, [0.2, 1, 0.2])
    np.testing.assert_allclose(found.columns, [0.2, 1, 0.2])


def test_indices_against_a_naive_loop():
    maps = np.random.default_rng(0).dirichlet(np.full(7, 0.3), (3, 7))
    found = attention.map_indices(maps, causal=False)
    for h, a in enumerate(maps):
        rows = [-sum(p * math.log(p) for p in row if p > 0) / math.log(7) for row in a.tolist()]
        assert found.entropy[h] == pytest.approx(sum(rows) / 7)
        energy = np.linalg.eigvalsh(a.T @ a).clip(0)
        share = energy[energy > 0] / energy.sum()
        assert found.rank[h] == pytest.approx(np.exp(-np.sum(share * np.log(share))) / 7)
        assert found.columns[h] == len({max(range(7), key=row.__getitem__) for row in a.tolist()}) / 7


def test_causal_rows_are_held_against_their_own_length():
    a = np.tril(np.ones((6, 6)))
    a /= a.sum(axis=1, keepdims=True)
    assert attention.map_indices(a[None], causal=True).entropy[0] == pytest.approx(1)


@pytest.mark.parametrize("causal", [True, False])
def test_a_map_of_one_token_has_no_entropy(causal):
    found = attention.map_indices(np.ones((2, 1, 1)), causal=causal)
    assert np.isnan(found.entropy).all()
    assert (found.diagonal == 1).all()


def test_a_map_that_is_not_finite_has_no_indices():
    maps = np.full((2, 4, 4), 0.25)
    maps[1, 0, 0] = np.nan
    found = attention.map_indices(maps, causal=False)
    assert np.isfinite(found.entropy[0])
    assert all(np.isnan(x[1]) for x in (found.entropy, found.rank, found.diagonal, found.columns))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.floats(0, 30), st.integers(0, 2**32))
def test_entropy_floor_is_a_bound_and_is_attained(n, norm, seed):
    def entropy(logits):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return -np.sum(p[p > 0] * np.log(p[p > 0]))

    floor = attention.entropy_floor(np.array(norm), n)
    logits = np.random.default_rng(seed).standard_normal(n)
    logits -= logits.mean()
    assert entropy(logits * norm / np.linalg.norm(logits)) >= floor - 1e-9
    peak = -np.ones(n)
    peak[0] = n - 1
    assert entropy(peak * norm / np.linalg.norm(peak)) == pytest.approx(float(floor), abs=1e-9)


def reference(layer, tokens):
    """The same logits, written as a model would in torch float64, from the same draw."""
    rng = np.random.default_rng((0, layer.q.shape[2], layer.k.shape[2], tokens))
    x = torch.from_numpy(rng.standard_normal((tokens, layer.q.shape[2]), dtype=np.float32)).double()
    norm = layer.q_input
    if norm.kind == "layer":
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=0)
    else:
        x = x / x.pow(2).mean(-1, keepdim=True).sqrt()
    x = x * torch.tensor(norm.gain) + torch.tensor(norm.bias)
    out = []
    for h in range(layer.heads):
        g = h // (layer.heads // layer.kv_heads)
        q = x @ torch.tensor(layer.q[h]).T + torch.tensor(layer.q_bias[h])
        k = x @ torch.tensor(layer.k[g]).T + torch.tensor(layer.k_bias[g])
        if layer.qk_norm is not None:
            q = torch.nn.functional.rms_norm(q, q.shape[-1:], eps=0) * torch.tensor(layer.qk_norm.q_gain[h])
            k = torch.nn.functional.rms_norm(k, k.shape[-1:], eps=0) * torch.tensor(layer.qk_norm.k_gain[g])
        if layer.rotary is not None:
            q, k = rotate(q, layer.rotary), rotate(k, layer.rotary)
        logits = q @ k.T * layer.scale
        out.append(layer.softcap * torch.tanh(logits / layer.softcap) if layer.softcap else logits)
    return torch.stack(out).numpy()


def rotate(x, rotary):
    """Rotary position by complex multiplication."""
    half = rotary.dims // 2
    angle = torch.arange(len(x))[:, None] * rotary.theta ** (-torch.arange(half).double() / half)
    part = x[:, rotary.start : rotary.start + rotary.dims]
    if rotary.pairing == "halves":
        z = torch.complex(part[:, :half], part[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        turned = torch.cat([z.real, z.imag], dim=1)
    else:
        z = torch.complex(part[:, 0::2], part[:, 1::2]) * torch.polar(torch.ones_like(angle), angle)
        turned = torch.stack([z.real, z.imag], dim=2).flatten(1)
    return torch.cat([x[:, : rotary.start], turned, x[:, rotary.start + rotary.dims :]], dim=1)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
@pytest.mark.parametrize("normed", [True, False])
def test_predicted_logits_against_torch(kind, pairing, normed):
    rng = np.random.default_rng(4)
    norm = Norm(kind, np.exp(0.2 * rng.standard_normal(32)), 0.1 * rng.standard_normal(32))
    gains = QKNorm("rms", q_gain=rng.uniform(0.5, 2, (4, 8)), k_gain=rng.uniform(0.5, 2, (2, 8)))
    layer = random_layer(
        kv_heads=2, q_input=norm, k_input=norm, q_bias=rng.standard_normal((4, 8)), k_bias=rng.standard_normal((2, 8)),
        rotary=Rotary(4, 100.0, pairing, start=2), softcap=3.0, qk_norm=gains if normed else None,
    )  # fmt: skip
    np.testing.assert_allclose(attention.predicted_logits(layer, tokens=12), reference(layer, 12), atol=2e-5)


def test_the_map_is_the_same_for_every_checkpoint_and_sums_to_one():
    layer = random_layer(causal=True)
    a = attention.predicted_map(layer)
    np.testing.assert_array_equal(a, attention.predicted_map(layer))
    np.testing.assert_allclose(a.sum(axis=2), 1, rtol=1e-5)
    assert (np.triu(a[0], k=1) == 0).all()


@pytest.mark.parametrize("kappa", [0.3, 0.6, 1.0, 1.5, 2.3])
def test_entropy_at_a_freezing_ratio_hardly_depends_on_the_row_length(kappa):
    """Few tokens at the same κ stand for many: what makes a 64-token map of a 1024-token row honest."""
    expected = {0.3: 0.92, 0.6: 0.7, 1.0: 0.4, 1.5: 0.25, 2.3: 0.13}[kappa]
    for context in (64, 1024):
        layer = random_layer(d_q=64, d=256, heads=6, context=context)
        std = np.linalg.norm(np.einsum("hqd,hqe->hde", layer.q, layer.k), axis=(1, 2)).mean() * layer.scale
        factor = kappa * np.sqrt(2 * np.log(context)) / std
        louder = layer.__class__(**{**layer.__dict__, "scale": layer.scale * factor})
        entropy = attention.map_indices(attention.predicted_map(louder), causal=False).entropy.mean()
        assert entropy == pytest.approx(expected, abs=0.07)


def test_weights_that_overflow_float32_give_no_map():
    layer = collapsed_layer(size=1e60)
    assert np.isnan(attention.map_indices(attention.predicted_map(layer), causal=False).entropy).all()


def test_cosine_attention_uses_its_temperature():
    layer = random_layer(qk_norm=QKNorm("l2", temperature=np.full(4, 7.0)))
    logits = attention.predicted_logits(layer)
    assert np.abs(logits).max() <= 7.0 + 1e-4
    assert np.abs(logits).max() > 3.5


def jackknifed(a, causal, groups=8):
    """The same error, by leaving tokens out of a map one group after the other."""
    entropies = []
    for g in range(groups):
        stay = [i for i in range(len(a)) if i % groups != g]
        rows = []
        for i in stay:
            row = [a[i][j] for j in stay if j <= i or not causal]
            if len(row) > 1:
                p = [w / sum(row) for w in row]
                rows.append(-sum(w * math.log(w) for w in p if w > 0) / math.log(len(p)))
        entropies.append(sum(rows) / len(rows))
    mean = sum(entropies) / groups
    return math.sqrt(sum((e - mean) ** 2 for e in entropies) * (groups - 1) / groups)


@pytest.mark.parametrize("causal", [True, False])
def test_entropy_error_against_a_naive_jackknife(causal):
    maps = np.random.default_rng(0).dirichlet(np.full(20, 0.3), (3, 20))
    if causal:
        maps = np.tril(maps)
        maps /= maps.sum(axis=2, keepdims=True)
    found = attention.entropy_error(maps, causal=causal)
    assert found == pytest.approx([jackknifed(a.tolist(), causal) for a in maps], rel=1e-9)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1.0, 3.0, 10.0, 100.0])
def test_entropy_error_is_the_scatter_over_seeds(size, causal):
    layer = collapsed_layer(size=size * 8, causal=causal)
    maps = [attention.predicted_map(layer, seed=seed) for seed in range(60)]
    scatter = np.std([attention.map_indices(a, causal=causal).entropy for a in maps])
    said = np.mean([attention.entropy_error(a, causal=causal) for a in maps])
    assert 0.7 < said / scatter < 2


def test_entropy_error_of_what_has_none():
    frozen = np.eye(16, dtype=np.float32)[None]
    assert attention.entropy_error(frozen, causal=False) == pytest.approx(0.0)
    assert np.isnan(attention.entropy_error(np.full((1, 16, 16), np.nan), causal=False)).all()
    assert np.isnan(attention.entropy_error(np.full((1, 3, 3), 1 / 3), causal=False)).all()
