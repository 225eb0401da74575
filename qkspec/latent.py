"""Logits through the norms inside multi-head latent attention, where M alone does not tell them.

q = U_q n(D_q x) and k = U_k n(D_k y), where n divides the latent by its root mean square and multiplies by a gain. The
division is by one number a token: for x ~ N(0, I) behind an input norm of gain γ, the mean square of D x is
‖D diag(γ)‖²_F / r, and r is in the hundreds, so that what a token's own number adds is small. With that mean in its
place the logits are x' M_eff y again, and standard deviation and trace follow as they do without the norm.
"""

import numpy as np
from numpy.typing import NDArray

from qkspec.qk import Array, Factored, Norm, QKLayer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
EPSILON = 1e-6  # of the norm, in every model that has one here


def through(x: F32, factors: Factored) -> F32:
    """Return (heads, tokens, d_q): tokens (tokens, d) through both factors, the norm between them exact."""
    with np.errstate(over="ignore", invalid="ignore"):
        latent: F32 = x @ np.asarray(factors.down, np.float32).T
        normed = latent[:, : len(factors.gain)]
        size = np.sqrt(np.mean(normed * normed, axis=1, keepdims=True) + EPSILON)
        latent[:, : len(factors.gain)] = normed / size * np.asarray(factors.gain, np.float32)
        return np.asarray(latent @ np.asarray(factors.up, np.float32).transpose(0, 2, 1), np.float32)


def logit_std(layer: QKLayer) -> F64:
    """Return the standard deviation of a logit between independent tokens x ~ N(0, I), scale · ‖M_eff‖_F, (heads,)."""
    up_q, down_q, up_k, down_k = _effective(layer)
    with np.errstate(over="ignore", invalid="ignore"):
        gram_q = up_q @ (down_q @ down_q.T) @ up_q.transpose(0, 2, 1)
        gram_k = up_k @ (down_k @ down_k.T) @ up_k.transpose(0, 2, 1)
        return np.asarray(np.sqrt(np.maximum(np.sum(gram_q * gram_k, axis=(1, 2)), 0.0)) * abs(layer.scale))


def mean_diagonal_logit(layer: QKLayer) -> F64:
    """Return the mean logit of a token on itself, scale · trace(M_eff), (heads,)."""
    up_q, down_q, up_k, down_k = _effective(layer)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sum(up_q @ (down_q @ down_k.T) * up_k, axis=(1, 2)) * layer.scale)


def _effective(layer: QKLayer) -> tuple[F64, F64, F64, F64]:
    """Return U_q (heads, d_q, r_q), D_q (r_q, d), U_k and D_k, with gains and the typical size of latents folded in."""
    return (
        *_folded(layer.q, layer.q_factors, layer.q_input),
        *_folded(layer.k, layer.k_factors, layer.k_input),
    )


def _folded(whole: Array, factors: Factored | None, norm: Norm | None) -> tuple[F64, F64]:
    gain = np.ones(whole.shape[2]) if norm is None or norm.gain is None else np.asarray(norm.gain, np.float64)
    if factors is None:
        return np.asarray(whole, np.float64), np.diag(gain)
    down = np.asarray(factors.down, np.float64) * gain
    n = len(factors.gain)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        down[:n] *= (np.asarray(factors.gain, np.float64) * np.sqrt(n) / np.linalg.norm(down[:n]))[:, None]
    return np.asarray(factors.up, np.float64), down
