"""The processes that train one model together (DDP or FSDP2 under torchrun); alone unless torchrun says otherwise."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from qkspec.errors import UsageError


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is; rank 0 alone writes and prints.

    Args:
        rank: 0 to size - 1.
        size: processes; the micro-batches of a step are dealt out among them.
        local: the number of this process on its machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model whose backward pass averages gradients over the processes."""
        if self.size == 1:
            return model
        # Else the sums are grouped anew after the first step, so that a resumed run would not add in the same order.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def divide(self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Divide a model's weights by rows among the processes, in place (FSDP2): each block is whole while it runs."""
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)  # validation, too, leaves the weights divided

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, the same bits on each."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def any(self, flag: int, device: torch.device) -> int:
        """Return the largest flag of all processes, so that all stop after the same step."""
        if self.size == 1:
            return flag
        value = torch.tensor(flag, device=device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return int(value)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


def whole(t: Tensor) -> Tensor:
    """Return a tensor whole; where it is divided among processes, each of them has to ask."""
    gather = getattr(t, "full_tensor", None)
    gathered: Tensor = t if gather is None else gather()
    return gathered


def divided(t: Tensor, like: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds, where ``like`` is divided; nothing is sent."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None:
        return t
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t.to(like.device), mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def local_only(model: object) -> AbstractContextManager[object]:
    """Return the context in which a backward pass keeps its gradients to itself."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def current() -> World:
    """Return the world that torchrun's environment describes.

    Raises:
        UsageError: only a part of it is set.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if "RANK" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {size} and RANK is not set: start the processes with torchrun, or unset WORLD_SIZE"
        )
    return World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined() -> Iterator[World]:
    """Hold the process group for a run: NCCL with CUDA, else gloo; nothing where this process is alone."""
    world = current()
    if world.size == 1:
        yield world
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield world
        _part(world)
    finally:
        distributed.destroy_process_group()


def _part(world: World) -> None:
    """Leave only when every process is out of its last collective: gloo fails where a peer hangs up inside one.

    Rank 0 says that it is out; the others wait for that, say so in turn and go; rank 0 may hold the store, and is last.
    """
    store = distributed.distributed_c10d._get_default_store()
    if world.leads:
        store.set("qkspec/out/0", "")
        store.wait([f"qkspec/out/{rank}" for rank in range(world.size)])
    else:
        store.wait(["qkspec/out/0"])
        store.set(f"qkspec/out/{world.rank}", "")
