"""How the energy of a head spreads over its singular values, and how that of random weights does."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qkspec.attention import effective_rank

F64 = NDArray[np.float64]

WIDE = 512  # of a head: what a random one of more shows is read off one of this width


def sec(sigma: F64, s: int) -> F64:
    """Return the spectral energy concentration SEC(d_q, s), equation 4: the share of Σσ² in the s largest.

    Args:
        sigma: (heads, d_q), largest first.
        s: 1 ≤ s ≤ d_q.

    Returns:
        (heads,) between s/d_q and 1; NaN for an all-zero head and where s > d_q.
    """
    if not 1 <= s <= sigma.shape[1]:
        return np.full(len(sigma), np.nan)
    return np.asarray(_cumulative_shares(sigma)[:, s - 1])


def star(d_q: int) -> int:
    """Return s* = max(1, ⌈d_q/16⌉), the number of directions that the paper calls a few: 4 of 64."""
    return max(1, math.ceil(d_q / 16))


def directions_for(sigma: F64, share: float) -> F64:
    """Return the least s with SEC(d_q, s) ≥ share, (heads,); NaN for an all-zero head."""
    shares = _cumulative_shares(sigma)
    shares[:, -1] = np.where(np.isnan(shares[:, -1]), np.nan, 1.0)  # rounding must not leave 0.99 unreached
    return np.where(np.isnan(shares[:, -1]), np.nan, (shares >= share).argmax(axis=1) + 1.0)


def frobenius(sigma: F64) -> F64:
    """Return ‖M‖_F = √Σσ², (heads,)."""
    top = _top(sigma)
    return np.asarray(top * np.sqrt(np.sum(_relative(sigma) ** 2, axis=1)))


def stable_rank(sigma: F64) -> F64:
    """Return Σσ² / σ_1², (heads,), between 1 and d_q; NaN for an all-zero head."""
    return np.where(_top(sigma) > 0, np.sum(_relative(sigma) ** 2, axis=1), np.nan)


def spectral_effective_rank(sigma: F64) -> F64:
    """Return exp of the entropy of σ²/Σσ², (heads,), between 1 and d_q; NaN for an all-zero head."""
    return effective_rank(_relative(sigma) ** 2)


def positive_fraction(eigenvalues: NDArray[np.complex128]) -> F64:
    """Return the share of the d_q eigenvalues of positive real part, (heads,) (appendix O); NaN if not computed."""
    known = np.isfinite(eigenvalues).all(axis=1)
    return np.where(known, (eigenvalues.real > 0).mean(axis=1), np.nan)


@lru_cache(maxsize=256)
def random_init(d: int, d_k: int, d_q: int, s: int) -> tuple[float, float, float]:
    """Return what independent Gaussian W_q, W_k show: the 5th and 95th percentile of SEC(d_q, s), and the median rank.

    The triangle of a Gaussian matrix's QR factorisation has a known law (Bartlett): chi variables on the diagonal and
    normal ones above it, so no d x d_q matrix is drawn. A head wider than WIDE is drawn with all widths in proportion:
    only their ratios matter then (0.3 % of a head of 1,024). Few wide heads are drawn, since they hardly differ.

    Args:
        d: width of the queries' input.
        d_k: width of the keys' input.
        d_q: width of a head.
        s: of SEC.

    Returns:
        (low, high) of SEC(d_q, s) and the median effective rank.
    """
    ratio = max(1.0, d_q / WIDE)
    sigma = _random_sigma(*(max(1, round(width / ratio)) for width in (d, d_k, d_q)))
    shares, ranks = np.sort(_share_of(sigma, s / ratio)), np.sort(spectral_effective_rank(sigma)) * ratio
    draws = len(ranks)
    return _quantile(shares, 0.05), _quantile(shares, 0.95), float(ranks[(draws - 1) // 2] + ranks[draws // 2]) / 2


def _share_of(sigma: F64, s: float) -> F64:
    """Return SEC(d_q, s) of heads, (heads,), where s may lie between two numbers of directions."""
    cumulative = _cumulative_shares(sigma)
    whole = min(int(s), sigma.shape[1])
    below = cumulative[:, whole - 1] if whole else np.zeros(len(sigma))
    above = cumulative[:, min(whole, sigma.shape[1] - 1)]
    return np.asarray(below + (s - whole) * (above - below) if s > whole else below)


def _top(sigma: F64) -> F64:
    return np.asarray(sigma[:, 0])


def _relative(sigma: F64) -> F64:
    """Return σ/σ_1 (heads, d_q), whose squares neither overflow nor vanish together; zeros stay zero, Inf has none."""
    top = sigma[:, :1]
    return np.asarray(sigma / np.where(top == 0, 1.0, np.where(np.isinf(top), np.nan, top)))


def _cumulative_shares(sigma: F64) -> F64:
    energy = np.cumsum(_relative(sigma) ** 2, axis=1)
    total = energy[:, -1:]
    return np.asarray(np.minimum(energy / np.where(total > 0, total, np.nan), 1.0))


def _quantile(ordered: F64, share: float) -> float:
    """Return what np.quantile does of sorted values. It (and np.median) imports numpy.ma: 2 % of a small analysis."""
    at = share * (len(ordered) - 1)
    below, above = float(ordered[math.floor(at)]), float(ordered[math.ceil(at)])
    t = at - math.floor(at)
    return above - (above - below) * (1 - t) if t >= 0.5 else below + (above - below) * t


@lru_cache(maxsize=64)
def _random_sigma(d: int, d_k: int, d_q: int) -> F64:
    """Draw the singular values of random heads, (draws, d_q): the same for every s of SEC, and not to be written to."""
    rng = np.random.default_rng((d, d_k, d_q, star(d_q)))
    cores = (_bartlett(rng, d, d_q) @ _bartlett(rng, d_k, d_q).T for _ in range(_draws(d_q)))
    sigma: F64 = np.stack([np.linalg.svd(core, compute_uv=False) for core in cores])
    sigma.setflags(write=False)
    return sigma


def _draws(d_q: int) -> int:
    return min(32, max(8, 32 * 128**2 // d_q**2))


def _bartlett(rng: np.random.Generator, d: int, d_q: int) -> F64:
    """Draw R (min(d, d_q), d_q) of the QR factorisation of a d x d_q standard normal matrix."""
    rank = min(d, d_q)
    r = np.triu(rng.standard_normal((rank, d_q)), k=1)
    r[np.arange(rank), np.arange(rank)] = np.sqrt(rng.chisquare(d - np.arange(rank)))
    return r
