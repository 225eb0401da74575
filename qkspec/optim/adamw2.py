"""AdamW²: AdamW whose step on a matrix may not exceed the fraction τ of the matrix's spectral norm (P, algorithm 1)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim.bounding import Estimator, bounded_step
from qkspec.optim.direction import counts_on_device, moments, plain_adamw
from qkspec.optim.readings import Reading, bound_fraction, suggest_tau, to_readings
from qkspec.optim.roles import Role, View, choose_role, views
from qkspec.optim.sharding import local, shard_of
from qkspec.optim.shield import uncompiled, unrounded
from qkspec.optim.stack import MEMORY, Member, Stack, batch_up, stack_up

_SMALL = 1 << 16  # elements up to which matrices of one shape are multiplied together on a CPU too


@dataclass(frozen=True)
class _Plan:
    """What a step does with the parameters that have a gradient; it holds as long as these and their state are there.

    Args:
        present: their ids.
        held: a tensor of each one's state, under its name.
        batches: stacks to bound, batch by batch.
        free: what is left to plain AdamW, by group.
    """

    present: tuple[int, ...]
    held: list[tuple[Tensor, str, Tensor]]
    batches: list[list[Stack]]
    free: list[tuple[dict[str, Any], list[Tensor]]]

    def holds(self, present: tuple[int, ...], state: dict[Tensor, Any]) -> bool:
        """Whether nobody has frozen or freed a parameter, or dropped or exchanged a state (a restart, an offload)."""
        return self.present == present and all(state.get(p, {}).get(name) is t for p, name, t in self.held)


class AdamW2(torch.optim.AdamW):
    """AdamW that, for one matrix and one step, truncates the learning rate to τ σ₁(W)/σ₁(∇W) where it is larger.

    A drop-in for ``torch.optim.AdamW``: the same arguments, the same state, loadable both ways. The truncated rate
    multiplies the decay as well; a group's own lr is never touched. With τ = ∞ it is AdamW.

    q, k and v of a fused projection and stacked experts are bounded one by one; embeddings and vectors keep the plain
    lr unless ``exempt`` says otherwise. Give it ``model.named_parameters()``: names tell these apart, and without them
    a fused projection is one matrix. ``table()`` shows the choice.

    Args:
        params: parameters, named parameters, or groups of either.
        lr, betas, eps, weight_decay, amsgrad: as in torch.
        tau: largest σ₁ of a step relative to σ₁ of the weight, above 0: growth per step is at most e^τ. The paper's
            0.003-0.01 is for runs of 10⁵ steps from large initial weights. As lr, it may be set anew each step
            (``group["tau"]``): where most updates are truncated, the steps shrink with tau, not with lr.
        power_iters: two-sided passes over each update. With ``block=1, warm=False`` these are the paper's iterations.
        block: probes remembered for each matrix; as many fresh ones join them every step.
        warm: remember probes from step to step; without, every estimate starts cold, the weight's too.
        refresh: steps between passes over a weight; in between ‖Wv‖ with its last Ritz vector stands for σ₁(W).
        eps_mode: "outside" the root as torch has it, or "inside" as the paper prints it.
        floor: σ₁(W) counts as at least floor · (√m + √n), half of what N(0, 0.02) entries have; 0 is the algorithm as
            printed, under which a zero matrix stays zero for ever.
        exempt: kinds ("embedding", "vector", "matrix") and shell patterns of names that keep the plain lr.
        roles: shell patterns of names to a ``Role`` or a word, where what names and shapes tell is wrong.
        certified: bound σ₁(∇W) from above by its Schatten-8 norm, so that Rule 1 holds for certain (where not floored).
        seed: of the probes; the global random state is never read or changed.
        batched: multiply matrices of one shape together (default: on CUDA, where sharded, and where small).
        maximize, foreach, fused, capturable: as in torch; by default torch's fused kernel does the element-wise part.

    Raises:
        UsageError: an argument is out of range, or a parameter cannot be bounded as asked.
    """

    def __init__(  # noqa: PLR0913  # torch's arguments and ours: a drop-in takes them one by one
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,  # noqa: FBT001, FBT002  # torch's own position
        *,
        tau: float = 0.004,
        power_iters: int = 1,
        block: int = 6,
        warm: bool = True,
        refresh: int = 10,
        eps_mode: Literal["outside", "inside"] = "outside",
        floor: float = 0.01,
        exempt: Iterable[str] = ("embedding", "vector"),
        roles: Mapping[str, Role | str] | None = None,
        certified: bool = False,
        seed: int = 0,
        batched: bool | None = None,
        **torch_options: Any,
    ) -> None:
        self._how = Estimator(power_iters, block, warm, refresh, certified, seed)
        self._exempt, self._roles, self._batched = (
            (exempt,) if isinstance(exempt, str) else tuple(exempt),
            roles,
            batched,
        )
        self._forget()
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **torch_options)
        ours = {"tau": tau, "eps_mode": eps_mode, "floor": floor, "bounded_steps": 0}
        self.defaults.update(ours)
        for group in self.param_groups:
            for name, value in ours.items():
                group.setdefault(name, value)
            _check(group, self._how)
        for member, _ in self._members():
            _check_parameter(member)

    def _forget(self) -> None:
        """Drop everything that can be computed again from the groups and the state."""
        self._plan: _Plan | None = None
        self._records: list[tuple[tuple[str, ...], Tensor]] = []
        self._scratch: dict[torch.dtype, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle of the optimizer needs."""
        ours = ("_how", "_exempt", "_roles", "_batched")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, torch.optim.AdamW's included, whose groups lack our settings."""
        self._forget()
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            for name in ("tau", "eps_mode", "floor", "bounded_steps"):
                group.setdefault(name, self.defaults[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; it may set tau, floor and eps_mode of its own."""
        if "tau" in self.defaults:
            _check({**self.defaults, **param_group}, self._how)
        super().add_param_group(param_group)
        self._plan = None

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; what is remembered is copied out of its stacks: no tensors share memory."""
        whole = super().state_dict()
        states = whole["state"].items()
        whole["state"] = {i: {k: v.clone() if k in MEMORY else v for k, v in s.items()} for i, s in states}
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of AdamW2, bit for bit, or of torch.optim.AdamW, whose first step then measures from scratch."""
        super().load_state_dict(state_dict)
        ours = [p for group in self.param_groups for p in group["params"]]
        theirs = [i for group in state_dict["param_groups"] for i in group["params"]]
        for p, i in zip(ours, theirs, strict=True):
            saved = state_dict["state"].get(i, {})
            for name in MEMORY:
                if name in saved:  # torch has cast it to the parameter's dtype, which may be narrower
                    self.state[p][name] = saved[name].to(local(p).device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; a closure, where given, computes the loss again, and its result is returned.

        In a CUDA graph every replay passes over the weights too, and lr and tau change only where they are tensors.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with unrounded(p for group in self.param_groups for p in group["params"]):
            self._advance()
        return loss

    @uncompiled
    def _advance(self) -> None:
        """Plan the step, where need be, and take it."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise UsageError("a CUDA graph needs every count on the device: make AdamW2 with capturable=True")
        scaler = {n: v for n in ("grad_scale", "found_inf") if (v := getattr(self, n, None)) is not None}
        plan = self._plan_step(capturing=capturing)
        for group, params in plan.free:
            plain_adamw([local(p).detach() for p in params], [moments(p, self.state[p]) for p in params], group, scaler)
        self._records = []
        for stacks in plan.batches:
            records = bounded_step(
                stacks, self.state, self._how, scaler, scratch=self._scratch_for(stacks), renew_all=capturing
            )
            self._records += zip([stack.names for stack in stacks], records, strict=True)
        for group in self.param_groups:
            group["bounded_steps"] += 1
        if any(stack.cold for stacks in plan.batches for stack in stacks):
            self._plan = None
            self._plan_step()  # now, while the device may be waited for: the next step may be captured in a graph

    def readings(self) -> tuple[Reading, ...]:
        """Return what the last step did to every bounded matrix; the only call that waits for the device."""
        names = [name for some, _ in self._records for name in some]
        return to_readings(names, [record for _, record in self._records])

    @property
    def bound_fraction(self) -> float:
        """Share of the bounded matrices whose learning rate the last step truncated; NaN before the first step."""
        return bound_fraction([record for _, record in self._records])

    def suggest_tau(self, share: float = 0.5) -> float:
        """Return the τ that would have truncated the given share of the last step's matrices."""
        return suggest_tau(self.readings(), share)

    def table(self) -> str:
        """Return one line a parameter: name, shape, kind, and the matrices that are bounded or "free"."""
        rows = []
        for member, kind in self._members():
            shown = ", ".join(v.name.removeprefix(member.name) or "whole" for v in member.views) or "free"
            rows.append((member.name, " x ".join(map(str, member.param.shape)), kind, shown))
        widths = [max([len(row[i]) for row in rows], default=0) for i in range(3)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)

    def _members(self) -> list[tuple[Member, str]]:
        """Return every parameter with its role, in order; one that is exempt has no views."""
        members: list[tuple[Member, str]] = []
        for g, group in enumerate(self.param_groups):
            names = group.get("param_names") or [None] * len(group["params"])
            if len(names) != len(group["params"]):
                raise UsageError(
                    f"group {g} has {len(names)} param_names for {len(group['params'])} parameters: whoever exchanged "
                    "its parameters has to exchange their names, or remove them"
                )
            for i, (name, p) in enumerate(zip(names, group["params"], strict=True)):
                shown = name or f"group{g}.{i}"
                role = choose_role(name, p.shape, self._roles)
                free = any(role.kind == e or fnmatchcase(shown, e) for e in self._exempt)
                cuts: tuple[View, ...] = () if free else views(shown, role, p.shape)
                members.append((Member(p, len(members), shown, cuts, group), role.kind))
        return members

    def _plan_step(self, *, capturing: bool = False) -> _Plan:
        """Return the plan of a step; it is made anew when it no longer holds, which a CUDA graph cannot capture."""
        present = tuple(id(p) for group in self.param_groups for p in group["params"] if p.grad is not None)
        if self._plan is None or not self._plan.holds(present, self.state):
            if capturing:
                raise UsageError(
                    "take a step with these gradients before a CUDA graph captures one: AdamW2 plans in it"
                )
            members = [member for member, _ in self._members() if member.param.grad is not None]
            for member in members:
                self._prepare(member)
            bounded = [m for m in members if m.views]
            stacks = stack_up(bounded, self.state, self._how.block, self._how.seed, alone=self._alone)
            free = [(g, [m.param for m in members if not m.views and m.group is g]) for g in self.param_groups]
            uses = [(m.param, MEMORY[-1] if m.views else "exp_avg") for m in members]
            held = [(p, name, self.state[p][name]) for p, name in uses]
            self._plan = _Plan(present, held, batch_up(stacks), [(g, params) for g, params in free if params])
        return self._plan

    def _alone(self, p: Tensor) -> bool:
        """Whether a parameter is best multiplied by itself: on a CPU, stacking only helps the small ones."""
        batched = p.device.type != "cpu" or p.numel() <= _SMALL if self._batched is None else self._batched
        return not batched and local(p) is p

    def _prepare(self, member: Member) -> None:
        """Give a parameter Adam's state, and put its step count where torch's kernels want it."""
        p, group, state = member.param, member.group, self.state[member.param]
        assert p.grad is not None
        if p.grad.is_sparse:
            raise UsageError(f"{member.name}: AdamW2 takes dense gradients only; make its module with sparse=False")
        _check_parameter(member)
        place = local(p).device if counts_on_device(group, p) else torch.device("cpu")
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=place)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if state["step"].device != place:
            state["step"] = state["step"].to(place)

    def _scratch_for(self, stacks: list[Stack]) -> Tensor | None:
        """Return memory for a batch's updates on a CPU, the same for all; elsewhere torch allocates it."""
        p = local(stacks[0].members[0].param)
        if p.device.type != "cpu":
            return None
        need = sum(stack.elements for stack in stacks)
        if p.dtype not in self._scratch or self._scratch[p.dtype].numel() < need:
            self._scratch[p.dtype] = torch.empty(need, dtype=p.dtype, device=p.device)
        return self._scratch[p.dtype]


def _check_parameter(member: Member) -> None:
    """Refuse numbers that have no norm here, what is no matrix any more, and a device that cannot compute the bound."""
    if member.param.is_complex():
        raise UsageError(f"{member.name} is complex; AdamW2 takes real parameters: leave it to torch.optim.AdamW")
    if getattr(member.param, "_fsdp_flattened", False):  # torch's own mark
        raise UsageError(
            f"{member.name} is flattened by FullyShardedDataParallel, which leaves no matrix to bound; "
            "shard with fully_shard (FSDP2)"
        )
    if member.views:
        shard_of(member.param, member.name)
    if member.views and member.param.device.type == "mps":
        raise UsageError(
            f"{member.name} is on MPS, which has no float64 for the norms; "
            "train on a CPU or on CUDA, or with torch.optim.AdamW"
        )


def _check(group: dict[str, Any], how: Estimator) -> None:
    """Refuse what cannot be meant."""
    if not group["tau"] > 0:
        raise UsageError(f"tau is the largest relative step and must be above 0, not {group['tau']}")
    if not group["floor"] >= 0:
        raise UsageError(f"floor must be 0 (as printed) or above, not {group['floor']}")
    if group["eps_mode"] not in ("outside", "inside"):
        raise UsageError(f"eps_mode is 'outside' (torch) or 'inside' (the paper), not {group['eps_mode']!r}")
    counts = how.power_iters, how.block, how.refresh
    if not all(isinstance(count, int) and count >= 1 for count in counts):
        raise UsageError(f"power_iters, block and refresh must be whole numbers of at least 1, not {counts}")
    if group["differentiable"]:
        raise UsageError("AdamW2 cannot be differentiated through; leave differentiable off")
    if group["fused"] and group["eps_mode"] == "inside":
        raise UsageError("torch's fused kernel has ε outside the root; leave fused unset with eps_mode='inside'")
