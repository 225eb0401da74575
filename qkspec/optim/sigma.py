"""The spectral norm of a matrix from a few products with it: estimates from below, and one bound from above.

Everything here is pure, batched over the first dimension, and free of host synchronization, so that the same code runs
on a CPU, on a GPU and inside a CUDA graph. Shapes: views (matrices), m rows, n columns, k probes, keep remembered ones.
"""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qkspec.optim.roles import View

_MASK = 0xFFFFFFFF
_TINY = 1e-300  # in place of a zero below a fraction
_NOISE = 1e-8  # of ‖y‖²: single precision leaves directions below 1e-7 of ‖y‖ undetermined


def cut(view: View, t: Tensor) -> Tensor:
    """Return the block of t (..., rows, columns) that a view names, sharing its memory.

    Returns:
        (..., size, columns) or (..., rows, size); with units > 1 one dimension more, (units, size) in place of size.
    """
    if view.size < 0:
        return t
    dim = view.dim - 2
    if view.units > 1:
        rows, columns = t.shape[-2:]
        split = (
            (view.units, rows // view.units, columns) if view.dim == 0 else (rows, view.units, columns // view.units)
        )
        t = t.view(*t.shape[:-2], *split)
    return t.narrow(dim, view.start, view.size)


def matrix(view: View, t: Tensor) -> Tensor:
    """Return a view's matrix (..., m, n) for reading; a copy only where parts are interleaved."""
    block = cut(view, t)
    if view.units > 1:
        block = block.flatten(-3, -2) if view.dim == 0 else block.flatten(-2, -1)
    return block


def wide(t: Tensor) -> Tensor:
    """Return a tensor in single precision or better."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def key(seed: int, parameter: int, view: int, use: str) -> int:
    """Return the 32-bit key of one stream of probes."""
    return crc32(f"{seed}/{parameter}/{view}/{use}".encode())


def fresh(keys: Tensor, steps: Tensor, count: int, n: int) -> Tensor:
    """Return probes that depend on (key, step, position) alone: a counter-based stream, the same on every device.

    Each entry is one of 16 equally spaced values, symmetric about zero; eight entries share one 32-bit hash.

    Args:
        keys: (views,) int64, from ``key``.
        steps: (views,) or () int64.
        count: probes a view.
        n: entries a probe, fewer than 2^24; the first entries do not depend on it.

    Returns:
        (views, count, n), float32.
    """
    planes = -(-count // 8)
    stream = _mix((keys + steps * 0x9E3779B1) & _MASK)
    position = torch.arange(n, device=keys.device) | (torch.arange(planes, device=keys.device) << 24)[:, None]
    bits = _mix(position ^ stream[:, None, None])[:, :, None]  # (views, planes, 1, n)
    shift = 4 * torch.arange(min(8, count), dtype=torch.int32, device=keys.device)[:, None]
    return ((bits.int() >> shift) & 15).flatten(1, 2)[:, :count].float().sub_(7.5)


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit values held in int64; both multipliers are below 2^31, so that no product overflows."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


def products(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pass once over a matrix on both sides: z = x a', y = z a.

    With the rows of a divided among ranks, z' is divided likewise and the ranks' results add up.

    Args:
        a: (views, m, n).
        x: (views, k, n) probes.

    Returns:
        z' z of the images, (views, k, k) float64, and y, (views, k, n) in the matrix's precision.
    """
    z = x.to(a.dtype) @ a.mT
    y = z @ a
    z = z.double()
    return z @ z.mT, y


def ritz(gram: Tensor, image: Tensor, keep: int, shift: float) -> tuple[Tensor, Tensor]:
    """Solve the Rayleigh-Ritz problem of one pass and choose what to remember.

    The pencil (y y', z' z) is whitened by a Cholesky factor, slightly shifted so that parallel probes do no harm; its
    leading vector comes from repeated squaring, which needs neither an eigensolver nor the host. σ is the exact
    quotient of that vector, so it is never above σ₁. The probes to go on with take one step of block iteration with the
    eighth power of the whitened form, which lets the fresh ones in. Their span does not depend on which vector led: two
    leading values that are close would turn a rounding error into another vector, and the span would carry it on from
    step to step.

    Args:
        gram: (views, k, k) z' z, float64.
        image: (views, k, k) y y', float64.
        keep: how many probes to go on with, at most k.
        shift: relative to the probes' norms; above the rounding of the products.

    Returns:
        σ (views,), at most σ₁: the largest ‖a'u‖/‖u‖ over u in the span of the images; and (views, k, 1 + keep)
        combinations of the rows of y, first σ's own vector, then the probes for next time, a column of which is zero
        where the matrix is of too low a rank to tell. Both float64.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()[..., None]
    both = scale * scale.mT
    whole, seen = gram * both, image * both
    k = gram.shape[-1]
    factor = torch.linalg.cholesky_ex(whole + shift * torch.eye(k, dtype=gram.dtype, device=gram.device)).L
    half = torch.linalg.solve_triangular(factor, seen, upper=False)
    white = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    eighth = _squared(_unit_trace(white), 3)
    power = _squared(_unit_trace(_squared(eighth, 2)), 5)  # the quotient of the 1024th power is σ² to 2e-4 at worst
    strongest = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[:, None, None].expand(-1, k, 1)
    chosen = torch.cat([power.gather(-1, strongest), eighth[..., :keep]], -1)
    chosen = normalize(torch.linalg.solve_triangular(factor.mT, chosen, upper=True), dim=-2, eps=_TINY)
    reach = seen @ chosen
    top, span = chosen.split_with_sizes([1, keep], -1)
    above, below = (top.mT @ reach[..., :1])[:, 0, 0], (top.mT @ whole @ top)[:, 0, 0]
    return (above / below.clamp_min(_TINY)).sqrt(), torch.cat([top, _orthonormal(span, reach[..., 1:])], -1) * scale


def _unit_trace(a: Tensor) -> Tensor:
    """Divide by the trace: the leading eigenvalue is then at least 1/k, and its 32nd power far from underflow."""
    return a / a.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(_TINY)[:, None, None]


def _squared(a: Tensor, times: int) -> Tensor:
    for _ in range(times):
        a = a @ a
    return a


def _orthonormal(span: Tensor, reach: Tensor) -> Tensor:
    """Return combinations that span the same rows of y, orthonormal in y y'.

    A direction of which less than 1e-4 is left may be nothing but rounding: zero.

    Args:
        span: (views, k, keep).
        reach: y y' times span.
    """
    gram = span.mT @ reach
    noise = (_NOISE * gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)).clamp_min(_TINY)
    factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(noise.expand(-1, span.shape[-1]))).L
    kept = factor.diagonal(dim1=-2, dim2=-1).square() > 4 * noise
    rows = torch.linalg.solve_triangular(factor, span.mT, upper=False)
    combined: Tensor = (rows * kept[..., None]).mT
    return combined


def remember(chosen: Tensor, y: Tensor, before: Tensor) -> Tensor:
    """Return σ's vector and the next probes, (views, 1 + keep, n) unit vectors of a stack of matrices.

    Args:
        chosen: (views, k, 1 + keep) from ``ritz``.
        y: (views, k, n) from ``products``, float64.
        before: (views, 1 + keep, n) what was remembered so far; a vector that the matrix would erase stays as it was.
    """
    rows = (chosen.mT @ y).add_(before, alpha=1e-150)  # too little to show, unless there is nothing else
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(_TINY)
    return (rows / length).to(before.dtype)


def power_iteration(a: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Estimate σ₁ as the paper does: v ← a'av/‖·‖ from a cold start, then ‖av‖ (P, section 2, for any shape).

    Args:
        a: (views, m, n).
        x: (views, n) starting vectors.
        iterations: the paper's K, 3 by default there; each is two products.

    Returns:
        (views,), float64.
    """
    v = normalize(x.to(a.dtype), dim=-1)[:, None]
    for _ in range(iterations):
        v = normalize((v @ a.mT) @ a, dim=-1, eps=1e-30)
    length: Tensor = torch.linalg.vector_norm((v @ a.mT)[:, 0], dim=-1)
    return length.double()


def image_norm2(matrices: Sequence[Tensor], v: Tensor) -> Tensor:
    """Return ‖a v‖², (views,) float64, for each matrix (m, n) and its unit vector of v (views, n).

    With last time's Ritz vector this bounds σ₁² from below at the cost of one reading. With the rows divided among
    ranks, the ranks' results add up.
    """
    alone = len(matrices) == 1  # then nothing need be copied together
    image = (wide(matrices[0]) @ v[0])[None] if alone else (wide(torch.stack(list(matrices))) @ v[..., None])[..., 0]
    length: Tensor = torch.linalg.vector_norm(image, dim=-1, dtype=torch.float64)
    return length.square()


def inner(a: Tensor) -> Tensor:
    """Return a'a (views, n, n), or a a' (views, m, m) where that is smaller, in the matrix's precision."""
    return a @ a.mT if a.shape[-2] < a.shape[-1] else a.mT @ a


def schatten8(gram: Tensor) -> Tensor:
    """Return the Schatten-8 norm (Σσ⁸)^(1/8) >= σ₁ from ``inner`` (views, n, n): above by at most n^(1/8).

    On updates it is 0 to 2 % above.

    Returns:
        (views,) float64, with a margin for the rounding of the products.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    unit = gram / trace.clamp_min(torch.finfo(gram.dtype).tiny)[..., None, None]
    fourth: Tensor = torch.linalg.matrix_norm(unit @ unit).double()
    return trace.double().sqrt() * fourth.pow(0.25) * (1 + margin(gram.dtype))


def margin(dtype: torch.dtype) -> float:
    """Return the relative rounding error that a certified bound allows its norms, or a rate of a narrower type."""
    if dtype == torch.float64:
        return 1e-12
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for single back ends: suppose the roughest
        precision = "medium"
    return max(_ROUGH[precision], torch.finfo(dtype).eps)


_ROUGH = {"highest": 1e-5, "high": 2e-3, "medium": 2e-2}  # TF32 rounds each factor to 10 bits, bfloat16 to 7
