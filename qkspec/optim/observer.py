"""Observe mode: any optimizer goes on as it is, and what AdamW² would have cut is on record."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim import sigma
from qkspec.optim.readings import Reading, bound_fraction, suggest_tau, to_readings
from qkspec.optim.roles import Role, View, choose_role, flat, views
from qkspec.optim.sharding import local, shard_of
from qkspec.optim.shield import uncompiled, unrounded


class Observer:
    """Watches an optimizer's steps from the difference of the weights; made by ``observe``, ended by ``detach``."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        watched: list[tuple[Tensor, dict[str, Any], tuple[View, ...]]],
        *,
        tau: float,
        floor: float,
        every: int,
        block: int,
        seed: int,
    ) -> None:
        self._watched, self._tau, self._floor, self._every, self._block, self._seed = (
            watched,
            tau,
            floor,
            every,
            block,
            seed,
        )
        self._step, self._before = 0, list[Tensor | None]()
        self._basis: dict[tuple[int, int, str], Tensor] = {}
        self._names: list[str] = []
        self._records: list[Tensor] = []
        self._hooks = [optimizer.register_step_pre_hook(self._pre), optimizer.register_step_post_hook(self._post)]

    @property
    def bound_fraction(self) -> float:
        """Share of the matrices whose last observed step AdamW² would have cut; NaN before the first."""
        return bound_fraction(self._records)

    def readings(self) -> tuple[Reading, ...]:
        """Return the last observed step; ``effective_lr`` is the rate that AdamW² would have used."""
        return to_readings(self._names, self._records)

    def suggest_tau(self, share: float = 0.5) -> float:
        """Return the τ that would have cut the given share of the last observed step's matrices."""
        return suggest_tau(self.readings(), share)

    def detach(self) -> None:
        """Stop observing."""
        for hook in self._hooks:
            hook.remove()

    @uncompiled
    @torch.no_grad()
    def _pre(self, *_: Any) -> None:
        """Keep the weights of a step that is to be observed."""
        if self._step % self._every == 0:
            self._before = [local(p).detach().clone() if p.grad is not None else None for p, _, _ in self._watched]

    @uncompiled
    @torch.no_grad()
    def _post(self, *_: Any) -> None:
        """Measure the step from the difference of the weights, decoupled decay taken out."""
        with unrounded(p for p, _, _ in self._watched):
            self._measure()
        self._step += 1

    def _measure(self) -> None:
        """Record the step, if it was one to observe."""
        if self._before:
            self._names, self._records = [], []
            for i, ((p, group, cuts), before) in enumerate(zip(self._watched, self._before, strict=True)):
                if before is None:
                    continue
                lr = float(group["lr"])
                moved = before - local(p).detach()
                if group.get("decoupled_weight_decay", False):
                    moved = moved - lr * group["weight_decay"] * before
                for j, view in enumerate(cuts):
                    self._names.append(view.name)
                    rows = flat(p.shape, view)
                    w, u = (sigma.wide(sigma.matrix(view, t.reshape(rows)))[None] for t in (before, moved))
                    self._records.append(self._record(i, j, w, u, lr))
            self._before = []

    def _record(self, i: int, j: int, w: Tensor, step: Tensor, lr: float) -> Tensor:
        """Return one row as AdamW2 records it: (1, 7), from W and lr · ∇W, (1, m, n) each."""
        weight = self._norm(i, j, "weight", w)
        moved = self._norm(i, j, "update", step)
        floor = self._floor * (sqrt(w.shape[1]) + sqrt(w.shape[2]))
        limit = self._tau * weight.clamp(min=floor)
        rate = torch.full_like(weight, lr)
        bound = moved > limit
        applied = torch.where(bound, rate * limit / moved, rate)
        update = moved / lr if lr else torch.zeros_like(moved)
        upper = torch.full_like(weight, torch.nan)
        return torch.stack([weight, update, upper, rate, applied, bound.double(), (weight < floor).double()], -1)

    def _norm(self, i: int, j: int, use: str, a: Tensor) -> Tensor:
        """Return σ₁ (1,) from remembered and fresh probes; eight passes the first time, then one."""
        n, at = a.shape[-1], (i, j, use)
        keys = torch.tensor([sigma.key(self._seed, i, j, use)], device=a.device)
        found = a.new_zeros(1)
        for r in range(1 if at in self._basis else 8):
            new = sigma.fresh(keys + r, torch.tensor(self._step, device=a.device), 2 * self._block, n).to(a.dtype)
            before = self._basis.get(at)
            x = new if before is None else torch.cat([before[:, 1:], new[:, : self._block]], 1)
            if n <= 2 * self._block:
                x = torch.eye(2 * self._block, n, dtype=a.dtype, device=a.device)[None]
            gram, y = sigma.products(a, x)
            y = y.double()
            found, chosen = sigma.ritz(gram, y @ y.mT, self._block, 1e-6 if a.dtype == torch.float32 else 1e-12)
            self._basis[at] = sigma.remember(chosen, y, x[:, : 1 + self._block] if before is None else before)
        return found


def observe(  # noqa: PLR0913  # AdamW2's settings, one by one as it takes them
    optimizer: torch.optim.Optimizer,
    *,
    tau: float = 0.004,
    names: Iterable[tuple[str, Tensor]] | None = None,
    exempt: Iterable[str] = ("embedding", "vector"),
    roles: Mapping[str, Role | str] | None = None,
    floor: float = 0.01,
    every: int = 1,
    block: int = 6,
    seed: int = 0,
) -> Observer:
    """Record what AdamW² would have cut of an optimizer's steps; the weights it arrives at are bit for bit the same.

    The observed steps need memory for one copy of the watched weights, and three passes over them.

    Args:
        optimizer: any of torch's interface.
        tau: as in ``AdamW2``, like all that follow but ``names`` and ``every``.
        names: ``model.named_parameters()``, where the optimizer was not given names itself.
        exempt: kinds and name patterns that are not watched.
        roles: name patterns to roles.
        floor: least σ₁(W).
        every: observe each this many steps.
        block: probes.
        seed: of the probes.

    Raises:
        UsageError: an argument is out of range, or a parameter is sharded.
    """
    if not tau > 0 or every < 1 or block < 1:
        raise UsageError(f"observing needs tau above 0 and every and block of at least 1, not {tau}, {every}, {block}")
    given = {id(p): n for n, p in names or ()}
    kinds = (exempt,) if isinstance(exempt, str) else tuple(exempt)
    watched = []
    for g, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [None] * len(group["params"])
        for i, (name, p) in enumerate(zip(own, group["params"], strict=True)):
            called = given.get(id(p), name)
            shown = called or f"group{g}.{i}"
            role = choose_role(called, p.shape, roles)
            if any(role.kind == e or fnmatchcase(shown, e) for e in kinds):
                continue
            if p.device.type == "mps":
                raise UsageError(f"{shown} is on MPS, which has no float64 for the norms; observe on a CPU or on CUDA")
            if shard_of(p, shown) is not None:
                raise UsageError(f"{shown} is sharded; observe a run of one process, or use AdamW2 with a large tau")
            watched.append((p, group, views(shown, role, p.shape)))
    return Observer(optimizer, watched, tau=tau, floor=floor, every=every, block=block, seed=seed)
