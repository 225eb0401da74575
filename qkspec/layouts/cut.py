"""Cut the stored tensors of one attention module into heads: pure index arithmetic on rows, and the products of MLA."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qkspec.errors import LayoutError
from qkspec.layouts.heads import Heads, matrix_shape
from qkspec.layouts.layout import Fused, Layout, Separate
from qkspec.qk import Array

Rows = NDArray[np.intp]


def rows_of(part: str, parts: str, units: int | None, counts: Heads, v_width: int = 1) -> Rows:
    """Return the row numbers of one part ("q", "k") of a tensor, head after head.

    The tensor's rows fall into ``units`` equal runs (None: one a key head); a run holds its share of each part. A value
    head is ``v_width`` times as wide as a key head.

    Raises:
        LayoutError: the heads do not divide among the runs.
    """
    runs = counts.kv_heads if units is None else units
    if counts.heads % runs or (counts.kv_heads % runs and set(parts) & set("kv")):
        raise LayoutError(
            f"{counts.heads} query and {counts.kv_heads} key heads do not divide into {runs} equal runs of {parts}"
        )
    share = {
        "q": counts.heads // runs,
        "g": counts.heads // runs,
        "k": counts.kv_heads // runs,
        "v": counts.kv_heads // runs * v_width,
    }
    before = sum(share[name] for name in parts[: parts.index(part)]) * counts.d_q
    run = sum(share[name] for name in parts) * counts.d_q
    return (np.arange(runs)[:, None] * run + before + np.arange(share[part] * counts.d_q)[None, :]).ravel()


def as_matrix(stored: Array, row: Layout) -> Array:
    """Return a stored weight as (rows, d)."""
    rows, d = matrix_shape(stored.shape, row)
    if isinstance(row.weights, Separate) and row.weights.heads_first and stored.ndim == 3:
        return stored.swapaxes(1, 2).reshape(rows, d)
    if row.inputs_first:
        return stored.reshape(d, rows).T
    return stored.reshape(rows, d)


def spread(grouped: Array, groups: int) -> Array:
    """Return the block-diagonal (rows, d) matrix of a grouped 1x1 convolution stored as (rows, d / groups)."""
    rows, width = grouped.shape
    whole = np.zeros((rows, width * groups), grouped.dtype)
    for group in range(groups):
        mine = slice(group * (rows // groups), (group + 1) * (rows // groups))
        whole[mine, group * width : (group + 1) * width] = grouped[mine]
    return whole


def parts_of(row: Layout, counts: Heads) -> tuple[Rows, Rows]:
    """Return the row numbers of q and of k in the tensors that hold them."""
    match row.weights:
        case Separate(q_parts=q_parts, k_parts=k_parts, q_units=q_units, k_units=k_units):
            q_units = counts.heads if q_units is None else q_units
            if row.weights.experts:
                asked = np.arange(counts.heads * counts.d_q).reshape(-1, counts.kv_heads, counts.d_q)
                k_rows = rows_of("k", k_parts, k_units, counts, row.weights.v_width)
                return asked.swapaxes(0, 1).ravel(), k_rows
            v_width = row.weights.v_width
            return rows_of("q", q_parts, q_units, counts), rows_of("k", k_parts, k_units, counts, v_width)
        case Fused(units=units, parts=parts, v_width=v_width):
            return rows_of("q", parts, units, counts, v_width), rows_of("k", parts, units, counts, v_width)
        case _:
            raise LayoutError(f"{row.name}: a latent layout has no rows of its own for q and k")


def span(rows: Rows) -> slice | None:
    """Return the rows as one contiguous slice, or None where they are not."""
    first, last = int(rows.min()), int(rows.max())
    return slice(first, last + 1) if last - first + 1 == rows.size else None


def take(whole: Array, rows: Rows) -> Array:
    """Return rows of a matrix (n, d), without a copy where they lie one after the other: 64 MB a layer of Llama-3-8B.

    Rows of a transposed matrix are copied: products of what lies far apart cost more than the copy.
    """
    if not (np.diff(rows) == 1).all():
        return whole[rows]
    found: Array = whole[rows[0] : rows[-1] + 1]
    return found if found.flags.c_contiguous else found.copy(order="C")


def latent_keys(kv_b: Array, kv_a: Array, counts: Heads) -> Array:
    """Return the (heads, d_q, d) keys of multi-head latent attention. Arguments as of ``latent_key_factor``."""
    return latent_key_factor(kv_b, kv_a, counts) @ np.asarray(kv_a, np.float64)


def latent_key_factor(kv_b: Array, kv_a: Array, counts: Heads) -> Array:
    """Return the (heads, d_q, r + rope) matrices that make keys of ``kv_a x``: shared rotary rows after the others.

    Args:
        kv_b: (heads * (nope + v), r), with d_q = nope + rope.
        kv_a: (r + rope, d).
        counts: the heads.
    """
    r = kv_b.shape[1]
    rope = kv_a.shape[0] - r
    found = np.zeros((counts.heads, counts.d_q, r + rope))
    found[:, : counts.d_q - rope, :r] = kv_b.reshape(counts.heads, -1, r)[:, : counts.d_q - rope]
    found[:, counts.d_q - rope :, r:] = np.eye(rope)
    return found


def latent_queries(factors: Sequence[Array], counts: Heads) -> Array:
    """Return the (heads, d_q, d) queries of multi-head latent attention from (q,) or (q_b, q_a)."""
    whole = np.asarray(factors[0], np.float64)
    if len(factors) == 2:
        whole = whole @ np.asarray(factors[1], np.float64)
    return whole.reshape(counts.heads, counts.d_q, -1)
