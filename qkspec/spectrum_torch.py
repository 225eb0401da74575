"""The long products of spectrum.py on a GPU, batched over the heads of many modules; what is small stays on the CPU.

Everything of size d is a handful of batched matrix products here. The small factorisations go to LAPACK in threads:
they are few, and batched solvers of GPUs are slower at them. A head whose Gram matrix is not proven well-conditioned
gets Householder QR in float64 there, so collapsed heads come out as they do without a GPU.

A device without fast float64 multiplies panels in float32 and adds them up in pairs of float32 that carry each other's
rounding error: σ_1 and SEC keep six digits and more, the smallest singular values of a head about three.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from qkspec.engine import cpu_count
from qkspec.errors import QkspecError
from qkspec.qk import Array
from qkspec.spectrum import ORDINARY, Products, Spectra, Weights, finish, size_of

F64 = NDArray[np.float64]
Tensor = torch.Tensor

PANEL = 256  # columns that are summed in plain float32
BATCH = 4 << 30  # bytes of float64 weights on the device at once, where it has ROOM times as much free
ROOM = 4  # the weights, those times their gains or keys repeated for their group, and what torch holds in reserve
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
    """Yield the spectra of modules; those of one shape that follow each other are one batch. Arguments as above.

    Raises:
        QkspecError: the device ran out of memory, or failed otherwise.
    """
    with ThreadPoolExecutor(cpu_count()) as threads:
        with _failures_told(device):
            low = not _has_fast_float64(device) if single is None else single
            most = min(BATCH, room(device))
        for batch in _batches(modules, most):
            with _failures_told(device), _as_written(torch.device(device)):
                made = list(_products(batch, torch.device(device), single=low))
            for parts in [_finish(*one, threads) for one in zip(batch, made, strict=True)]:
                yield _joined(parts)


def room(device: str) -> int:
    """Return how many bytes of float64 weights a device has room for at once; BATCH where it does not tell."""
    if not device.startswith("cuda"):
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next tensor
    return (free + kept) // ROOM


@contextmanager
def _failures_told(device: str) -> Iterator[None]:
    """Turn what torch says of a device that fails into a sentence."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # no memory, no driver, a card that this torch was not built for
        if device == "cpu":
            raise
        reason = str(error).strip().partition("\n")[0]
        raise QkspecError(f"the device {device} failed ({reason}); use --device cpu") from error


@contextmanager
def _as_written(device: torch.device) -> Iterator[None]:
    """Multiply in the precision of the tensors, whatever the program around allows itself.

    A trainer, and the environment of NVIDIA's containers, may have allowed TF32, which reads ten bits of a float32.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with ExitStack() as ends:
        if torch.amp.is_autocast_available(device.type):
            ends.enter_context(torch.autocast(device.type, enabled=False))
        matmul.fp32_precision = "ieee"
        ends.callback(setattr, matmul, "fp32_precision", before)
        yield


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
    q = _stack([(w.q, w.size_q) for w in batch], device, dtype)  # (modules, heads, d_q, d)
    k = _stack([(w.k, w.size_k) for w in batch], device, dtype)
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


def _stack(weights: Sequence[tuple[Array, F64]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return weights (n, d_q, d) of sizes (n,) on the device as one tensor, each head in units of its size."""
    out = torch.empty((len(weights), *weights[0][0].shape), dtype=dtype, device=device)
    for place, (w, size) in zip(out, weights, strict=True):
        _put_units(place, w, size)
    return out


def _put_units(place: Tensor, w: Array, size: F64) -> None:
    """Write w (n, d_q, d) in units of its sizes into ``place``, zero where a head is not finite."""
    finite = np.isfinite(size)
    inverse = np.where(finite, 1.0 / size, 0.0)[:, None, None]
    plain = w if finite.all() else np.where(finite[:, None, None], w, 0)
    if place.dtype is torch.float32 and not (plain.dtype == np.float32 and _ordinary(size[finite])):
        plain, inverse = (plain * inverse).astype(np.float32), np.ones((1, 1, 1))  # float32 cannot hold it unscaled
    place.copy_(torch.from_numpy(np.ascontiguousarray(plain)).to(place.device))  # as it came: half the bytes travel
    place.mul_(torch.from_numpy(inverse).to(place.dtype).to(place.device))


def _ordinary(size: F64) -> bool:
    return bool(((size >= ORDINARY[0]) & (size <= ORDINARY[1])).all())


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


def _finish(weights: Weights, made: Products, threads: ThreadPoolExecutor) -> Iterator[Spectra]:
    """Begin ``finish`` for each key head and its group in threads: LAPACK lets go of the interpreter's lock."""
    group = len(weights.q) // len(weights.k)

    def one(g: int) -> Spectra:
        h, at = slice(g * group, (g + 1) * group), slice(g, g + 1)
        gains = weights.gain_q, weights.gain_k
        part = Weights(weights.q[h], weights.k[at], weights.size_q[h], weights.size_k[at], *gains, weights.eigenvalues)
        of_heads = (x[h] for x in (made.cross, made.trace, made.gained, made.gained_trace))
        return finish(part, Products(made.gram_q[h], made.gram_k[at], *of_heads))

    return threads.map(one, range(len(weights.k)))


def _joined(parts: Iterator[Spectra]) -> Spectra:
    found = list(parts)
    return Spectra(*(np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Spectra)))


def _has_fast_float64(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) in FAST_FLOAT64
    return not device.startswith("mps")
