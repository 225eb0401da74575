"""Adam's update before any learning rate, written into a scratch tensor; and plain AdamW for what is not bounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from qkspec.optim.sharding import local


@dataclass(frozen=True)
class Moments:
    """One parameter's gradient and Adam state on this rank; the state is updated in place.

    Args:
        grad, first, second, largest: of the parameter's local shape; ``largest`` only with amsgrad.
        step: () float32, counted up by the update.
    """

    grad: Tensor
    first: Tensor
    second: Tensor
    largest: Tensor | None
    step: Tensor


def moments(p: Tensor, state: dict[str, Any]) -> Moments:
    """Return what Adam needs of a parameter that has a gradient, laid out in memory as its state is.

    torch's fused kernel runs through memory alone: a gradient that lies otherwise, or is an expanded one, misleads it.
    """
    assert p.grad is not None
    largest = state.get("max_exp_avg_sq")
    grad, first = local(p.grad), local(state["exp_avg"])
    return Moments(
        grad if grad.stride() == first.stride() else torch.empty_like(first).copy_(grad),
        first,
        local(state["exp_avg_sq"]),
        None if largest is None else local(largest),
        state["step"],
    )


def uses_fused(group: dict[str, Any], p: Tensor) -> bool:
    """Whether torch's fused kernel does the element-wise part: when asked for, or by default on CPU and CUDA."""
    if group["eps_mode"] == "inside":
        return False
    if group["fused"] is not None:
        return bool(group["fused"])
    return group["foreach"] is None and p.device.type in ("cpu", "cuda") and p.is_floating_point()


def counts_on_device(group: dict[str, Any], p: Tensor) -> bool:
    """Whether torch's kernels want the step count beside the parameter; else they want it on the host."""
    return uses_fused(group, p) or bool(group["capturable"])


def direction(m: Moments, group: dict[str, Any]) -> Tensor:
    """Return Adam's update m̂ / (√v̂ + ε), or m̂ / √(v̂ + ε) with eps_mode "inside" (P, algorithm 1, line 5)."""
    beta1, beta2 = group["betas"]
    m.step.add_(1)
    grad = -m.grad if group["maximize"] else m.grad
    m.first.lerp_(grad, 1 - beta1)
    m.second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    t = m.step.double()
    second = m.second
    if m.largest is not None:
        torch.maximum(m.largest, m.second, out=m.largest)
        second = m.largest
    second = second / (1 - beta2**t)
    eps = group["eps"]
    root = (second + eps).sqrt_() if group["eps_mode"] == "inside" else second.sqrt_().add_(eps)
    update: Tensor = (m.first / (1 - beta1**t)).div_(root)
    return update


def write_directions(
    out: Sequence[Tensor], scale: float, ms: Sequence[Moments], group: dict[str, Any], scaler: dict[str, Tensor]
) -> None:
    """Write -scale · (Adam's update) into zeroed scratch tensors, through torch's own kernels where they apply.

    Args:
        out: (rows, columns) each, zero on entry, contiguous.
        scale: factor on the update.
        ms: one a scratch tensor, of equally many elements.
        group: the parameter group.
        scaler: ``grad_scale`` and ``found_inf`` of a GradScaler, for the fused kernel; else empty.
    """
    if group["eps_mode"] == "inside":
        for m, o in zip(ms, out, strict=True):
            o.copy_(direction(m, group).reshape(o.shape)).mul_(-scale)
        return
    if all(m.first.is_contiguous() for m in ms):
        _torch_adamw(out, [_like(m, o) for m, o in zip(ms, out, strict=True)], group, scale, 0.0, scaler)
        return
    scattered = [torch.zeros_like(m.first) for m in ms]
    _torch_adamw(scattered, ms, group, scale, 0.0, scaler)
    for o, s in zip(out, scattered, strict=True):
        o.copy_(s.reshape(o.shape))


def plain_adamw(ps: Sequence[Tensor], ms: Sequence[Moments], group: dict[str, Any], scaler: dict[str, Tensor]) -> None:
    """Take torch's AdamW step on parameters that are not bounded (local tensors)."""
    lr, decay = group["lr"], group["weight_decay"]
    if group["eps_mode"] == "outside":
        pairs = [(p, m.first) for p, m in zip(ps, ms, strict=True)]
        laid = [p if p.stride() == like.stride() else torch.empty_like(like).copy_(p) for p, like in pairs]
        _torch_adamw(laid, ms, group, lr, decay, scaler)
        for p, moved in zip(ps, laid, strict=True):
            if moved is not p:  # part of a larger tensor, whose other elements are not ours
                p.copy_(moved)
        return
    for p, m in zip(ps, ms, strict=True):
        p.mul_(1 - lr * decay).sub_(direction(m, group) * lr)


def _like(m: Moments, out: Tensor) -> Moments:
    largest = None if m.largest is None else m.largest.view(out.shape)
    return Moments(
        m.grad.reshape(out.shape).contiguous(), m.first.view(out.shape), m.second.view(out.shape), largest, m.step
    )


def _torch_adamw(
    ps: Sequence[Tensor],
    ms: Sequence[Moments],
    group: dict[str, Any],
    lr: float | Tensor,
    decay: float,
    scaler: dict[str, Tensor],
) -> None:
    fused = uses_fused(group, ps[0])
    beta1, beta2 = group["betas"]
    adamw(
        list(ps),
        [m.grad for m in ms],
        [m.first for m in ms],
        [m.second for m in ms],
        [m.largest for m in ms if m.largest is not None],
        [m.step for m in ms],
        foreach=None if fused else bool(group["foreach"]),
        capturable=group["capturable"],
        fused=fused,
        grad_scale=scaler.get("grad_scale"),
        found_inf=scaler.get("found_inf"),
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=decay,
        eps=group["eps"],
        maximize=group["maximize"],
    )
