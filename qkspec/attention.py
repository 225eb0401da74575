"""Attention maps: their entropy, rank and diagonal, and the map that the weights alone predict.

Rows are queries and each row sums to one. Tokens of a predicted map are independent x ~ N(0, I), normalised and
projected as the model does; real hidden states are not isotropic, so predicted entropies lie above measured ones.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qkspec.latent import through
from qkspec.qk import Array, Norm, QKLayer, QKNorm, Rotary

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Floats = TypeVar("Floats", F32, F64)

DEFAULT_CONTEXT = 1024  # tokens in a row where the config names no number; √(2 ln T) moves by 13 % from 256 to 8192
MAP_TOKENS = 64
_GROUPS = 8  # of tokens, that a jackknife leaves out in turn


@dataclass(frozen=True)
class MapIndices:
    """What an attention map looks like, one value a head.

    Args:
        entropy: (heads,) mean over rows of the row entropy / ln(its length), in [0, 1]; rows of one token are left out.
        rank: (heads,) effective rank (of the squared singular values) / tokens, in (0, 1].
        diagonal: (heads,) mean mass on the diagonal, in [0, 1].
        columns: (heads,) distinct arg-max columns / tokens, in (0, 1].
    """

    entropy: F64
    rank: F64
    diagonal: F64
    columns: F64


def map_indices(maps: F32 | F64, *, causal: bool) -> MapIndices:
    """Read entropy, effective rank, diagonal mass and distinct columns off attention maps.

    Args:
        maps: (heads, tokens, tokens), rows sum to one.
        causal: whether row i has i + 1 entries, which sets the largest entropy that it can have.

    Returns:
        MapIndices; NaN for a head whose map is not finite, and the entropy of a map of one token.
    """
    tokens = maps.shape[-1]
    finite = np.asarray(np.isfinite(maps).all(axis=(1, 2)))
    a = np.where(finite[:, None, None], maps, 1.0 / tokens).astype(np.float64)
    rows = -np.sum(a * np.log(np.where(a > 0, a, 1.0)), axis=2)
    lengths = np.arange(1, tokens + 1) if causal else np.full(tokens, tokens)
    counted = lengths > 1
    entropy = np.full(len(a), np.nan)
    if counted.any():
        entropy = (rows[:, counted] / np.log(lengths[counted])).mean(axis=1)
    energy = np.linalg.eigvalsh(a @ a.transpose(0, 2, 1))  # σ²; what falls below rounding has no weight in an entropy
    rank = effective_rank(np.maximum(energy, 0.0)) / tokens
    diagonal = np.einsum("hii->h", a) / tokens
    best = a.argmax(axis=2)
    hit = np.zeros((len(a), tokens), dtype=bool)  # np.unique would import numpy.ma, a tenth of a small analysis
    hit[np.arange(len(a))[:, None], best] = True
    columns = hit.sum(axis=1) / tokens
    return MapIndices(*(np.where(finite, x, np.nan) for x in (entropy, rank, diagonal, columns)))


def entropy_error(maps: F32 | F64, *, causal: bool) -> F64:
    """Return the standard error of ``MapIndices.entropy`` over draws of independent tokens, from one draw.

    A grouped jackknife: an eighth of the tokens is left out in turn, as queries and as keys, and what is left of each
    row is normalised again. So the error of the keys, which all rows share, is in it. Rather too large than too
    small: 1.0 to 1.4 times the scatter over seeds where a limit could lie, up to twice for frozen heads.

    Args:
        maps: (heads, tokens, tokens), rows sum to one.
        causal: as of ``map_indices``.

    Returns:
        (heads,); NaN for a head whose map is not finite, and where there are fewer than four tokens.
    """
    tokens = maps.shape[-1]
    if tokens < 4:
        return np.full(len(maps), np.nan)
    finite = np.asarray(np.isfinite(maps).all(axis=(1, 2)))
    a = np.where(finite[:, None, None], maps, 1.0 / tokens).astype(np.float64)
    group = np.arange(tokens)[:, None] % min(_GROUPS, tokens) == np.arange(min(_GROUPS, tokens))
    stay = (~group).astype(np.float64)  # (tokens, groups)
    mass = a @ stay
    left = (-a * np.log(np.where(a > 0, a, 1.0))) @ stay
    held = mass > 0  # a row frozen onto a token that is left out has no other mass that float32 can hold
    rows = np.where(held, left / np.where(held, mass, 1.0) + np.log(np.where(held, mass, 1.0)), 0.0)
    lengths = (np.tri(tokens) if causal else np.ones((tokens, tokens))) @ stay
    counted = (lengths > 1) & ~group
    shares = np.where(counted, rows / np.log(np.maximum(lengths, 2.0)), 0.0).sum(axis=1) / counted.sum(axis=0)
    spread = np.sum((shares - shares.mean(axis=1, keepdims=True)) ** 2, axis=1)
    groups = shares.shape[1]
    return np.where(finite, np.sqrt(spread * (groups - 1) / groups), np.nan)


def effective_rank(energy: F64) -> F64:
    """Return exp of the entropy of the shares of energy along the last axis.

    With energy σ² this is the effective rank of this package; Roy & Vetterli (2007) take shares of σ instead.

    Args:
        energy: (..., n), not negative.

    Returns:
        (...), between 1 and n; NaN where all energy is zero.
    """
    total = energy.sum(axis=-1, keepdims=True)
    shares = energy / np.where(total > 0, total, np.nan)
    return np.asarray(np.exp(-np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1)))


def predicted_logits(layer: QKLayer, *, tokens: int = MAP_TOKENS, seed: int = 0) -> F32:
    """Return the logits of random tokens under one module's weights, before the causal mask.

    Input norm, projection with biases, clamp, QK-norm, rotary position, scale and soft cap are applied in the model's
    order. The tokens are drawn from (seed, d, d', tokens) alone, so that every checkpoint of a run sees the same ones.

    Args:
        layer: the module.
        tokens: how many tokens to draw, T'.
        seed: of the draw.

    Returns:
        (heads, T', T') float32.
    """
    x, y = _tokens(seed, layer.q.shape[2], layer.k.shape[2], tokens)
    if x.shape == y.shape and not layer.block.endswith("cross"):
        y = x
    return logits(layer, normalised(x, layer.q_input), normalised(y, layer.k_input))


@lru_cache(maxsize=4)
def _tokens(seed: int, d: int, d_k: int, tokens: int) -> tuple[F32, F32]:
    """Draw (tokens, d) and, for other keys, (tokens, d'): the same for every module, and not to be written to."""
    rng = np.random.default_rng((seed, d, d_k, tokens))
    x, y = (rng.standard_normal((tokens, width), dtype=np.float32) for width in (d, d_k))
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # weights may be anything; a map not finite is NaN
def logits(layer: QKLayer, x: F32, y: F32) -> F32:
    """Return the logits of given inputs under one module's weights, before the causal mask.

    Args:
        layer: the module.
        x: (T', d) what its query projection is given, behind the input norm.
        y: (T', d') what its key projection is given; x itself in self-attention.

    Returns:
        (heads, T', T') float32.
    """
    q = through(x, layer.q_factors) if layer.q_factors else _project(x, layer.q, layer.q_bias, layer.clamp)
    k = through(y, layer.k_factors) if layer.k_factors else _project(y, layer.k, layer.k_bias, layer.clamp)
    scale: F32 | float = layer.scale
    if layer.qk_norm is not None:
        q, k = _qknormalised(q, k, layer.qk_norm)
        if layer.qk_norm.temperature is not None:
            scale = np.asarray(layer.qk_norm.temperature, dtype=np.float32)[:, None, None]
    if layer.rotary is not None:
        q, k = _rotate(q, layer.rotary), _rotate(k, layer.rotary)
    k = np.repeat(k, layer.heads // layer.kv_heads, axis=0)
    found = (q @ k.transpose(0, 2, 1)) * scale
    if layer.softcap is not None:
        found = layer.softcap * np.tanh(found / layer.softcap)
    return found.astype(np.float32, copy=False)


def predicted_map(layer: QKLayer, *, tokens: int | None = None, seed: int = 0) -> F32:
    """Return the attention maps that the weights alone predict, (heads, T', T') float32.

    T' is at most 64 however long the context T. How far a row of Gaussian logits of standard deviation s freezes is set
    by κ = s / √(2 ln T) and hardly by T, so the logits are multiplied by √(ln T' / ln T), which keeps κ.

    Args:
        layer: the module; context None is read as 1024 tokens.
        tokens: T' ≥ 2; default min(64, T).
        seed: of the draw.
    """
    context = max(layer.context or DEFAULT_CONTEXT, 2)
    drawn = min(MAP_TOKENS, context) if tokens is None else tokens
    drawn_logits = predicted_logits(layer, tokens=drawn, seed=seed)
    return softmax(drawn_logits * np.float32(np.sqrt(np.log(drawn) / np.log(context))), causal=layer.causal)


def measured(layer: QKLayer, x: F32, y: F32 | None = None) -> tuple[MapIndices, F64]:
    """Return the indices of a module's real attention maps, and the standard deviation of their logits.

    Args:
        layer: the module.
        x: (batch, tokens, d) what the module was given in a forward pass, behind the input norm.
        y: (batch, tokens, d') what its keys were given; x itself in self-attention.

    Returns:
        MapIndices, the mean over the batch; and (heads,) the standard deviation over all logits that the mask leaves.
    """
    keys = x if y is None else y
    found, spreads = [], []
    for own, other in zip(x, keys, strict=True):
        given = logits(layer, own, other)
        found.append(map_indices(softmax(given, causal=layer.causal), causal=layer.causal))
        seen = np.tril(np.ones(given.shape[-2:], dtype=bool)) if layer.causal else np.ones(given.shape[-2:], dtype=bool)
        spreads.append(given[:, seen].astype(np.float64).std(axis=1))
    columns = ([getattr(one, name) for one in found] for name in ("entropy", "rank", "diagonal", "columns"))
    return MapIndices(*(np.mean(column, axis=0) for column in columns)), np.asarray(np.mean(spreads, axis=0))


def softmax(scores: F32, *, causal: bool) -> F32:
    """Return the softmax over the last axis of (..., T, T) logits, over the keys up to the query if causal."""
    if causal:
        future = np.triu(np.ones(scores.shape[-2:], dtype=bool), k=1)
        scores = np.where(future, np.float32(-np.inf), scores)
    with np.errstate(invalid="ignore"):  # Inf - Inf: the map becomes NaN, and its indices with it
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: F32 = weights / weights.sum(axis=-1, keepdims=True)
    return result


def entropy_floor(logit_norm: F64, tokens: int) -> F64:
    """Return the least entropy (nats) of a softmax over mean-zero logits of Euclidean norm at most ``logit_norm``.

    The bound of σReparam (Zhai et al., 2023), attained by one logit above n - 1 equal ones: with β = exp(-s√(n/(n-1))),
    ln(1 + (n-1)β) + s√(n(n-1)) β / (1 + (n-1)β).

    Args:
        logit_norm: (...) s ≥ 0.
        tokens: n ≥ 2 keys.
    """
    n = float(tokens)
    beta = np.exp(-logit_norm * np.sqrt(n / (n - 1)))
    crowd = 1 + (n - 1) * beta
    return np.asarray(np.log(crowd) + logit_norm * np.sqrt(n * (n - 1)) * beta / crowd)


def normalised(x: F32, norm: Norm | None) -> F32:
    """Return tokens (T', d) behind a norm, as the projections are given them."""
    if norm is None:
        return x
    if norm.kind == "layer":
        x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    if norm.gain is not None:
        x = x * norm.gain.astype(np.float32)
    return x if norm.bias is None else x + norm.bias.astype(np.float32)


def _project(x: F32, w: Array, bias: Array | None, clamp: float | None) -> F32:
    """Project tokens (T', d) by w (heads, d_q, d) to (heads, T', d_q)."""
    heads, d_q, d = w.shape
    with np.errstate(over="ignore", invalid="ignore"):
        flat = np.asarray(w, dtype=np.float32).reshape(heads * d_q, d) @ x.T  # this way round BLAS is a quarter faster
        out = flat.reshape(heads, d_q, len(x)).transpose(0, 2, 1)
        if bias is not None:
            out = out + bias[:, None, :].astype(np.float32)
    return out if clamp is None else np.clip(out, -clamp, clamp)


def _qknormalised(q: F32, k: F32, norm: QKNorm) -> tuple[F32, F32]:
    return (
        _over_heads(q, norm, norm.q_gain, norm.q_bias),
        _over_heads(k, norm, norm.k_gain, norm.k_bias),
    )


def _over_heads(x: F32, norm: QKNorm, gain: Array | None, bias: Array | None) -> F32:
    """Normalise (heads, T', d_q) over each head, or over all heads of a token together."""
    axis: int | tuple[int, int] = 2 if norm.per_head else (0, 2)
    if norm.kind == "layer":
        x = x - x.mean(axis=axis, keepdims=True)
    total = np.sum(x * x, axis=axis, keepdims=True)
    count = 1 if norm.kind == "l2" else (x.shape[2] if norm.per_head else x.shape[0] * x.shape[2])
    x = x / np.sqrt(np.maximum(total / count, np.finfo(np.float32).tiny))
    if gain is not None:
        x = x * gain[:, None, :].astype(np.float32)
    return x if bias is None else x + bias[:, None, :].astype(np.float32)


def rotated(k: Array, rotary: Rotary, offset: int) -> F64:
    """Return R_Δ W_k for key projections k (kv_heads, d_q, d'): between tokens Δ apart M is W_q' R_Δ W_k.

    Args:
        k: (kv_heads, d_q, d').
        rotary: the module's rotary embedding.
        offset: Δ, the key's position less the query's.
    """
    columns = np.asarray(k, dtype=np.float64).transpose(0, 2, 1)
    cos, sin = _angles(rotary, np.full(columns.shape[1], float(offset)))
    return _turn(columns, rotary, cos, sin).transpose(0, 2, 1)


def _rotate(x: F32, rotary: Rotary) -> F32:
    """Rotate (heads, T', d_q) by position 0 .. T' - 1."""
    cos, sin = _angles(rotary, np.arange(x.shape[1], dtype=np.float64))
    return _turn(x, rotary, cos.astype(np.float32), sin.astype(np.float32))


def _angles(rotary: Rotary, positions: F64) -> tuple[F64, F64]:
    half = rotary.dims // 2
    angle = positions[:, None] * rotary.theta ** (-np.arange(half) / half)
    return np.cos(angle), np.sin(angle)


def _turn(x: Floats, rotary: Rotary, cos: Floats, sin: Floats) -> Floats:
    """Rotate (heads, n, d_q) by angles of cosines and sines (n, dims / 2)."""
    half, stop = rotary.dims // 2, rotary.start + rotary.dims
    out = x.copy()
    if rotary.pairing == "halves":
        first, second = slice(rotary.start, rotary.start + half), slice(rotary.start + half, stop)
    else:
        first, second = slice(rotary.start, stop, 2), slice(rotary.start + 1, stop, 2)
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out
