"""What a GPU would be asked to do, counted on a CPU: the batched backend runs the same operations on both."""

import pytest
import torch
from build import gpt2_blocks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qkspec.optim.adamw2 import AdamW2
from qkspec.optim.bounding import Norms, truncate

VIEWS = (
    "view", "reshape", "unbind", "select", "slice", "expand", "transpose", "permute", "detach", "split", "narrow",
    "unsqueeze", "squeeze", "alias", "diagonal", "as_strided", "_unsafe_view", "t", "unflatten", "lift_fresh", "empty",
    "split_with_sizes", "empty_like", "_record_function_enter_new",
    "_record_function_exit",
)  # fmt: skip
SYNCS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select")


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def gpt2(layers=12, d=48):
    shapes = {"wte.weight": (500, d), "wpe.weight": (64, d)}
    shapes |= gpt2_blocks(layers, d)
    named = {n: torch.nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
    for p in named.values():
        p.grad = torch.randn_like(p)
    return named


@pytest.mark.parametrize("options", [{}, {"certified": True}])
def test_every_step_on_gpt2_is_few_operations_and_never_waits(options):
    opt = AdamW2(gpt2().items(), batched=True, fused=True, capturable=True, **options)
    opt.step()
    for _ in range(10):  # one of these passes over the weights as well
        with Count() as count:
            opt.step()
        kernels = {k: n for k, n in count.calls.items() if k not in VIEWS}
        print(sum(kernels.values()), sorted(kernels.items(), key=lambda kv: -kv[1])[:12])
        assert not set(count.calls) & set(SYNCS)
        assert sum(kernels.values()) <= (300 if not options else 350)


class Crossings(TorchDispatchMode):
    """Operations with tensors of two devices among their arguments and results."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            self.found.append(func.overloadpacket.__name__)
        return out


def on_meta(dtype):
    """Parameters without data: whatever would read one number of them on the host fails."""
    named = {n: torch.nn.Parameter(torch.empty_like(p, device="meta", dtype=dtype)) for n, p in gpt2(2).items()}
    for p in named.values():
        p.grad = torch.empty_like(p)
    return named


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"certified": True},
        {"amsgrad": True, "maximize": True},
        {"foreach": True, "weight_decay": 0.0},
        {"block": 1, "warm": False, "power_iters": 3},
        {"lr": torch.tensor(1e-3), "exempt": ()},
    ],
)
def test_no_step_asks_the_device_for_a_number(options, dtype):
    opt = AdamW2(on_meta(dtype).items(), refresh=2, **options)
    for _ in range(3):
        opt.step()
    assert len(opt._records) > 0


@pytest.mark.parametrize("options", [{}, {"certified": True}, {"block": 1, "warm": False}, {"exempt": ()}])
def test_nothing_crosses_between_host_and_device(options):
    opt = AdamW2(on_meta(torch.float32).items(), eps_mode="inside", capturable=True, refresh=2, **options)
    opt.step()
    with Crossings() as crossings:
        for _ in range(2):
            opt.step()
    assert crossings.found == []


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)])
def test_the_rate_is_filled_in_and_never_copied_over(lr):
    norms = Norms(*(torch.ones(4, dtype=torch.float64, device="meta") for _ in range(3)))
    with Count() as count:
        truncate(
            norms, {"lr": lr, "tau": 0.1, "floor": 0.01}, torch.ones(4, device="meta"), 1.0, margin=None, scaler={}
        )
    assert count.calls["full_like"] == 1
    assert count.calls["_to_copy"] == 2  # the two flags to float64
