"""Cutting rows into heads, against a reference that walks them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.errors import LayoutError
from qkspec.layouts.cut import latent_keys, latent_queries, rows_of, span, spread
from qkspec.layouts.heads import Heads


def walk(part: str, parts: str, runs: int, counts: Heads) -> list[int]:
    """Return the rows of one part by reading the tensor from top to bottom."""
    found, row = [], 0
    for _ in range(runs):
        for name in parts:
            heads = counts.heads if name in "qg" else counts.kv_heads
            for _ in range(heads // runs * counts.d_q):
                if name == part:
                    found.append(row)
                row += 1
    return found


@settings(deadline=None, max_examples=60)
@given(
    kv=st.integers(1, 4),
    group=st.integers(1, 3),
    d_q=st.integers(1, 5),
    parts=st.permutations("qkv").map("".join),
    per_group=st.booleans(),
)
def test_rows_are_those_of_a_walk_from_top_to_bottom(
    kv: int, group: int, d_q: int, parts: str, per_group: bool
) -> None:
    counts = Heads(kv * group, kv, d_q)
    runs = kv if per_group else 1
    for part in "qk":
        rows = rows_of(part, parts, None if per_group else 1, counts)
        assert rows.tolist() == walk(part, parts, runs, counts)
    q, k, v = (set(rows_of(part, parts, runs, counts).tolist()) for part in "qkv")
    assert not q & k
    assert q | k | v == set(range((kv * group + 2 * kv) * d_q))


def test_heads_that_do_not_divide_among_runs_are_refused() -> None:
    with pytest.raises(LayoutError, match="4 equal runs"):
        rows_of("q", "qvk", 4, Heads(6, 6, 2))
    with pytest.raises(LayoutError, match="2 equal runs"):
        rows_of("k", "qkv", 2, Heads(4, 1, 2))


def test_span_is_only_for_rows_without_gaps() -> None:
    assert span(np.arange(3, 9)) == slice(3, 9)
    assert span(np.array([0, 1, 3])) is None


def test_spread_is_a_grouped_convolution() -> None:
    torch = pytest.importorskip("torch")
    convolution = torch.nn.Conv1d(12, 8, 1, groups=4, bias=False)
    x = torch.randn(5, 12, 1)
    dense = spread(convolution.weight.detach().numpy()[..., 0], 4)
    np.testing.assert_allclose(
        convolution(x).detach().numpy()[..., 0], x[..., 0].numpy() @ dense.T, rtol=1e-5, atol=1e-6
    )


def test_latent_attention_shares_its_rotary_rows() -> None:
    rng = np.random.default_rng(0)
    heads, nope, rope, v, r, d = 3, 4, 2, 5, 6, 7
    counts = Heads(heads, heads, nope + rope)
    kv_b, kv_a = rng.standard_normal((heads * (nope + v), r)), rng.standard_normal((r + rope, d))
    keys = latent_keys(kv_b, kv_a, counts)
    for head in range(heads):
        mine = kv_b[head * (nope + v) : head * (nope + v) + nope]
        np.testing.assert_allclose(keys[head, :nope], mine @ kv_a[:r])
        np.testing.assert_array_equal(keys[head, nope:], kv_a[r:])
    q_b, q_a = rng.standard_normal((heads * (nope + rope), 4)), rng.standard_normal((4, d))
    np.testing.assert_allclose(latent_queries([q_b, q_a], counts)[1], (q_b @ q_a)[nope + rope : 2 * (nope + rope)])
