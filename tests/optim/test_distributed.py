"""Two real processes over gloo: DDP replicas bit for bit, FSDP2 shards against the unsharded run."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from qkspec.errors import UsageError
from qkspec.optim.adamw2 import AdamW2

D, RANKS, STEPS = 24, 2, 14
LONG = 120


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 3 * D), nn.GELU(), nn.Linear(3 * D, 7), nn.Linear(7, 1))


def gradients(step, shapes, rank=0):
    gen = torch.Generator().manual_seed(1000 * rank + step)
    return [torch.randn(s, generator=gen) for s in shapes]


def placed(g, like):
    """A gradient as its parameter is placed."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(g, like.device_mesh, like.placements) if hasattr(like, "placements") else g.clone()


def names():
    return ["h.attn.c_attn.weight", "h.attn.c_attn.bias", "h.mlp.weight", "h.mlp.bias", "h.out.weight", "h.out.bias"]


def sharded(options, steps=STEPS):
    """FSDP2's own placement: every parameter a DTensor, Shard(0), of 72, 7 and 1 rows."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    net = model()
    plain = model()
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    fully_shard(net, mesh=mesh)
    ps = list(net.parameters())
    assert all(isinstance(p, DTensor) for p in ps)
    ours = AdamW2(zip(names(), ps, strict=True), 1e-2, **options)
    reference = AdamW2(zip(names(), plain.parameters(), strict=True), 1e-2, **options)
    calls, wide = [], 1 if options.get("certified") else 0  # a certificate needs all rows of a wide matrix: 7 x 72
    reduce = dist.all_reduce
    dist.all_reduce = lambda *a, **k: (calls.append(1), reduce(*a, **k))[1]
    for step in range(steps):
        for p, q, g in zip(ps, plain.parameters(), gradients(step, [p.shape for p in ps]), strict=True):
            p.grad, q.grad = placed(g, p), g.clone()
        calls.clear()
        ours.step()
        assert len(calls) == wide + (1 if step else 8), calls
        reference.step()
    dist.all_reduce = reduce
    worst = max((p.full_tensor() - q).abs().max().item() for p, q in zip(ps, plain.parameters(), strict=True))
    rates = [(a.effective_lr, b.effective_lr) for a, b in zip(ours.readings(), reference.readings(), strict=True)]
    resumed = AdamW2(zip(names(), ps, strict=True), 1e-2, **options)
    resumed.load_state_dict(ours.state_dict())
    return worst, rates, [r.name for r in ours.readings()]


def sharded_long(options):
    """Every step bounded, and long enough that whatever the memory makes of a rounding error would show."""
    worst, rates, bounded = sharded(options, LONG)
    return worst, rates, bounded


def checkpointed(options):
    """Sharded weights and state through torch.distributed.checkpoint, read again by as many ranks, and by one alone."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    def made(shard=True):
        net = model()
        if shard:
            fully_shard(net, mesh=dist.init_device_mesh("cpu", (RANKS,)))
        return net, AdamW2(zip(names(), net.parameters(), strict=True), 1e-2, **options)

    def train(net, opt, steps):
        for step in steps:
            for p, g in zip(net.parameters(), gradients(step, [p.shape for p in net.parameters()]), strict=True):
                p.grad = placed(g, p)
            opt.step()

    def load(net, opt, path, **alone):
        weights, state = get_state_dict(net, opt)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path, **alone)
        set_state_dict(net, opt, model_state_dict=weights, optim_state_dict=state)

    def whole(net):
        return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in net.parameters()]

    net, opt = made()
    train(net, opt, range(STEPS))
    weights, state = get_state_dict(net, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id="checkpoint")
    again, theirs = made()
    load(again, theirs, "checkpoint")
    train(net, opt, range(STEPS, 2 * STEPS))
    train(again, theirs, range(STEPS, 2 * STEPS))
    exact = all(torch.equal(a, b) for a, b in zip(whole(net), whole(again), strict=True))
    alone, ours = made(shard=False)
    load(alone, ours, "checkpoint", no_dist=True)
    train(alone, ours, range(STEPS, 2 * STEPS))
    worst = max((a - b).abs().max().item() for a, b in zip(whole(net), whole(alone), strict=True))
    return exact, worst, ours.param_groups[0]["bounded_steps"]


def experts(options):
    """Five experts over two ranks: each is bounded as if it were alone."""
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    whole = torch.randn(5, 6, 4)
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    name, shared = "mlp.experts.down_proj", nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
    alone = [nn.Parameter(expert.clone()) for expert in whole]
    ours = AdamW2([(name, shared)], 1e-2, **options)
    theirs = AdamW2([(f"{name}[{e}]", p) for e, p in enumerate(alone)], 1e-2, **options)
    for step in range(STEPS):
        g = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(step))
        shared.grad = placed(g, shared)
        for p, one in zip(alone, g, strict=True):
            p.grad = one.clone()
        ours.step()
        theirs.step()
    assert len({r.effective_lr for r in ours.readings()}) == 5
    rates = [(a.effective_lr, b.effective_lr) for a, b in zip(ours.readings(), theirs.readings(), strict=True)]
    return (shared.full_tensor() - torch.stack(alone)).abs().max().item(), rates, [r.name for r in ours.readings()]


def replicated(options):
    """DistributedDataParallel on different data: the replicas must not drift apart by a bit."""
    net = nn.parallel.DistributedDataParallel(model())
    opt = AdamW2(net.named_parameters(), 1e-2, **options)
    gen = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        opt.zero_grad()
        net(torch.randn(8, D, generator=gen)).square().mean().backward()
        opt.step()
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    both = [torch.empty_like(flat) for _ in range(RANKS)]
    dist.all_gather(both, flat)
    return torch.equal(both[0], both[1]), opt.bound_fraction, len(opt.readings())


def refused(_):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    bad = nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Shard(1)]))
    with pytest.raises(UsageError, match="Shard"):
        AdamW2([("w", bad)])
    whole = nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Replicate()]))
    whole.grad = torch.ones_like(whole)
    AdamW2([("w", whole)]).step()
    rows = nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)]))
    rows.grad = torch.ones_like(rows)
    with pytest.raises(UsageError, match="does not reduce over shards"):
        AdamW2([("w", rows)], block=1, warm=False).step()
    return True


def flattened(_):
    """FullyShardedDataParallel, both ways: there is no matrix in what its parameters have become."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for keeps in (False, True):
        net = FullyShardedDataParallel(model(), use_orig_params=keeps, device_id=torch.device("cpu"))
        with pytest.raises(UsageError, match="FSDP2"):
            AdamW2(net.named_parameters())
    return True


WORK = (
    (sharded, {"block": 4, "exempt": ()}),
    (sharded, {"block": 4, "certified": True}),
    (replicated, {"tau": 0.02}),
    (refused, {}),
    (sharded_long, {"block": 4, "tau": 1e-3}),
    (checkpointed, {"block": 4}),
    (experts, {"tau": 1e-3}),
    (flattened, {}),
)


def start(rank, port, queue, folder):
    torch.set_num_threads(1)
    os.chdir(folder)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    try:
        for i, (work, options) in enumerate(WORK):
            queue.put((i, rank, work(options)))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every rank found in every piece of work; one start of the processes serves all tests."""
    queue = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(
        start, (free_port(), queue, tmp_path_factory.mktemp("ranks")), RANKS, join=True, start_method="spawn"
    )
    found = sorted((queue.get() for _ in range(RANKS * len(WORK))), key=lambda r: r[:2])
    return [[r[2] for r in found if r[0] == i] for i in range(len(WORK))]


@pytest.mark.parametrize("i", [0, 1, 4])
def test_shards_equal_the_unsharded_result_with_one_all_reduce_a_step(results, i):
    for worst, rates, bounded in results[i]:
        assert worst <= 1e-6
        assert all(a == pytest.approx(b, 1e-6) for a, b in rates)
        assert bounded[:3] == [f"h.attn.c_attn.weight[{part}]" for part in "qkv"]
    assert results[i][0][1] == results[i][1][1]


def test_experts_that_are_sharded_are_bounded_one_by_one(results):
    for worst, rates, names in results[6]:
        assert worst <= 1e-6
        assert all(a == pytest.approx(b, 1e-6) for a, b in rates)
        assert names == [f"mlp.experts.down_proj[{e}]" for e in range(5)]


def test_replicas_are_identical(results):
    for identical, fraction, matrices in results[2]:
        assert identical
        assert fraction > 0
        assert matrices == 2


def test_a_distributed_checkpoint_of_shards_is_read_by_as_many_ranks_and_by_one(results):
    for exact, worst, steps in results[5]:
        assert exact
        assert worst <= 1e-6
        assert steps == 2 * STEPS


def test_other_placements_are_refused_or_whole(results):
    assert results[3] == [True, True]
    assert results[7] == [True, True]
