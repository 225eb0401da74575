"""Singular values of W_q'W_k for every head without forming the product: NumPy and LAPACK, float64.

M = W_q'W_k is d x d' of rank at most d_q. Triangular factors of W_q' = A R and W_k' = B S leave a d_q x d_q core R S'
with the same nonzero singular values. R is the Cholesky factor of the Gram matrix W_q W_q' where that matrix's own
eigenvalues prove it right to 1e-10 (see WELL_CONDITIONED), and comes from Householder QR of the weights elsewhere:
on heads of condition 1e13 Cholesky fails and a full SVD of the product loses five digits, but QR keeps every value.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkspec.qk import Array

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Cholesky changes R by a relative c ε κ(G)/2, with κ(G) = λ_1/λ_n of the Gram matrix and c a few units, and a relative
# change of R moves no singular value of the core by more. Trained heads, collapsed ones too, had κ(G) of 1e2 to 1e4.
WELL_CONDITIONED = 1e-5  # λ_n/λ_1 above which R may come from the Gram matrix
PANEL = 2048  # columns taken up at a time, so that their float64 copies stay in the processor's cache
QR_BLOCK = 24  # columns a panel of LAPACK's blocked QR; 24 to 32 were fastest for d_q of 64 and 128
SMALL_QR = 1 << 18  # elements of W below which importing SciPy's blocked QR (0.2 s) costs more than it saves
ORDINARY = 2.0**-20, 2.0**20  # sizes of float32 weights whose products are summed in float32


@dataclass(frozen=True)
class Spectra:
    """Everything about a module's heads that linear algebra alone tells. A head with NaN or Inf weights is all NaN.

    Args:
        sigma: (heads, d_q) singular values of M, largest first; zeros beyond min(d, d', d_q).
        sigma1_q: (heads,) spectral norm of each W_q.
        sigma1_k: (kv_heads,) spectral norm of each W_k.
        trace: (heads,) trace of M, the sum over elements of W_q∘W_k; NaN for cross-attention with d ≠ d'.
        eigenvalues: (heads, d_q) complex, the nonzero eigenvalues of M, which are those of C = W_k W_q'; NaN if d ≠ d'.
            Those of float32 weights carry an error near 1e-7 ‖W_q‖‖W_k‖, that of rounding the weights themselves.
        gained: (heads,) ‖diag(γ_q) M diag(γ_k)‖_F, likewise to 1e-7 for float32 weights; ‖M‖_F without gains.
        gained_trace: (heads,) trace of diag(γ_q) M diag(γ_k); NaN if d ≠ d'.
    """

    sigma: F64
    sigma1_q: F64
    sigma1_k: F64
    trace: F64
    eigenvalues: NDArray[np.complex128]
    gained: F64
    gained_trace: F64


@dataclass(frozen=True)
class Weights:
    """A module's q and k with what was learned of their sizes.

    Args:
        q: (heads, d_q, d).
        k: (kv_heads, d_q, d').
        size_q: (heads,) the power of two that brings a head's largest element to between 0.5 and 1; NaN if not finite.
        size_k: (kv_heads,) likewise.
        gain_q: (d,) or None; gain_k: (d',) or None.
        eigenvalues: whether those of M are wanted, which take a quarter of the time.
    """

    q: Array
    k: Array
    size_q: F64
    size_k: F64
    gain_q: Array | None = None
    gain_k: Array | None = None
    eigenvalues: bool = True

    @classmethod
    def of(cls, q: Array, k: Array, gain_q: Array | None = None, gain_k: Array | None = None) -> "Weights":
        """Learn the sizes of a module's weights."""
        return cls(q, k, np.array([size_of(w) for w in q]), np.array([size_of(w) for w in k]), gain_q, gain_k)

    @property
    def owner(self) -> NDArray[np.intp]:
        """(heads,) the key head of each query head."""
        return np.arange(len(self.q)) // (len(self.q) // len(self.k))

    @property
    def good(self) -> Flags:
        """(heads,) whether a head's weights are finite."""
        return np.asarray(np.isfinite(self.size_q) & np.isfinite(self.size_k[self.owner]))

    @property
    def square(self) -> bool:
        """Whether M is d x d."""
        return bool(self.q.shape[2] == self.k.shape[2])


@dataclass(frozen=True)
class Products:
    """All that is needed of the long side of a module, its weights divided by their sizes; zero where not finite.

    Args:
        gram_q: (heads, d_q, d_q) W_q W_q'; gram_k: (kv_heads, d_q, d_q) W_k W_k'.
        cross: (heads, d_q, d_q) C = W_k W_q'.
        trace: (heads,) of M.
        gained: (heads,) ‖diag(γ_q) M diag(γ_k)‖_F; gained_trace: (heads,). Both zero without gains.
    """

    gram_q: F64
    gram_k: F64
    cross: F64
    trace: F64
    gained: F64
    gained_trace: F64


def singular_values(q: Array, k: Array) -> F64:
    """Return the singular values of W_q'W_k for every query head, largest first.

    With the thin factorisations W_q' = A R and W_k' = B S, the product is A (R S') B'. A and B have orthonormal
    columns, so the d_q x d_q core R S' has the nonzero singular values of the d x d' product.

    Args:
        q: (heads, d_q, d) query projections.
        k: (kv_heads, d_q, d') key projections; kv_heads divides heads. Each is factored once for its group.

    Returns:
        (heads, d_q), float64; zeros beyond min(d, d', d_q), NaN for a head whose weights are not finite.
    """
    return spectra(q, k).sigma


def spectra(
    q: Array, k: Array, gain_q: Array | None = None, gain_k: Array | None = None, *, eigenvalues: bool = True
) -> Spectra:
    """Return singular values, projection norms, traces and eigenvalues of every head.

    Args:
        q: (heads, d_q, d).
        k: (kv_heads, d_q, d'); kv_heads divides heads.
        gain_q: (d,) γ_q, folded into ``gained`` and ``gained_trace`` only; None is all ones.
        gain_k: (d',) γ_k.
        eigenvalues: whether those of M are wanted; they are NaN otherwise.

    Returns:
        Spectra, float64.
    """
    weights = replace(Weights.of(q, k, gain_q, gain_k), eigenvalues=eigenvalues)
    return finish(weights, products(weights))


def products(weights: Weights) -> Products:
    """Pass once over the weights. float32 weights of ordinary size are multiplied as they are where 1e-7 will do."""
    heads, d_q, d = weights.q.shape
    made = Products(*(np.zeros((n, d_q, d_q)) for n in (heads, len(weights.k), heads)), *np.zeros((3, heads)))
    largest = d_q * min(PANEL, max(d, weights.k.shape[2]))
    rooms = _Rooms(*(_Room.of(largest) for _ in range(4)))
    for g in np.flatnonzero(np.isfinite(weights.size_k)):
        _add_group(made, weights, rooms, int(g), np.flatnonzero(weights.good & (weights.owner == g)))
    return made


def finish(weights: Weights, made: Products) -> Spectra:
    """Return the spectra from the products; the weights are read again only for heads that need QR."""
    good, owner = weights.good, weights.owner
    heads, d_q, _ = weights.q.shape
    size = np.where(good, weights.size_q, np.nan) * weights.size_k[owner]
    lam_q, lam_k = (np.asarray(np.linalg.eigvalsh(gram), np.float64) for gram in (made.gram_q, made.gram_k))
    order = _order(made, owner, good)
    lower_q = _lower(weights.q, weights.size_q, made.gram_q, lam_q, order[owner])
    lower_k = _lower(weights.k, weights.size_k, made.gram_k, lam_k, order)
    sigma = np.asarray(np.linalg.svd(lower_q.transpose(0, 2, 1) @ lower_k[owner], compute_uv=False))
    sigma[:, min(weights.q.shape[2], weights.k.shape[2], d_q) :] = 0.0
    frobenius = np.sqrt(np.sum(sigma**2, axis=1))
    plain = weights.gain_q is None and weights.gain_k is None
    unknown = np.full(heads, np.nan)
    wanted = weights.square and weights.eigenvalues
    eigenvalues = np.linalg.eigvals(made.cross).astype(np.complex128) if wanted else unknown[:, None] * sigma
    return Spectra(
        sigma * size[:, None],
        np.sqrt(np.maximum(lam_q[:, -1], 0.0)) * np.where(good, weights.size_q, np.nan),
        np.sqrt(np.maximum(lam_k[:, -1], 0.0)) * weights.size_k,
        made.trace * size if weights.square else unknown,
        eigenvalues * size[:, None],
        (frobenius if plain else made.gained) * size,
        (made.trace if plain else made.gained_trace) * size if weights.square else unknown,
    )


@dataclass(frozen=True)
class _Room:
    """Memory for a panel, used again for each: asking for fresh memory takes as long as the arithmetic on it."""

    double: F64
    single: NDArray[np.float32]

    @classmethod
    def of(cls, elements: int) -> "_Room":
        return cls(np.empty(elements), np.empty(elements, np.float32))

    def like(self, part: Array) -> Array:
        """Return the memory as an array of the shape and dtype of ``part``."""
        memory = self.single if part.dtype == np.float32 else self.double
        return memory[: part.size].reshape(part.shape)

    def doubled(self, part: Array) -> F64:
        """Return ``part`` as float64."""
        out = self.double[: part.size].reshape(part.shape)
        np.copyto(out, part)
        return out


class _Rooms(NamedTuple):
    """Of a key head's panel, of that panel times both gains, of a query head's, and of either times its own gain."""

    key: _Room
    both: _Room
    query: _Room
    gained: _Room


def _add_group(made: Products, weights: Weights, rooms: _Rooms, g: int, members: NDArray[np.intp]) -> None:
    """Fill in the products of key head g and its query heads, a panel of columns at a time."""
    d_q = weights.q.shape[1]
    single, gains = _is_single(weights, g, members), weights.gain_q is not None or weights.gain_k is not None
    gained_k, gained_q = np.zeros((d_q, d_q)), np.zeros((len(members), d_q, d_q))
    for start in range(0, max(weights.q.shape[2], weights.k.shape[2]), PANEL):
        at = slice(start, start + PANEL)
        key = _Panel.of(weights.k[g][:, at], None if single else weights.size_k[g], rooms.key)
        made.gram_k[g] += key.unit @ key.unit.T
        both = _times_gains(weights, key.unit, at, rooms.both) if weights.square else key.unit
        if gains:
            gained = _times(key.plain, weights.gain_k, at, rooms.gained)
            gained_k += gained @ gained.T
        for i, h in enumerate(members):
            query = _Panel.of(weights.q[h][:, at], None if single else weights.size_q[h], rooms.query)
            made.gram_q[h] += query.unit @ query.unit.T
            if weights.square:
                if weights.eigenvalues:
                    made.cross[h] += key.plain @ query.plain.T
                made.trace[h] += np.vdot(query.unit, key.unit)
                made.gained_trace[h] += np.vdot(query.unit, both)
            if gains:
                gained = _times(query.plain, weights.gain_q, at, rooms.gained)
                gained_q[i] += gained @ gained.T
    made.gained[members] = np.sqrt(np.maximum(np.sum(gained_q * gained_k, axis=(1, 2)), 0.0))
    if single:
        _divide(made, weights, g, members)


def _divide(made: Products, weights: Weights, g: int, members: NDArray[np.intp]) -> None:
    """Divide the products of weights that were multiplied as they are by their sizes, exactly: powers of two."""
    size_q, size_k = weights.size_q[members], weights.size_k[g]
    made.gram_k[g] /= size_k**2
    made.gram_q[members] /= (size_q**2)[:, None, None]
    made.cross[members] /= (size_q * size_k)[:, None, None]
    for each in (made.trace, made.gained, made.gained_trace):
        each[members] /= size_q * size_k


@dataclass(frozen=True)
class _Panel:
    """Some columns of one head's weights: in float64, and as they are multiplied where 1e-7 will do."""

    unit: F64
    plain: Array

    @classmethod
    def of(cls, part: Array, size: float | None, room: _Room) -> "_Panel":
        """Take up columns, in units of ``size``; None leaves them as they are."""
        unit = room.doubled(part)
        if size is None:
            return cls(unit, part)
        unit *= 1.0 / size
        return cls(unit, unit)


def _times(part: Array, gain: Array | None, at: slice, room: _Room) -> Array:
    """Return columns times their gains."""
    if gain is None:
        return part
    out: Array = np.multiply(part, gain[at].astype(part.dtype, copy=False), out=room.like(part))
    return out


def _times_gains(weights: Weights, key: F64, at: slice, room: _Room) -> F64:
    """Return some columns of W_k times γ_q γ_k, where M is square."""
    gains = [gain[at].astype(np.float64) for gain in (weights.gain_q, weights.gain_k) if gain is not None]
    if not gains:
        return key
    return np.multiply(key, gains[0] if len(gains) == 1 else gains[0] * gains[1], out=room.like(key))


def _is_single(weights: Weights, g: int, members: NDArray[np.intp]) -> bool:
    sizes = [weights.size_k[g], *weights.size_q[members]]
    sizes += [size_of(gain) for gain in (weights.gain_q, weights.gain_k) if gain is not None]
    ordinary = all(ORDINARY[0] <= size <= ORDINARY[1] for size in sizes)
    return ordinary and weights.q.dtype == weights.k.dtype == np.float32


def size_of(w: Array) -> float:
    """Return the power of two just above the largest absolute element of w, 1 for zeros, NaN if any is not finite.

    Divided by it (exactly), weights near 1e-200 or 1e200 stay within float64 when they are multiplied.
    """
    top = max(float(w.max()), -float(w.min()))  # NaN passes through max() and min() of an array
    if not np.isfinite(top):
        return float("nan")
    exponent = int(np.frexp(top)[1])
    return float(2.0 ** min(max(exponent, -1000), 1000))


def _order(made: Products, owner: NDArray[np.intp], good: Flags) -> NDArray[np.intp]:
    """Return (kv_heads, d_q), the order of the coordinates by falling size of their rows in a group's weights.

    The order of the d_q coordinates does not change M. Largest first makes the triangles graded, and then the least
    singular values of the core keep their digits: 4e-8 became 6e-16 on a planted condition of 1e13.
    """
    queries = np.zeros(made.gram_k.shape[:2])
    np.add.at(queries, owner[good], np.einsum("hii->hi", made.gram_q[good]))
    weight = np.sqrt(np.einsum("hii->hi", made.gram_k) * queries)
    return np.argsort(-weight, axis=1, kind="stable")


def _lower(w: Array, size: F64, gram: F64, lam: F64, order: NDArray[np.intp]) -> F64:
    """Return L (n, d_q, d_q) = R' of the triangular factors of each w' with its rows in ``order``."""
    lower = np.zeros(gram.shape)
    sure = lam[:, 0] > WELL_CONDITIONED * lam[:, -1]
    rows, columns = order[sure][:, :, None], order[sure][:, None, :]
    d_q = gram.shape[1]  # places in the flat array: taken in a quarter of the time that three indices take
    lower[sure] = np.linalg.cholesky(gram.take((np.flatnonzero(sure)[:, None, None] * d_q + rows) * d_q + columns))
    for h in np.flatnonzero(~sure & (lam[:, -1] > 0)):
        r = _triangle(w[h][order[h]].astype(np.float64) * (1.0 / size[h]))
        lower[h, :, : len(r)] = r.T
    return lower


def _triangle(w: F64) -> F64:
    """Return R (min(d, d_q), d_q) of the thin QR factorisation of w' for w (d_q, d)."""
    if w.size < SMALL_QR:
        return np.asarray(np.linalg.qr(w.T, mode="r"))
    from scipy.linalg import lapack

    rank = min(w.shape)
    packed, _, info = lapack.dgeqrt(min(QR_BLOCK, rank), w.T, overwrite_a=True)
    if info != 0:  # only for an illegal argument: never seen, and not to be passed over
        raise FloatingPointError(f"LAPACK dgeqrt failed with info {info}")
    r: F64 = np.triu(packed[:rank])
    return r
