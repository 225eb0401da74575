"""A step on parameters of another device: the bits of a CPU's, nothing mixed, and nothing waited for."""

import pytest
import torch
from build import gpt2_blocks
from elsewhere import Device, Elsewhere, Written

from qkspec.optim.adamw2 import AdamW2


def trained(dtype, options, place):
    """Weights after three steps; ``place`` moves a tensor to where it is to be trained."""
    gen = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (50, 48), "ln.weight": (48,), **gpt2_blocks(1, 48)}

    def draw(shape, size):
        return place((size * torch.randn(shape, generator=gen)).to(dtype))

    named = {name: torch.nn.Parameter(draw(shape, 0.02)) for name, shape in shapes.items()}
    opt = AdamW2(named.items(), 1e-2, tau=0.01, refresh=2, batched=True, **options)
    for _ in range(3):
        for p in named.values():
            p.grad = draw(p.shape, 1.0)
        opt.step()
    return named


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"fused": True, "capturable": True, "certified": True}),
        (torch.bfloat16, {"fused": True, "amsgrad": True, "exempt": ()}),
        (torch.float32, {"foreach": True}),
        (torch.bfloat16, {"eps_mode": "inside", "capturable": True}),
        (torch.float32, {"fused": True, "block": 1, "warm": False, "power_iters": 3}),
    ],
)
def test_a_step_elsewhere_is_the_step_here(dtype, options):
    with Written(), Device(float64=True):
        there = trained(dtype, options, Elsewhere)
    for name, p in trained(dtype, options, lambda t: t).items():
        torch.testing.assert_close(there[name].held, p.detach(), rtol=0, atol=0)
