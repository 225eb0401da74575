"""The long products of spectrum.py on a GPU, batched over the heads of many modules; what is small stays on the CPU.

Everything of size d is a handful of batched matrix products here. The small factorisations go to LAPACK in threads:
they are few, and batched solvers of GPUs are slower at them. A head whose Gram matrix is not proven well-conditioned
gets Householder QR in float64 there, so collapsed heads come out as they do without a GPU.

A device without fast float64 multiplies panels in float32 and adds them up in pairs of float32 that carry each other's
rounding error: σ_1 and SEC keep six digits and more, the smallest singular values of a head about three.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from qkspec.engine import cpu_count
from qkspec.qk import Array
from qkspec.spectrum import Products, Spectra, Weights, finish, size_of

F64 = NDArray[np.float64]
Tensor = torch.Tensor

PANEL = 256  # columns that are summed in plain float32
BATCH = 4 << 30  # bytes of float64 weights on the device at once, where it has ROOM times as much free
ROOM = 5  # weights as they came, in units of their sizes, times their gains, and products of the two sides
FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))  # compute capabilities with half of float32's rate or more


def spectra(
    q: Array,
    k: Array,
    gain_q: Array | None = None,
    gain_k: Array | None = None,
    *,
    device: str,
    single: bool | None = None,
) -> Spectra:
    """Return what ``spectrum.spectra`` returns, the products computed on a device.

    Args:
        q: (heads, d_q, d).
        k: (kv_heads, d_q, d').
        gain_q: (d,) or None.
        gain_k: (d',) or None.
        device: as torch names it.
        single: whether to multiply in float32; None chooses by the device.
    """
    return next(spectra_of([Weights.of(q, k, gain_q, gain_k)], device=device, single=single))


def spectra_of(modules: Sequence[Weights], *, device: str, single: bool | None = None) -> Iterator[Spectra]:
    """Yield the spectra of modules; those of one shape that follow each other are one batch. Arguments as above."""
    low = not _has_fast_float64(device) if single is None else single
    with ThreadPoolExecutor(cpu_count()) as threads:
        for batch in _batches(modules, _most_bytes(device)):
            for weights, made in zip(batch, _products(batch, torch.device(device), single=low), strict=True):
                yield _finish(weights, made, threads)


def _most_bytes(device: str) -> int:
    """Return how many bytes of float64 weights the device takes at once."""
    if not device.startswith("cuda"):
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    return min(BATCH, free // ROOM)


def _batches(modules: Sequence[Weights], most: int) -> Iterator[list[Weights]]:
    def kind(w: Weights) -> tuple[object, ...]:
        return w.q.shape, w.k.shape, w.gain_q is None, w.gain_k is None, w.eigenvalues

    for _, alike in groupby(modules, key=kind):
        batch: list[Weights] = []
        for weights in alike:
            batch.append(weights)
            if (len(batch) + 1) * 8 * (weights.q.size + weights.k.size) > most:
                yield batch
                batch = []
        if batch:
            yield batch


def _products(batch: Sequence[Weights], device: torch.device, *, single: bool) -> Iterator[Products]:
    dtype = torch.float32 if single else torch.float64
    first = batch[0]
    heads, group = len(first.q), len(first.q) // len(first.k)
    q = torch.stack([_units(w.q, w.size_q, device, dtype) for w in batch])  # (modules, heads, d_q, d)
    k = torch.stack([_units(w.k, w.size_k, device, dtype) for w in batch])
    gram_q, gram_k = _times(q, q), _times(k, k)
    zeros = np.zeros((len(batch), heads))
    cross, trace = np.zeros(gram_q.shape), zeros
    if first.square and (first.eigenvalues or single):  # in float32 the trace needs the cross product's care
        cross = _times(k.repeat_interleave(group, dim=1), q)
    if first.square:
        trace = np.trace(cross, axis1=2, axis2=3) if single else _dots(q, k)
    gained, gained_trace = zeros, zeros
    if first.gain_q is not None or first.gain_k is not None:
        gain_q, size_q = _gains([w.gain_q for w in batch], q)
        gain_k, size_k = _gains([w.gain_k for w in batch], k)
        q, k = q * gain_q, k * gain_k
        folded = _times(q, q) * np.repeat(_times(k, k), group, axis=1)
        gained = np.sqrt(np.maximum(folded.sum(axis=(2, 3)), 0.0)) * size_q * size_k
        if first.square:
            gained_trace = _dots(q, k) * size_q * size_k
    yield from (Products(*parts) for parts in zip(gram_q, gram_k, cross, trace, gained, gained_trace, strict=True))


def _units(w: Array, size: F64, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return w (n, d_q, d) on the device in units of its sizes, zero where a head is not finite."""
    finite = np.isfinite(size)
    plain = w if finite.all() else np.where(finite[:, None, None], w, 0)
    if dtype is torch.float32:  # scaled on the CPU, where float64 holds what float32 could not
        scaled = plain * np.where(finite, 1.0 / size, 0.0)[:, None, None]
        return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32)).to(device)
    moved = torch.from_numpy(np.ascontiguousarray(plain)).to(device).to(dtype)
    return moved * torch.from_numpy(np.where(finite, 1.0 / size, 0.0)).to(device)[:, None, None]


def _gains(gains: Sequence[Array | None], like: Tensor) -> tuple[Tensor, F64]:
    """Return (modules, 1, 1, d) gains in units of their sizes, and those sizes (modules, 1)."""
    plain = [np.ones(like.shape[-1]) if gain is None else gain.astype(np.float64) for gain in gains]
    sizes = np.array([size_of(gain) for gain in plain])
    unit = np.stack(plain) / sizes[:, None]
    return torch.from_numpy(unit).to(like.dtype).to(like.device)[:, None, None, :], sizes[:, None]


def _dots(q: Tensor, k: Tensor) -> F64:
    """Return the sum over elements of W_q∘W_k, (modules, heads), each key head taken for its group."""
    grouped = q.reshape(len(q), k.shape[1], -1, *q.shape[2:])
    return _numpy((grouped * k[:, :, None]).sum(dim=(3, 4)).flatten(1))


def _times(a: Tensor, b: Tensor) -> F64:
    """Return a b' over the last axis, (..., n, m) float64 on the CPU."""
    if a.dtype is torch.float64:
        return _numpy(a @ b.mT)
    high = torch.zeros((*a.shape[:-1], b.shape[-2]), device=a.device, dtype=a.dtype)
    low = torch.zeros_like(high)
    for start in range(0, a.shape[-1], PANEL):
        part = a[..., start : start + PANEL] @ b[..., start : start + PANEL].mT
        total = high + part  # Knuth's two-sum: total + error is high + part exactly
        back = total - high
        low = low + ((high - (total - back)) + (part - back))
        high = total
    return _numpy(high) + _numpy(low)


def _numpy(tensor: Tensor) -> F64:
    return tensor.cpu().numpy().astype(np.float64, copy=False)


def _finish(weights: Weights, made: Products, threads: ThreadPoolExecutor) -> Spectra:
    """Run ``finish`` for each key head and its group in threads: LAPACK lets go of the interpreter's lock."""
    group = len(weights.q) // len(weights.k)

    def one(g: int) -> Spectra:
        h, at = slice(g * group, (g + 1) * group), slice(g, g + 1)
        gains = weights.gain_q, weights.gain_k
        part = Weights(weights.q[h], weights.k[at], weights.size_q[h], weights.size_k[at], *gains, weights.eigenvalues)
        of_heads = (x[h] for x in (made.cross, made.trace, made.gained, made.gained_trace))
        return finish(part, Products(made.gram_q[h], made.gram_k[at], *of_heads))

    found = list(threads.map(one, range(len(weights.k))))
    return Spectra(*(np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Spectra)))


def _has_fast_float64(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) in FAST_FLOAT64
    return not device.startswith("mps")
