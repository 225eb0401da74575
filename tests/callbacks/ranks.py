"""One rank of two: trains under DDP or FSDP2, measures, writes what it was told. Run by test_distributed.py."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from loops import Loop, collapse
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from qkspec.callbacks.torch import Monitor
from qkspec.errors import InputError, UsageError
from qkspec.measuring import Settings
from qkspec.metrics import EMBEDDED


def watch(kind, rank, folder):
    loop, forward = Loop(), None
    if kind == "ddp":
        forward = watched = DistributedDataParallel(loop.model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for block in loop.model.transformer.h:
            fully_shard(block, mesh=mesh)
        watched = fully_shard(loop.model, mesh=mesh)
        loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=1e-2)
    reads = []
    monitor = Monitor(watched, config=loop.config, every=1, stop_on="lost")
    torch.manual_seed(rank)  # each rank has its own data
    for step in range(1, 4):
        loop.update(forward)
        if step == 3 and kind == "ddp":
            collapse(loop.model)
        before = torch.get_rng_state()
        judgement = monitor(step)
        assert torch.equal(before, torch.get_rng_state())
        reads.append(judgement.stop)
    state = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in loop.model.state_dict().items()}
    if rank == 0:
        loop.save(Path(folder), 3, state)
    numbers = {name: torch.from_numpy(judgement.readings.metric(name)) for name in judgement.readings.metrics}
    words = {
        "verdicts": " ".join(v.name for v in judgement.verdicts),
        "stops": str(reads),
        "state": str(judgement.state),
    }
    save_file(numbers, f"{folder}/told-{rank}.safetensors", metadata=words)
    try:
        Monitor(watched, config=loop.config, settings=Settings(layers=frozenset({7})))(0)
    except InputError as error:
        Path(folder, f"error-{rank}").write_text(str(error))
    fails(watched, loop.config, f"{folder}/failed-{rank}")
    if kind == "fsdp":
        whole = Monitor(watched, config=loop.config, settings=Settings(embeddings=True))(0)
        named = {name: torch.from_numpy(whole.readings.metric(name)) for name in EMBEDDED}
        save_file(named, f"{folder}/embedded-{rank}.safetensors")
        old = FullyShardedDataParallel(Loop().model, device_id=torch.device("cpu"))
        try:
            Monitor(old, config=loop.config)
        except UsageError as error:
            Path(folder, f"old-{rank}").write_text(str(error))


class Failing:
    """A runner that reads a tensor and fails in a way that no reader of checkpoints does."""

    kind = "measured"

    def __call__(self, checkpoint, layer):
        checkpoint.store.read(next(iter(checkpoint.store.names())))
        raise MemoryError("no room")


def fails(model, config, told):
    """Whatever fails on rank 0, in the midst of reading, is told to the other, which does not wait for more."""
    try:
        Monitor(model, config=config, settings=Settings(runner=Failing()))(0)
    except (MemoryError, RuntimeError) as error:
        Path(told).write_text(f"{type(error).__name__}: {error}")


def main(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for kind in ("ddp", "fsdp"):
        watch(kind, rank, f"{folder}/{kind}")
    distributed.destroy_process_group()


main(int(sys.argv[1]), sys.argv[2])
