"""What only a GPU can show: no waiting, replay in a CUDA graph, launches, the step's time; skipped without one."""

import statistics

import pytest
import torch
from build import gpt2_blocks
from torch.profiler import ProfilerActivity, profile

from qkspec.optim.adamw2 import AdamW2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

D = 64


def gpt2(layers=12, d=768, vocabulary=50257, context=1024, dtype=torch.float32):
    """GPT-2's parameters on the GPU, by default those of 124M, with gradients."""
    gen = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (vocabulary, d), "wpe.weight": (context, d), "ln_f.weight": (d,)}
    shapes |= gpt2_blocks(layers, d)
    named = {n: torch.nn.Parameter((0.02 * torch.randn(s, generator=gen)).to("cuda", dtype)) for n, s in shapes.items()}
    for p in named.values():
        p.grad = (1e-3 * torch.randn(p.shape, generator=gen)).to("cuda", dtype)
    return named


def small(dtype=torch.float32):
    return gpt2(2, D, 500, 32, dtype)


@pytest.fixture
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"certified": True},
        {"foreach": True},
        {"fused": True, "capturable": True},
        {"amsgrad": True, "maximize": True},
        {"lr": torch.tensor(1e-3)},
        {"exempt": ()},
        {"block": 1, "warm": False, "power_iters": 3},
    ],
)
def test_a_step_never_waits_for_the_device(options, dtype, request):
    opt = AdamW2(small(dtype).items(), refresh=2, **options)
    opt.step()  # the first one plans
    request.getfixturevalue("no_waiting")
    for _ in range(4):
        opt.step()
    torch.cuda.set_sync_debug_mode("default")
    assert all(r.sigma1_u > 0 for r in opt.readings())


@pytest.mark.parametrize("options", [{}, {"certified": True}, {"foreach": True}])
def test_a_step_replays_in_a_cuda_graph(options):
    eager, captured = small(), small()
    lr, tau = torch.tensor(1e-2, device="cuda"), torch.tensor(0.01, device="cuda")
    options = {"capturable": True, "refresh": 1, **options}
    plain = AdamW2(eager.items(), lr.clone(), **options)
    graphed = AdamW2(captured.items(), lr, **options)
    graphed.param_groups[0]["tau"] = tau
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            graphed.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.step()
    for step in range(7):
        if step > 2:
            lr.fill_(1e-2 / step)
            tau.fill_(0.01 / step)
            plain.param_groups[0]["lr"].copy_(lr)
            graph.replay()
        plain.param_groups[0]["tau"] = tau.item()
        plain.step()
    for name, p in eager.items():
        torch.testing.assert_close(captured[name], p, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(graphed.readings(), plain.readings(), strict=True):
        assert ours.effective_lr == pytest.approx(theirs.effective_lr, 1e-4)


def test_a_graph_without_capturable_is_refused():
    opt = AdamW2(small().items())
    opt.step()
    torch.cuda.synchronize()
    with pytest.raises(Exception, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()


def test_a_graph_of_the_first_step_is_refused():
    opt = AdamW2(small().items(), capturable=True)
    torch.cuda.synchronize()
    with pytest.raises(Exception, match="before a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()


@pytest.mark.parametrize("options", [{}, {"certified": True}, {"eps_mode": "inside"}, {"batched": False}])
def test_gpu_and_cpu_agree(options):
    there = small()
    here = {n: torch.nn.Parameter(p.detach().cpu()) for n, p in there.items()}
    one, other = AdamW2(there.items(), 1e-2, tau=0.01, **options), AdamW2(here.items(), 1e-2, tau=0.01, **options)
    gen = torch.Generator().manual_seed(1)
    for _ in range(12):
        for name, p in here.items():
            p.grad = torch.randn(p.shape, generator=gen)
            there[name].grad = p.grad.cuda()
        one.step()
        other.step()
    for name, p in here.items():
        torch.testing.assert_close(there[name].cpu(), p, atol=1e-5, rtol=1e-4)


def test_a_step_is_few_launches():
    opt = AdamW2(gpt2().items(), fused=True)
    for _ in range(9):
        opt.step()
    torch.cuda.synchronize()
    for _ in range(2):  # one that passes over the weights, and one that does not
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            opt.step()
            torch.cuda.synchronize()
        launches = sum(e.count for e in seen.key_averages() if "LaunchKernel" in e.key)
        print(launches)
        assert launches <= 300


def test_a_step_takes_at_most_twice_the_fused_adamw():
    named = gpt2()
    steps = {
        "ours": AdamW2(named.items(), fused=True, capturable=True),
        "theirs": torch.optim.AdamW(named.values(), fused=True, capturable=True),
    }
    times = {name: [] for name in steps}
    for i in range(60):
        for name, opt in steps.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(50_000_000)  # the host runs ahead, as it does in training: this is the device's time
            start.record()
            opt.step()
            end.record()
            torch.cuda.synchronize()
            if i >= 20:
                times[name].append(start.elapsed_time(end))
    ours, theirs = (statistics.median(times[name]) for name in ("ours", "theirs"))
    print(f"AdamW2 {ours:.2f} ms, fused AdamW {theirs:.2f} ms")
    assert ours <= 2 * theirs
