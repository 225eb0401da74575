"""Parameters of one shape, cut and settings, bounded together: one matrix product serves them all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from qkspec.optim.direction import Moments, counts_on_device, moments, write_directions
from qkspec.optim.roles import View, flat
from qkspec.optim.sharding import Shard, first_row, local, local_views, shard_of
from qkspec.optim.sigma import cut, key, matrix

MEMORY = ("basis_u", "basis_w")  # of a parameter's state: what is remembered of update and weight
_AT_ONCE = 8 << 20  # elements of updates in flight on a CPU: 32 MB, enough that a batch's small operations cost little


@dataclass(frozen=True)
class Member:
    """One bounded parameter: where it stands in the optimizer, what it is called and how it is cut."""

    param: Tensor
    ordinal: int
    name: str
    views: tuple[View, ...]
    group: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stack:
    """Members bounded together. Shapes: members P, views V, probes b, columns n.

    Args:
        members: P parameters with a gradient.
        views: V cuts of the local rows, the same for every member.
        shape: (rows, columns) of the local part.
        shard: the ranks that share the rows, or None.
        heights: rows of each view's whole matrix.
        firsts: which of them is the first one here.
        keys_u, keys_w: (V, P) int64 keys of the probe streams.
        basis_u, basis_w: (V, P, 1 + b, n) remembered of update and weight: the leading Ritz vector and the probes;
            each member's state holds its slice.
        sizes: (V, P) √m + √n of the whole matrix, float64, the unit of the floor.
        cold: nothing is remembered yet.
    """

    members: tuple[Member, ...]
    views: tuple[View, ...]
    shape: tuple[int, int]
    shard: Shard | None
    heights: tuple[int, ...]
    firsts: tuple[int, ...]
    keys_u: Tensor
    keys_w: Tensor
    basis_u: Tensor
    basis_w: Tensor
    sizes: Tensor
    cold: bool

    @property
    def group(self) -> dict[str, Any]:
        """The parameter group, whose settings all members share."""
        return self.members[0].group

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bounded matrices, view after view."""
        return tuple(member.views[j].name for j in range(len(self.views)) for member in self.members)

    @property
    def matrices(self) -> int:
        """How many matrices are bounded, V P."""
        return len(self.views) * len(self.members)

    @property
    def elements(self) -> int:
        """Elements of all members on this rank."""
        return len(self.members) * prod(self.shape)

    def weights(self, view: View) -> list[Tensor]:
        """Return each member's matrix of a view for reading, (m, n)."""
        return [matrix(view, local(member.param).detach().reshape(self.shape)) for member in self.members]

    def directions(self, state: dict[Tensor, Any], scaler: dict[str, Tensor], scratch: Tensor | None) -> Tensor:
        """Return -``stretch`` · Adam's update, (P, rows, columns), and advance Adam's state."""
        first = local(self.members[0].param)
        wanted = (len(self.members), *self.shape)
        if scratch is None:
            out = torch.zeros(wanted, dtype=first.dtype, device=first.device)
        else:
            out = scratch.view(wanted).zero_()
        ms: list[Moments] = [moments(member.param, state[member.param]) for member in self.members]
        write_directions(out.unbind(0), self.stretch, ms, self.group, scaler)
        return out

    @property
    def stretch(self) -> float:
        """The factor on the update in ``directions``: with 1/decay, one lerp_ applies both update and decay.

        It is 1 where there is no decay, or so little that the stretched update might overflow.
        """
        decay, half = float(self.group["weight_decay"]), self.members[0].param.dtype == torch.float16
        return 1 / decay if decay >= (1e-2 if half else 1e-6) else 1.0

    def apply(self, ends: Tensor, rates: Tensor) -> None:
        """Move every matrix at its own rate: W ← W - α (update + decay · W).

        Args:
            ends: (P, rows, columns) from ``directions``.
            rates: (V P,) α in the parameters' dtype, view after view.
        """
        decay, at_once = float(self.group["weight_decay"]), self.stretch != 1.0
        weights = (rates * decay if at_once else rates).view(len(self.views), len(self.members))
        for view, some in self._pieces(weights):
            for member, end, weight in zip(self.members, ends.unbind(0), some.unbind(0), strict=True):
                here = local(member.param).detach()
                target = here if view.size < 0 else cut(view, here.view(self.shape))
                goal = cut(view, end).view(target.shape)
                if at_once:
                    target.lerp_(goal, weight)
                    continue
                if decay:
                    target.mul_(1 - weight * decay)
                target.addcmul_(goal, weight)

    def _pieces(self, weights: Tensor) -> list[tuple[View, Tensor]]:
        """Return what to move at once, with (P,) or (P, rows, 1) weights: q, k and v in rows, or experts, are one."""
        rows = [view.size if view.dim == 0 and view.units == 1 else 0 for view in self.views]
        here = local(self.members[0].param).shape
        if len(rows) == 1 or sum(rows) != self.shape[0] or len(here) != (3 if self.views[0].stacked else 2):
            return list(zip(self.views, weights.unbind(0), strict=True))
        spread = [weight[:, None].expand(-1, size) for weight, size in zip(weights.unbind(0), rows, strict=True)]
        return [(View(self.members[0].name), torch.cat(spread, 1).view(len(self.members), *here[:-1], 1))]


def stack_up(
    members: Iterable[Member], state: dict[Tensor, Any], block: int, seed: int, *, alone: Callable[[Tensor], bool]
) -> list[Stack]:
    """Sort bounded parameters into stacks; a stack never mixes settings, shapes, cuts, devices or shardings.

    The order of stacks is the same on every rank, since only facts of the whole parameter decide it.

    Args:
        members: in the optimizer's order.
        state: the optimizer's state, for what is already remembered.
        block: remembered probes a matrix.
        seed: of the probe streams.
        alone: whether a parameter is handled by itself.
    """
    kinds: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        p = member.param
        cuts = tuple((v.dim, v.units, v.start, v.size, v.stacked) for v in member.views)
        cold = _recall(member, state[p], block)
        kind: tuple[Any, ...] = (cold, id(member.group), p.device, p.dtype, tuple(p.shape), cuts)
        shard = shard_of(p, member.name)
        kind += (id(shard.group) if shard else None, member.ordinal if alone(p) else None)
        kinds.setdefault(kind, []).append(member)
    return [_stack(tuple(alike), state, seed, cold=kind[0]) for kind, alike in kinds.items()]


def _recall(member: Member, state: dict[str, Any], block: int) -> bool:
    """See to it that the state has room for what is remembered; return whether nothing is, as it is now cut."""
    p = local(member.param)
    wanted = (len(member.views), 1 + block, _sides(member.views[0], member.param.shape)[1])
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    if all(use in state and state[use].shape == wanted and state[use].dtype == dtype for use in MEMORY):
        return False
    state.update({use: torch.zeros(wanted, dtype=dtype, device=p.device) for use in MEMORY})
    return True


def batch_up(stacks: Sequence[Stack]) -> list[list[Stack]]:
    """Sort stacks into batches, each one call of the bounded step.

    A CPU takes some at a time, so that the updates need little memory and may still be in its cache; elsewhere, and
    where sharded, a batch is everything that the same ranks share, for few launches and a single reduction.
    """
    batches: dict[tuple[Any, ...], list[list[Stack]]] = {}
    for stack in stacks:
        p = local(stack.members[0].param)
        ranks = id(stack.shard.group) if stack.shard else None
        bunch = batches.setdefault((p.device, p.dtype, stack.cold, ranks, counts_on_device(stack.group, p)), [[]])
        limited = p.device.type == "cpu" and stack.shard is None
        if limited and bunch[-1] and sum(s.elements for s in bunch[-1]) + stack.elements > _AT_ONCE:
            bunch.append([])
        bunch[-1].append(stack)
    return [batch for bunch in batches.values() for batch in bunch]


def _stack(members: tuple[Member, ...], state: dict[Tensor, Any], seed: int, *, cold: bool) -> Stack:
    cuts, p = members[0].views, members[0].param
    device, shard = local(p).device, shard_of(p, members[0].name)
    if shard and cuts[0].stacked:  # rows of the stack, of which each expert has p.shape[1]
        shard = replace(shard, offset=shard.offset * p.shape[1], rows=shard.rows * p.shape[1])
    sides = [_sides(view, p.shape) for view in cuts]
    bases = [torch.stack([state[member.param][use] for member in members], 1) for use in MEMORY]
    for i, member in enumerate(members):  # the state holds views, so that what is remembered is saved with it
        state[member.param].update({use: basis[:, i] for use, basis in zip(MEMORY, bases, strict=True)})
    keys = [
        torch.tensor([[key(seed, m.ordinal, j, use) for m in members] for j in range(len(cuts))], device=device)
        for use in ("update", "weight")
    ]
    units = [[sqrt(m) + sqrt(n)] * len(members) for m, n in sides]
    return Stack(
        members=members,
        views=local_views(cuts, shard),
        shape=flat(local(p).shape, cuts[0]),
        shard=shard,
        heights=tuple(m for m, _ in sides),
        firsts=tuple(first_row(view, shard) for view in cuts),
        keys_u=keys[0],
        keys_w=keys[1],
        basis_u=bases[0],
        basis_w=bases[1],
        sizes=torch.tensor(units, dtype=torch.float64, device=device),
        cold=cold,
    )


def _sides(view: View, shape: Sequence[int]) -> tuple[int, int]:
    """Return (m, n) of a view's matrix in an unsharded parameter of the given shape."""
    whole = flat(shape, view)
    if view.size < 0:
        return whole
    size = view.units * view.size
    return (size, whole[1]) if view.dim == 0 else (whole[0], size)
