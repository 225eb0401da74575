import copy
import math

import torch

from qkspec.optim.adamw2 import AdamW2


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))


def train(net, opt, steps):
    gen = torch.Generator().manual_seed(1)
    for _ in range(steps):
        opt.zero_grad()
        net(torch.randn(32, 8, generator=gen)).square().mean().backward()
        opt.step()


def test_tau_infinity_is_adamw():
    a, b = model(), copy.deepcopy(model())
    train(a, AdamW2(a.named_parameters(), lr=1e-2, tau=math.inf, exempt=()), 100)
    train(b, torch.optim.AdamW(b.parameters(), lr=1e-2), 100)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-6


def test_group_lr_is_never_touched_and_updates_are_bound():
    net = model()
    opt = AdamW2(net.named_parameters(), lr=0.1, tau=1e-3)
    train(net, opt, 3)
    assert opt.param_groups[0]["lr"] == 0.1
    assert opt.bound_fraction == 1.0
    assert [r.name for r in opt.readings()] == ["0.weight", "2.weight"]
