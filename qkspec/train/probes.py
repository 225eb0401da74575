"""What happens inside the model on a fixed batch: attention maps, the 15 terms of P's equation 1, effective rates."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkspec.train.lab import Lab
from qkspec.train.models import registry
from qkspec.train.models.anatomy import Anatomy

SEQUENCES = 2  # of the probe batch
_STEP = 2**31  # the probe batch is the validation batch of a step that no run reaches
_PROBES, _PASSES = 8, 12  # of the block power iteration
_TOGETHER = 1 << 26  # numbers that are measured together at most: a quarter of a gigabyte
_QUERIES = 64


def probe(lab: Lab) -> dict[str, Any]:
    """Return, as plain data, what the model does on the probe batch; no state of the run changes.

    ``blocks`` holds, for each block:
        entropy, rank, diagonal: one a head, as ``attention.map_indices`` defines them, mean over the batch;
        max_logit, logit_std: one a head, over the logits that the softmax sees; None without a softmax;
        terms: σ1 of q, k, v, o, fc1, fc2, of q'k (one a head), o v and fc2 fc1; the l2 norms of gamma1, beta1, gamma2
        and beta2; x and dx, the mean l2 norms of a token's input to the block and of the gradient of the summed loss.
    ``tensors`` holds, for AdamW², each bounded matrix's σ1, update and effective learning rate of the last step.
    A number that is not finite is None.
    """
    parts, x, y = probed(lab)
    inputs: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for i, part in enumerate(parts):
            hooks.enter_context(_Hook(part.block, _keep(inputs, i, with_grad=True)))
            hooks.enter_context(_Hook(part.module, _keep(seen, i, with_grad=False)))
        logits = lab.model(x)
        loss = functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="sum")
        grads = torch.autograd.grad(loss, [inputs[i] for i in range(len(parts))])
    with torch.no_grad():
        norms = _norms(parts)
        blocks = [_block(part, seen[i], inputs[i], grads[i], norms[i]) for i, part in enumerate(parts)]
    return {"loss": _plain(loss.detach() / y.numel()), "blocks": blocks, "tensors": _tensors(lab)}


def probed(lab: Lab) -> tuple[list[Anatomy], Tensor, Tensor]:
    """Return the blocks of the model, set to evaluation, and inputs and targets of the probe batch."""
    lab.model.eval()  # first: in training mode, reading a weight of σReparam moves its vectors
    parts: list[Anatomy] = registry.module(lab.config.model).anatomy(lab.model)
    x, y = (rows[:SEQUENCES].to(lab.device) for rows in lab.data.batch("validation", _STEP, 0))
    return parts, x, y


@torch.no_grad()
def maps(lab: Lab, heads: Mapping[int, Sequence[int]]) -> dict[str, Tensor]:
    """Return attention maps of the first sample of the probe batch; with windows, of its first window.

    Args:
        lab: the run; nothing of its state changes.
        heads: which, by the number of the block.

    Returns:
        Path of the attention module ▸ (heads, tokens, tokens) float32 on the CPU, rows are queries.
    """
    parts, x, _ = probed(lab)
    seen: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for i in heads:
            hooks.enter_context(_Hook(parts[i].module, _keep(seen, i, with_grad=False)))
        lab.model(x[:1])
    return {parts[i].name: attention(parts[i], seen[i][:1])[0][0, list(some)].cpu() for i, some in heads.items()}


def spectral_norm(*factors: Tensor) -> Tensor:
    """Return σ1 of a product of matrices, estimated from below by block power iteration with Rayleigh-Ritz.

    Args:
        factors: (..., m, p), (..., p, q), ..., (..., z, n), multiplied in this order and never formed.

    Returns:
        (...): 12 passes with 8 vectors; within 1e-3 on weights in training, 1e-2 on Gaussian ones; NaN for NaN.
    """
    n = factors[-1].shape[-1]
    position = torch.arange(1, n + 1, device=factors[0].device, dtype=torch.float32)
    start = torch.sin(1.7 * position * torch.arange(1, min(_PROBES, n) + 1, device=position.device)[:, None])
    x = _orthonormal(start.expand(*factors[0].shape[:-2], *start.shape))
    for _ in range(_PASSES):
        x = _orthonormal(_through(_through(x, [f.mT for f in reversed(factors)]), factors))
    image = _through(x, [f.mT for f in reversed(factors)])
    finite = torch.isfinite(image).all(-1).all(-1)
    largest = torch.linalg.svdvals(image.nan_to_num(0.0, 0.0, 0.0))[..., 0]
    return torch.where(finite, largest, math.nan)


def _through(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply rows (..., k, n) by each factor in turn: four times as fast as columns, on a CPU."""
    for factor in factors:
        x = x @ factor
    return x


def _orthonormal(x: Tensor) -> Tensor:
    """Return an orthonormal basis of the rows of x (..., k, n)."""
    basis: Tensor = torch.linalg.qr(x.mT).Q.mT
    return basis


def attention(part: Anatomy, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a block's maps, (batch, heads, tokens, tokens) float32, and its logits, None without a softmax."""
    if not part.softmax:
        return part.module.maps(x).float(), None  # type: ignore[operator]
    logits: Tensor = part.module.logits(x).float()  # type: ignore[operator]
    return logits.softmax(-1), logits


def indices(maps: Tensor, *, causal: bool) -> dict[str, Tensor]:
    """Return entropy, rank and diagonal as ``attention.map_indices`` defines them, on the maps' device.

    The rank is that of at most 64 evenly spaced queries, as a share of them: an eigensolver's time grows as their cube.

    Args:
        maps: (..., tokens, tokens), rows sum to one.
        causal: whether row i has i + 1 entries.

    Returns:
        (...) float64 each; NaN for a map that is not finite.
    """
    maps = maps.cpu() if maps.device.type == "mps" else maps  # which has no float64
    tokens = maps.shape[-1]
    lengths = torch.arange(1, tokens + 1, device=maps.device) if causal else torch.full((tokens,), tokens)
    rows = torch.special.entr(maps).sum(-1)[..., 1 if causal else 0 :]
    entropy = (rows.double() / lengths[lengths > 1].to(maps.device).log().double()).mean(-1)
    some = maps[..., torch.linspace(0, tokens - 1, min(tokens, _QUERIES), device=maps.device).long(), :].double()
    finite = torch.isfinite(maps).all(-1).all(-1)
    energy = torch.linalg.eigvalsh((some @ some.mT).nan_to_num(0.0, 0.0, 0.0)).clamp(min=0.0)
    shares = energy / energy.sum(-1, keepdim=True)
    rank = torch.special.entr(shares).sum(-1).exp() / some.shape[-2]
    found = {"entropy": entropy, "rank": rank, "diagonal": maps.diagonal(dim1=-2, dim2=-1).double().mean(-1)}
    return {name: torch.where(finite, values, math.nan) for name, values in found.items()}


def _block(part: Anatomy, attended: Tensor, x: Tensor, grad: Tensor, norms: Mapping[str, Tensor]) -> dict[str, Any]:
    maps, logits = attention(part, attended)
    seen: dict[str, Any] = {k: _plain(v.mean(0)) for k, v in indices(maps, causal=part.causal).items()}
    if logits is None:
        seen |= {"max_logit": [None] * part.heads, "logit_std": [None] * part.heads}
    else:
        rows = [row[row != -math.inf] for row in logits.transpose(0, 1).flatten(1)]  # what the mask leaves; NaN stays
        seen["max_logit"] = _plain(torch.stack([row.max() for row in rows]))
        seen["logit_std"] = _plain(torch.stack([row.std() for row in rows]))
    terms = {**norms, **{name: vector.detach().norm() for name, vector in part.vectors.items()}}
    terms |= {"x": x.norm(dim=-1).mean(), "dx": grad.norm(dim=-1).mean()}
    return {"name": part.name} | seen | {"terms": {k: _plain(v) for k, v in terms.items()}}


def _norms(parts: Sequence[Anatomy]) -> list[dict[str, Tensor]]:
    """Return, for each block, σ1 of its matrices and of their products: q'k one a head, o v and fc2 fc1."""
    wanted: list[dict[str, tuple[Tensor, ...]]] = []
    for part in parts:
        w = {name: matrix.detach().float() for name, matrix in part.matrices.items()}
        q, k = (w[name].reshape(part.heads, -1, w[name].shape[1]) for name in ("q", "k"))
        products: dict[str, tuple[Tensor, ...]] = {name: (matrix,) for name, matrix in w.items()}
        wanted.append(products | {"qk": (q.mT, k), "ov": (w["o"], w["v"]), "fc2fc1": (w["fc2"], w["fc1"])})
    found = iter(spectral_norms([factors for block in wanted for factors in block.values()]))
    return [{name: next(found) for name in block} for block in wanted]


def spectral_norms(products: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Return ``spectral_norm`` of each product, those of the same shapes measured together."""
    alike: dict[tuple[torch.Size, ...], list[int]] = {}
    for i, factors in enumerate(products):
        alike.setdefault(tuple(factor.shape for factor in factors), []).append(i)
    found: dict[int, Tensor] = {}
    for shapes, members in alike.items():
        together = max(1, _TOGETHER // sum(shape.numel() for shape in shapes))
        for first in range(0, len(members), together):
            some = members[first : first + together]
            stacked = (torch.stack(factors) for factors in zip(*(products[i] for i in some), strict=True))
            found |= zip(some, spectral_norm(*stacked), strict=True)
    return [found[i] for i in range(len(products))]


def _tensors(lab: Lab) -> dict[str, dict[str, Any]]:
    readings = getattr(lab.optimizer, "readings", None)
    if readings is None:
        return {}
    rows = {}
    for reading in readings():
        values = dataclasses.asdict(reading)
        rows[values.pop("name")] = {k: _number(v) if isinstance(v, float) else v for k, v in values.items()}
    return rows


def _keep(store: dict[int, Tensor], key: int, *, with_grad: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        store[key] = args[0] if with_grad else args[0].detach()

    return hook


class _Hook:
    """A forward pre-hook for the length of a with statement."""

    def __init__(self, module: nn.Module, hook: Callable[..., None]) -> None:
        self._handle = module.register_forward_pre_hook(hook)

    def __enter__(self) -> None:
        """Nothing: the hook is set."""

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _plain(values: Tensor) -> Any:
    """Return a number, or a list of numbers, with None for what is not finite."""
    listed = values.tolist()
    return [_number(v) for v in listed] if isinstance(listed, list) else _number(listed)


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
