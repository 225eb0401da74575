"""What of a parameter lies on this rank, and the one reduction that makes its norms whole (FSDP2: Shard(0))."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qkspec.errors import UsageError
from qkspec.optim.roles import View


@dataclass(frozen=True)
class Shard:
    """Rows [offset, offset + rows) of a parameter, on this rank.

    Args:
        group: the ranks that hold the other rows.
        offset: the first row here.
        rows: how many are here; may be 0.
    """

    group: Any  # dist.ProcessGroup, which torch built without distributed does not have
    offset: int
    rows: int


def local(t: Tensor) -> Tensor:
    """Return the part of a tensor that lies on this rank, sharing its memory; a plain tensor is all here."""
    to_local = getattr(t, "to_local", None)
    if to_local is None:
        return t
    part: Tensor = to_local()
    return part


def shard_of(p: Tensor, name: str) -> Shard | None:
    """Return which rows of a parameter are here, or None where all of them are.

    Raises:
        UsageError: the parameter is divided otherwise than by rows over one dimension of its mesh.
    """
    placements = getattr(p, "placements", None)
    if placements is None:
        return None
    divided = [i for i, placement in enumerate(placements) if not placement.is_replicate()]
    if not divided:
        return None
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    if len(divided) > 1 or type(placements[divided[0]]).__name__ != "Shard" or placements[divided[0]].dim != 0:
        raise UsageError(
            f"{name} is placed as {placements}; AdamW2 bounds parameters sharded by rows (Shard(0), as FSDP2 does): "
            "exempt it by name or shard it so"
        )
    axis = divided[0]
    rank, ranks = mesh.get_local_rank(axis), mesh.size(axis)
    chunk = -(-p.shape[0] // ranks)
    offset = min(rank * chunk, p.shape[0])
    return Shard(mesh.get_group(axis), offset, min(chunk, p.shape[0] - offset))


def local_views(views: Sequence[View], shard: Shard | None) -> tuple[View, ...]:
    """Return the views cut down to the rows that are here (perhaps none).

    Raises:
        UsageError: q, k and v are interleaved along the divided dimension.
    """
    if shard is None:
        return tuple(views)
    return tuple(_local_view(view, shard) for view in views)


def _local_view(view: View, shard: Shard) -> View:
    if view.size < 0 or view.dim == 1:
        return view
    if view.units > 1:
        raise UsageError(
            f"{view.name}: parts interleaved in {view.units} units cannot be bounded while sharded by rows"
        )
    first = min(max(view.start - shard.offset, 0), shard.rows)
    last = min(max(view.start + view.size - shard.offset, 0), shard.rows)
    return replace(view, start=first, size=last - first)


def first_row(view: View, shard: Shard | None) -> int:
    """Return which row of a view's whole matrix is the first one here (its height, where none is)."""
    if shard is None:
        return 0
    if view.size < 0 or view.dim == 1:
        return shard.offset
    return min(max(shard.offset - view.start, 0), view.size)


def reduce_all(tensors: list[Tensor], shard: Shard | None) -> list[Tensor]:
    """Sum tensors of any shapes and dtypes over the ranks of a shard: one packed buffer and one all-reduce.

    Args:
        tensors: summed in single precision where all are, else in double; returned in their own.
        shard: names the ranks; None where all is here already.
    """
    if shard is None:
        return tensors
    wide = torch.float32 if all(t.dtype == torch.float32 for t in tensors) else torch.float64
    buffer = torch.cat([t.to(wide).flatten() for t in tensors])
    dist.all_reduce(buffer, group=shard.group)
    parts = buffer.split_with_sizes([t.numel() for t in tensors])
    return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
