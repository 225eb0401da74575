"""Rule 1 on stacks of parameters: measure update and weight, truncate the learning rate, apply (P, algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim import sigma
from qkspec.optim.sharding import Shard, reduce_all
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
    """Spectral norms of M matrices, (M,) float64 each; ``upper`` is NaN unless certified."""

    weight: Tensor
    update: Tensor
    upper: Tensor


@dataclass(frozen=True)
class _Entry:
    """One view of a stack in one step: update (P, m, n), weights P of (m, n), step (P,) of the probe stream."""

    stack: Stack
    j: int
    update: Tensor
    weights: list[Tensor]
    step: Tensor
    renew: bool


@dataclass(frozen=True)
class _Job:
    """A stack of matrices to pass over: a (P, m, n), keys and step (P,) of its probes, memory (P, 1 + b, n)."""

    a: Tensor
    keys: Tensor
    step: Tensor
    memory: Tensor


def bounded_step(
    stacks: Sequence[Stack],
    state: dict[Tensor, Any],
    how: Estimator,
    scaler: dict[str, Tensor],
    *,
    scratch: Tensor | None = None,
    renew_all: bool = False,
) -> list[Tensor]:
    """Take one step on stacks that are all cold or all warm, and that the same ranks share where they are sharded.

    Sharded ones need one all-reduce (a cold start eight), and a certificate one more for each matrix wider than high.

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
    now = torch.stack([state[m.param]["step"] for stack in stacks for m in stack.members])
    now = now.to(ends[0].device, torch.int64, non_blocking=True)
    entries = []
    for stack, end, step in zip(stacks, ends, now.split_with_sizes([len(s.members) for s in stacks]), strict=True):
        renew = renew_all or stack.cold or not how.warm or stack.group["bounded_steps"] % how.refresh == 0
        for j, view in enumerate(stack.views):
            entries.append(_Entry(stack, j, sigma.wide(sigma.matrix(view, end)), stack.weights(view), step, renew))
    norms = _paper_norms(entries, how) if how.paper else _block_norms(entries, how)
    records = _rates(stacks, norms, how, scaler)
    rates = records[:, 4].to(ends[0].dtype)
    sizes = [stack.matrices for stack in stacks]
    for stack, end, rate in zip(stacks, ends, rates.split_with_sizes(sizes), strict=True):
        stack.apply(end, rate)
    return list(records.split_with_sizes(sizes))


def _rates(stacks: Sequence[Stack], norms: Norms, how: Estimator, scaler: dict[str, Tensor]) -> Tensor:
    """Return the (M, 7) records of all matrices: those of a parameter group, which are neighbours, in one go."""
    records, at = [], 0
    for _, some in groupby(stacks, lambda stack: id(stack.group)):
        alike = list(some)
        sizes = torch.cat([stack.sizes.flatten() for stack in alike])
        here = slice(at, at := at + len(sizes))
        whole = Norms(norms.weight[here], norms.update[here], norms.upper[here])
        first = alike[0]
        margin = sigma.margin(first.members[0].param.dtype) if how.certified else None
        records.append(truncate(whole, first.group, sizes, first.stretch, margin=margin, scaler=scaler))
    return records[0] if len(records) == 1 else torch.cat(records)


def truncate(
    norms: Norms,
    group: dict[str, Any],
    sizes: Tensor,
    stretch: float,
    *,
    margin: float | None,
    scaler: dict[str, Tensor],
) -> Tensor:
    """Truncate the learning rate to τ σ₁(W)/σ₁(∇W) where that is less (P, algorithm 1, lines 7-9).

    Args:
        norms: of M matrices; the update's are those of ``stretch`` times the update.
        group: the parameter group: lr, tau (0 or above, it too may change from step to step or be a tensor), floor.
        sizes: (M,) √m + √n, the unit of the floor.
        stretch: see ``Stack.stretch``.
        margin: certified: use the update's upper bound, and allow for this relative rounding error; None: as estimated.
        scaler: of AMP; where it found an infinity the rate is 0, for decay too.

    Returns:
        (M, 7): norms, the group's lr, the rate to apply, truncated?, floored?

    Raises:
        UsageError: τ is negative or NaN.
    """
    tau = group["tau"]
    if not isinstance(tau, Tensor) and not tau >= 0:
        raise UsageError(f"tau is the largest relative step and cannot be {tau}; a schedule may lower it to 0")
    floor = sizes * group["floor"]
    update, upper = norms.update / stretch, norms.upper / stretch
    limit = torch.maximum(norms.weight, floor) * tau
    least = torch.finfo(limit.dtype).tiny  # an update of zero has no limit, but where τ is 0 none may move
    limit = limit / update.clamp_min(least) if margin is None else limit * (1 - margin) / upper.clamp_min(least)
    rate = group["lr"]  # what the host knows is filled in, not copied over: a copy would wait for the device
    if isinstance(rate, Tensor) and rate.device.type == "cpu":
        rate = rate.item()
    lr = rate.to(limit).expand_as(limit) if isinstance(rate, Tensor) else torch.full_like(limit, rate)
    bound = limit < lr
    alpha = torch.where(bound, limit, lr)
    if "found_inf" in scaler:
        alpha = torch.where(scaler["found_inf"].to(alpha.device) > 0, torch.zeros_like(alpha), alpha)
    return torch.stack([norms.weight, update, upper, lr, alpha, bound.double(), (norms.weight < floor).double()], -1)


def _paper_norms(entries: Sequence[_Entry], how: Estimator) -> Norms:
    """The paper's estimate: both norms by K cold power iterations, every step."""
    weights, updates, uppers = [], [], []
    for e in entries:
        n = e.update.shape[-1]
        x_u = sigma.fresh(e.stack.keys_u[e.j], e.step, 1, n)[:, 0]
        x_w = sigma.fresh(e.stack.keys_w[e.j], e.step, 1, n)[:, 0]
        updates.append(sigma.power_iteration(e.update, x_u, how.power_iters))
        weights.append(sigma.power_iteration(sigma.wide(torch.stack(e.weights)), x_w, how.power_iters))
        if how.certified:
            uppers.append(sigma.schatten8(sigma.inner(e.update)))
    update = torch.cat(updates)
    return Norms(torch.cat(weights), update, torch.cat(uppers) if uppers else torch.full_like(update, torch.nan))


def _block_norms(entries: Sequence[_Entry], how: Estimator) -> Norms:
    """Ritz estimates from remembered and fresh probes; weights between their passes by ‖Wv‖."""
    first = entries[0].stack
    rounds = max(_BURN_IN, how.power_iters) if first.cold and how.warm else how.power_iters
    tracked = [e for e in entries if not e.renew]
    jobs = [_Job(e.update, e.stack.keys_u[e.j], e.step, e.stack.basis_u[e.j]) for e in entries]
    jobs += [
        _Job(sigma.wide(torch.stack(e.weights)), e.stack.keys_w[e.j], e.step, e.stack.basis_w[e.j])
        for e in entries
        if e.renew
    ]
    found: list[Tensor] = []
    sums: list[Tensor] = []
    for r in range(rounds):
        extra = []
        if r == rounds - 1:
            extra = [sigma.image_norm2(e.weights, e.stack.basis_w[e.j][:, 0]) for e in tracked]
            extra += [_inner(e) for e in entries] if how.certified else []
        cold = r == 0 and (first.cold or not how.warm)
        found, sums = _measure(jobs, extra, how.block, r, first.shard, cold=cold)
    update, renewed, measured = torch.cat(found[: len(entries)]), iter(found[len(entries) :]), sums[: len(tracked)]
    kept = iter(torch.cat(measured).sqrt().split_with_sizes([len(s) for s in measured]) if tracked else ())
    weight = torch.cat([next(renewed if e.renew else kept) for e in entries])
    uppers = [sigma.schatten8(gram) for gram in sums[len(tracked) :]]
    return Norms(weight, update, torch.cat(uppers) if uppers else torch.full_like(update, torch.nan))


def _inner(e: _Entry) -> Tensor:
    """Return this rank's summand of a'a, or of a a' where that is smaller: its rows of it, for which all are needed."""
    a, shard, m = e.update, e.stack.shard, e.stack.heights[e.j]
    if shard is None:
        return sigma.inner(a)
    if m >= a.shape[-1]:
        return a.mT @ a
    first, rows = e.stack.firsts[e.j], a.shape[-2]
    gram = a.new_zeros(a.shape[0], m, m)
    for one, part in zip(gram, a, strict=True):  # one at a time: a whole update is as large as its parameter
        whole = part.new_zeros(m, part.shape[-1])
        whole[first : first + rows] = part
        (whole,) = reduce_all([whole], shard)
        one[first : first + rows] = part @ whole.mT
    return gram


def _measure(
    jobs: Sequence[_Job], extra: Sequence[Tensor], block: int, r: int, shard: Shard | None, *, cold: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Pass once over every matrix and update what is remembered; one reduction completes all sums.

    Only the passes themselves are a product for each job; the rest goes by the number of columns, or all at once.

    Args:
        jobs: what to pass over.
        extra: summands of this rank, to be completed.
        block: fresh probes a matrix.
        r: which pass of this step.
        shard: the ranks that share the rows, or None.
        cold: nothing is remembered yet.

    Returns:
        σ (P,) of each job, and the extra sums, completed.
    """
    widths: dict[int, list[_Job]] = {}
    for job in jobs:
        widths.setdefault(job.a.shape[-1], []).append(job)
    alike = list(widths.values())
    probes = _probes(alike, block, r, cold=cold)
    grams, ys = [], []
    for some, (x, _) in zip(alike, probes, strict=True):
        parts = x.split_with_sizes([len(job.a) for job in some])
        passed = [sigma.products(job.a, part) for job, part in zip(some, parts, strict=True)]
        grams += [gram for gram, _ in passed]
        ys.append(torch.cat([y for _, y in passed]).double())
    gram, *rest = reduce_all([torch.cat(grams), *ys, *extra], shard)
    ys, sums = rest[: len(ys)], rest[len(ys) :]
    image = torch.cat([y @ y.mT for y in ys])
    values, chosen = sigma.ritz(gram, image, block, 1e-6 if probes[0][0].dtype == torch.float32 else 1e-12)
    goals, news = list[Tensor](), list[Tensor]()
    for some, (_, before), y, part in zip(
        alike, probes, ys, chosen.split_with_sizes([len(y) for y in ys]), strict=True
    ):
        goals += [job.memory for job in some]
        news += sigma.remember(part, y, before).split_with_sizes([len(job.a) for job in some])
    torch._foreach_copy_(goals, news)
    order = [job for some in alike for job in some]
    found = dict(zip(map(id, order), values.split_with_sizes([len(job.a) for job in order]), strict=True))
    return [found[id(job)] for job in jobs], sums


def _probes(alike: Sequence[Sequence[_Job]], block: int, r: int, *, cold: bool) -> list[tuple[Tensor, Tensor]]:
    """Return for jobs of equally many columns their 2 b probes (M, 2 b, n), and what they remember (M, 1 + b, n).

    The probes are those remembered and fresh ones, all fresh ones from cold, and for narrow matrices the whole space.
    """
    jobs = [job for some in alike for job in some]
    keys = torch.cat([job.keys for job in jobs]) + r * 0x85EBCA6B
    count, widest = (2 * block if cold else block), max(job.a.shape[-1] for job in jobs)
    fresh = sigma.fresh(keys, torch.cat([job.step for job in jobs]), count, widest)
    probes = []
    for some, new in zip(alike, fresh.split_with_sizes([sum(len(j.a) for j in some) for some in alike]), strict=True):
        n, dtype = some[0].a.shape[-1], some[0].memory.dtype
        memory = torch.cat([job.memory for job in some])
        if n <= 2 * block:
            x = torch.eye(2 * block, n, dtype=dtype, device=new.device).expand(len(new), -1, -1)
        else:
            x = new[..., :n].to(dtype) if cold else torch.cat([memory[:, 1:], new[..., :n].to(dtype)], 1)
        probes.append((x, x[:, : 1 + block] if cold else memory))
    return probes
