"""Rule 1 on stacks of parameters: measure update and weight, truncate the learning rate, apply (P, algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim import sigma
from qkspec.optim.sharding import reduce_all
from qkspec.optim.stack import Stack

_BURN_IN = 8  # passes over a matrix of which nothing is known yet


@dataclass(frozen=True)
class Estimator:
    """How spectral norms are estimated.

    Args:
        power_iters: two-sided passes over the update each step (K).
        block: probes remembered, and as many fresh ones each step.
        warm: whether anything is remembered; without, block 1 is the paper's power iteration.
        refresh: steps between passes over a weight; in between ‖Wv‖ with its Ritz vector v bounds σ₁ from below.
        certified: the update's norm is a bound from above, so that Rule 1 holds for certain.
        seed: of the probes.
    """

    power_iters: int
    block: int
    warm: bool
    refresh: int
    certified: bool
    seed: int

    @property
    def paper(self) -> bool:
        """Whether this is the paper's cold power iteration of one vector."""
        return self.block == 1 and not self.warm


@dataclass(frozen=True)
class Norms:
    """Spectral norms of one view of a stack, (P,) float64 each; ``upper`` is NaN unless certified."""

    weight: Tensor
    update: Tensor
    upper: Tensor


@dataclass(frozen=True)
class _Entry:
    """One view of a stack in one step; update (P, m, n), weights P of (m, n)."""

    stack: Stack
    j: int
    update: Tensor
    weights: list[Tensor]
    renew: bool

    @property
    def group(self) -> Any:
        """The ranks over which sums must be completed, or None."""
        return self.stack.shard.group if self.stack.shard else None


@dataclass(frozen=True)
class _Probe:
    """A matrix stack (P, m, n), its probes (P, k, n), and the buffer (P, b, n) that remembers the best."""

    a: Tensor
    x: Tensor
    basis: Tensor
    group: Any


def bounded_step(
    stacks: Sequence[Stack],
    state: dict[Tensor, Any],
    how: Estimator,
    scaler: dict[str, Tensor],
    *,
    scratch: Tensor | None = None,
    renew_all: bool = False,
) -> list[Tensor]:
    """Take one step on stacks that are all cold or all warm; sharded ones need one all-reduce (a cold start eight).

    Args:
        stacks: from ``stack_up``.
        state: the optimizer's state.
        how: the estimator.
        scaler: of AMP, see ``write_directions``.
        scratch: flat memory to hold the updates, or None to allocate.
        renew_all: pass over every weight, whatever the step.

    Returns:
        for each stack (V P, 7) float64: σ₁(W), σ₁(∇W), its upper bound, lr, applied lr, truncated?, floored?

    Raises:
        UsageError: the paper's iteration is asked for on sharded parameters.
    """
    if how.paper and any(stack.shard for stack in stacks):
        raise UsageError("block=1, warm=False (the paper's iteration) does not reduce over shards: use a larger block")
    ends, used = [], 0
    for stack in stacks:
        mine = None if scratch is None else scratch[used : used + stack.elements]
        ends.append(stack.directions(state, scaler, mine))
        used += stack.elements
    entries = []
    for stack, end in zip(stacks, ends, strict=True):
        renew = renew_all or stack.cold or not how.warm or stack.group["bounded_steps"] % how.refresh == 0
        for j, view in enumerate(stack.views):
            entries.append(_Entry(stack, j, sigma.matrix(view, end), stack.weights(view), renew))
    now = torch.stack([state[m.param]["step"] for e in entries for m in e.stack.members])
    now = now.to(entries[0].update.device, torch.int64)
    steps = now.split_with_sizes([len(e.stack.members) for e in entries])
    norms = _paper_norms(entries, steps, how) if how.paper else _block_norms(entries, steps, how)
    records = _rates(entries, norms, how, scaler)
    done = []
    for stack, end in zip(stacks, ends, strict=True):
        own = [r for r, e in zip(records, entries, strict=True) if e.stack is stack]
        done.append(torch.cat(own))
        stack.apply(end, done[-1][:, 4].to(end.dtype))
    return done


def _rates(
    entries: Sequence[_Entry], norms: Sequence[Norms], how: Estimator, scaler: dict[str, Tensor]
) -> list[Tensor]:
    """Return each entry's (P, 7) record: all entries of a parameter group in one go."""
    records: list[Tensor] = [n.weight for n in norms]
    groups: dict[int, list[int]] = {}
    for i, e in enumerate(entries):
        groups.setdefault(id(e.stack.group), []).append(i)
    for at in groups.values():
        stack = entries[at[0]].stack
        whole = Norms(*(torch.cat([getattr(norms[i], n) for i in at]) for n in ("weight", "update", "upper")))
        sizes = torch.cat([entries[i].stack.sizes[entries[i].j] for i in at])
        found = truncate(whole, stack.group, sizes, stack.stretch, certified=how.certified, scaler=scaler)
        split = found.split_with_sizes([norms[i].weight.shape[0] for i in at])
        for i, record in zip(at, split, strict=True):
            records[i] = record
    return records


def truncate(
    norms: Norms, group: dict[str, Any], sizes: Tensor, stretch: float, *, certified: bool, scaler: dict[str, Tensor]
) -> Tensor:
    """Truncate the learning rate to τ σ₁(W)/σ₁(∇W) where that is less (P, algorithm 1, lines 7-9).

    Args:
        norms: of M matrices; the update's are those of ``stretch`` times the update.
        group: the parameter group: lr, tau, floor.
        sizes: (M,) √m + √n, the unit of the floor.
        stretch: see ``Stack.stretch``.
        certified: use the update's upper bound, and allow for rounding.
        scaler: of AMP; where it found an infinity the rate is 0, for decay too.

    Returns:
        (M, 7): norms, the group's lr, the rate to apply, truncated?, floored?
    """
    floor = sizes * group["floor"]
    update, upper = norms.update / stretch, norms.upper / stretch
    limit = torch.maximum(norms.weight, floor) * group["tau"]
    limit = limit * (1 - sigma.margin(torch.float32)) / upper if certified else limit / update
    rate = group["lr"]  # what the host knows is filled in, not copied over: a copy would wait for the device
    if isinstance(rate, Tensor) and rate.device.type == "cpu":
        rate = rate.item()
    lr = rate.to(limit).expand_as(limit) if isinstance(rate, Tensor) else torch.full_like(limit, rate)
    bound = limit < lr
    alpha = torch.where(bound, limit, lr)
    if "found_inf" in scaler:
        alpha = torch.where(scaler["found_inf"].to(alpha.device) > 0, torch.zeros_like(alpha), alpha)
    return torch.stack([norms.weight, update, upper, lr, alpha, bound.double(), (norms.weight < floor).double()], -1)


def _paper_norms(entries: Sequence[_Entry], steps: Sequence[Tensor], how: Estimator) -> list[Norms]:
    """The paper's estimate: both norms by K cold power iterations, every step."""
    norms = []
    for e, step in zip(entries, steps, strict=True):
        n = e.update.shape[-1]
        x_u = sigma.fresh(e.stack.keys_u[e.j], step, 1, n)[:, 0]
        x_w = sigma.fresh(e.stack.keys_w[e.j], step, 1, n)[:, 0]
        update = sigma.power_iteration(e.update, x_u, how.power_iters)
        weight = sigma.power_iteration(torch.stack(e.weights), x_w, how.power_iters)
        upper = sigma.schatten8(sigma.inner(e.update)) if how.certified else torch.full_like(update, torch.nan)
        norms.append(Norms(weight, update, upper))
    return norms


def _block_norms(entries: Sequence[_Entry], steps: Sequence[Tensor], how: Estimator) -> list[Norms]:
    """Ritz estimates from remembered and fresh probes; weights between their passes by ‖Wv‖."""
    cold = entries[0].stack.cold or not how.warm
    rounds = max(_BURN_IN, how.power_iters) if entries[0].stack.cold and how.warm else how.power_iters
    renewed = [e for e in entries if e.renew]
    tracked = [e for e in entries if not e.renew]
    stacked = [torch.stack(e.weights) for e in renewed]
    keys = torch.cat([e.stack.keys_u[e.j] for e in entries] + [e.stack.keys_w[e.j] for e in renewed])
    when = torch.cat([*steps, *(step for step, e in zip(steps, entries, strict=True) if e.renew)])
    sources = [(e.update, e.stack.basis_u[:, e.j], e.group) for e in entries]
    sources += [(w, e.stack.basis_w[:, e.j], e.group) for w, e in zip(stacked, renewed, strict=True)]
    found: list[Tensor] = []
    sums: list[Tensor] = []
    for r in range(rounds):
        probes = _probes(sources, keys + r * 0x85EBCA6B, when, how.block, cold=cold and r == 0)
        extra = []
        if r == rounds - 1:
            extra = [(sigma.image_norm2(e.weights, e.stack.basis_w[:, e.j, 0]), e.group) for e in tracked]
            extra += [(sigma.inner(e.update, whole=e.group is None), e.group) for e in entries] if how.certified else []
        found, sums = _measure(probes, extra)
    weights = dict(zip(map(id, renewed), found[len(entries) :], strict=True))
    weights |= dict(zip(map(id, tracked), (s.sqrt() for s in sums[: len(tracked)]), strict=True))
    if how.certified:
        uppers = [sigma.schatten8(g) for g in sums[len(tracked) :]]
    else:
        unknown = torch.full_like(torch.cat(found[: len(entries)]), torch.nan)
        uppers = list(unknown.split_with_sizes([e.update.shape[0] for e in entries]))
    return [Norms(weights[id(e)], found[i], uppers[i]) for i, e in enumerate(entries)]


def _probes(
    sources: Sequence[tuple[Tensor, Tensor, Any]], keys: Tensor, steps: Tensor, block: int, *, cold: bool
) -> list[_Probe]:
    """Return each matrix with what is remembered of it and fresh probes; a narrow one with the whole identity."""
    widest = max(a.shape[-1] for a, _, _ in sources)
    news = sigma.fresh(keys, steps, 2 * block if cold else block, widest).split_with_sizes(
        [a.shape[0] for a, _, _ in sources]
    )
    probes = []
    for (a, basis, group), new in zip(sources, news, strict=True):
        n = a.shape[-1]
        if n <= 2 * block:
            x = torch.eye(n, dtype=basis.dtype, device=a.device).expand(a.shape[0], n, n)
        else:
            x = new[..., :n].to(basis.dtype) if cold else torch.cat([basis, new[..., :n].to(basis.dtype)], 1)
        probes.append(_Probe(a, x, basis, group))
    return probes


def _measure(probes: Sequence[_Probe], extra: Sequence[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Pass once over every matrix and update what is remembered; one reduction completes all sums.

    Returns:
        σ (P,) of each probe's matrix, and the extra sums, completed.
    """
    passed = [sigma.products(p.a, p.x) for p in probes]
    partial = [t for pair in passed for t in pair] + [t for t, _ in extra]
    groups = [p.group for p in probes for _ in range(2)] + [group for _, group in extra]
    whole = reduce_all(partial, groups)
    grams, ys, sums = whole[0 : 2 * len(probes) : 2], whole[1 : 2 * len(probes) : 2], whole[2 * len(probes) :]
    found: list[Tensor] = [probes[0].x] * len(probes)
    kinds: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, p in enumerate(probes):
        kinds.setdefault((p.x.shape[1], p.basis.shape[1], p.x.dtype), []).append(i)
    for (_, keep, dtype), at in kinds.items():  # every Ritz problem of one size in one call, whatever its matrix
        gram, image = torch.cat([grams[i] for i in at]), torch.cat([ys[i] @ ys[i].mT for i in at])
        values, chosen = sigma.ritz(gram, image, keep, 1e-6 if dtype == torch.float32 else 1e-12)
        sizes = [probes[i].a.shape[0] for i in at]
        for i, value, choice in zip(at, values.split_with_sizes(sizes), chosen.split_with_sizes(sizes), strict=True):
            found[i] = value
            probes[i].basis.copy_(sigma.remember(choice, ys[i], probes[i].x))
    return found, sums
