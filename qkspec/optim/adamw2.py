"""AdamW²: AdamW whose step on a matrix may not exceed the fraction τ of the matrix's spectral norm (P, algorithm 1)."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim.roles import Role, View, choose_role, views


@dataclass(frozen=True)
class Reading:
    """What the last step did to one bounded matrix.

    Args:
        name: the parameter's name, with "[q]" and the like for one matrix of a fused projection.
        sigma1_w: σ₁ of the weight before the step.
        sigma1_u: σ₁ of the update ∇W, before any learning rate.
        lr: the group's learning rate.
        effective_lr: the learning rate that was applied.
        bound: whether it was truncated.
        floored: whether σ₁ of the weight was below the floor, which then stood in for it.
    """

    name: str
    sigma1_w: float
    sigma1_u: float
    lr: float
    effective_lr: float
    bound: bool
    floored: bool


class AdamW2(torch.optim.AdamW):
    """AdamW that truncates a matrix's learning rate to τ σ₁(W)/σ₁(∇W) for one step where it is larger (Rule 1)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,  # noqa: FBT001, FBT002  # torch's own position
        *,
        tau: float = 0.004,
        power_iters: int = 1,
        block: int = 4,
        warm: bool = True,
        refresh: int = 10,
        eps_mode: Literal["outside", "inside"] = "outside",
        floor: float = 0.01,
        exempt: Iterable[str] = ("embedding", "vector"),
        roles: Mapping[str, Role | str] | None = None,
        certified: bool = False,
        seed: int = 0,
        **torch_options: Any,
    ) -> None:
        if not tau > 0:
            raise UsageError(f"tau is the largest relative step and must be above 0, not {tau}")
        self._exempt = tuple(exempt)
        self._roles = roles
        self._views: dict[Tensor, tuple[View, ...]] = {}
        self._last: list[tuple[str, Tensor]] = []
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **torch_options)
        for group in self.param_groups:
            group.update(tau=tau, eps_mode=eps_mode, floor=floor)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, and settle what each of its parameters is."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names", [None] * len(group["params"]))
        for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
            role = choose_role(name, p.shape, self._roles)
            shown = name or f"group{len(self.param_groups) - 1}.{i}"
            free = any(fnmatchcase(role.kind, e) or fnmatchcase(shown, e) for e in self._exempt)
            self._views[p] = () if free else views(shown, role)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; a closure, where given, computes the loss again and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._last = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)
        return loss

    def _step_one(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        t, (beta1, beta2) = state["step"].item(), group["betas"]
        assert p.grad is not None
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        m, v = state["exp_avg"] / (1 - beta1**t), state["exp_avg_sq"] / (1 - beta2**t)
        inside = group["eps_mode"] == "inside"
        update = m / ((v + group["eps"]).sqrt() if inside else v.sqrt() + group["eps"])
        for view in self._views[p] or (View(""),):
            w, u = _cut(view, p), _cut(view, update)
            alpha = torch.as_tensor(float(group["lr"]))
            if self._views[p]:
                sigma_w, sigma_u = torch.linalg.matrix_norm(w, 2), torch.linalg.matrix_norm(u, 2)
                floor = group["floor"] * (math.sqrt(w.shape[0]) + math.sqrt(w.shape[1]))
                limit = group["tau"] * sigma_w.clamp(min=floor) / sigma_u
                floored = (sigma_w < floor).float()
                bound = (limit < alpha).float()
                applied = torch.where(limit < alpha, limit, alpha)
                self._last.append((view.name, torch.stack([sigma_w, sigma_u, alpha, applied, bound, floored])))
                alpha = applied
            w.add_(u + group["weight_decay"] * w, alpha=-float(alpha))

    def readings(self) -> tuple[Reading, ...]:
        """Return what the last step did to every bounded matrix."""
        return tuple(
            Reading(name, *values[:4], bool(values[4]), bool(values[5]))
            for name, values in ((n, v.tolist()) for n, v in self._last)
        )

    @property
    def bound_fraction(self) -> float:
        """Share of the bounded matrices whose learning rate the last step truncated."""
        return sum(r.bound for r in self.readings()) / max(1, len(self._last))


def _cut(view: View, t: Tensor) -> Tensor:
    """Return the matrix that a view names, sharing the parameter's memory."""
    flat = t.view(t.shape[0], -1)
    return flat if view.size < 0 else flat.narrow(view.dim, view.start, view.size)
