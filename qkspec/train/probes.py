"""What happens inside the model on a fixed batch: attention maps, the 15 terms of P's equation 1, effective rates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkspec.attention import map_indices
from qkspec.train.lab import Lab
from qkspec.train.models import registry
from qkspec.train.models.anatomy import Anatomy

SEQUENCES = 2  # of the probe batch
_STEP = 2**31  # the probe batch is the validation batch of a step that no run reaches
_PROBES, _PASSES = 8, 12  # of the block power iteration


def probe(lab: Lab) -> dict[str, Any]:
    """Return, as plain data, what the model does on the probe batch; no state of the run changes.

    ``blocks`` holds, for each block:
        entropy, rank, diagonal: one a head, as ``attention.map_indices`` defines them, mean over the batch;
        max_logit, logit_std: one a head, over the logits that the softmax sees;
        terms: σ1 of q, k, v, o, fc1, fc2, of q'k (one a head), o v and fc2 fc1; the l2 norms of gamma1, beta1, gamma2
        and beta2; x and dx, the mean l2 norms of a token's input to the block and of the gradient of the summed loss.
    ``tensors`` holds, for AdamW², each bounded matrix's σ1, update and effective learning rate of the last step.
    A number that is not finite is None.
    """
    lab.model.eval()  # first: in training mode, reading a weight of σReparam moves its vectors
    parts = registry.module(lab.config.model).anatomy(lab.model)
    x, y = (rows[:SEQUENCES].to(lab.device) for rows in lab.data.batch("validation", _STEP, 0))
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
        blocks = [_block(part, seen[i], inputs[i], grads[i]) for i, part in enumerate(parts)]
    return {"loss": _plain(loss.detach() / y.numel()), "blocks": blocks, "tensors": _tensors(lab)}


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


def _block(part: Anatomy, attention_input: Tensor, x: Tensor, grad: Tensor) -> dict[str, Any]:
    logits = part.module.logits(attention_input).float()  # type: ignore[operator]
    batch, heads = logits.shape[:2]
    maps = logits.softmax(-1).flatten(0, 1).cpu().numpy()
    indices = map_indices(maps, causal=part.causal)
    means = {
        name: torch.from_numpy(values.reshape(batch, heads)).mean(0)
        for name, values in dataclasses.asdict(indices).items()
        if name != "columns"
    }
    flat = logits.transpose(0, 1).flatten(1)
    finite = [row[row != -math.inf] for row in flat]  # what the mask leaves; NaN stays
    means["max_logit"] = torch.stack([row.max() for row in finite])
    means["logit_std"] = torch.stack([row.std() for row in finite])
    terms = _terms(part) | {"x": x.norm(dim=-1).mean(), "dx": grad.norm(dim=-1).mean()}
    return (
        {"name": part.name}
        | {k: _plain(v) for k, v in means.items()}
        | {"terms": {k: _plain(v) for k, v in terms.items()}}
    )


def _terms(part: Anatomy) -> dict[str, Tensor]:
    w = {name: matrix.detach().float() for name, matrix in part.matrices.items()}
    q, k = (w[name].reshape(part.heads, -1, w[name].shape[1]) for name in ("q", "k"))
    terms = {name: spectral_norm(matrix) for name, matrix in w.items()}
    terms |= {
        "qk": spectral_norm(q.mT, k),
        "ov": spectral_norm(w["o"], w["v"]),
        "fc2fc1": spectral_norm(w["fc2"], w["fc1"]),
    }
    return terms | {name: vector.detach().norm() for name, vector in part.vectors.items()}


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
