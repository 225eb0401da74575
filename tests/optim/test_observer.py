import copy

import pytest
import torch

import qkspec.optim
from qkspec.errors import UsageError
from qkspec.optim.adamw2 import AdamW2
from qkspec.optim.observer import observe


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.GELU(), torch.nn.Linear(40, 30))


def train(model, opt, steps):
    gen = torch.Generator().manual_seed(1)
    for _ in range(steps):
        opt.zero_grad()
        x = torch.randn(16, 30, generator=gen)
        (model(x) - x).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_the_run_goes_on_bit_for_bit(make):
    a = net()
    b = copy.deepcopy(a)
    opt = make(a.parameters(), lr=1e-2)
    watch = observe(opt, names=a.named_parameters(), every=2)
    train(a, opt, 9)
    train(b, make(b.parameters(), lr=1e-2), 9)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert [r.name for r in watch.readings()] == ["0.weight", "2.weight"]


def test_it_sees_what_adamw2_would_cut():
    a = net()
    b = copy.deepcopy(a)
    opt = torch.optim.AdamW(a.parameters(), lr=3e-3, weight_decay=0.1)
    watch = observe(opt, tau=0.05, names=a.named_parameters(), floor=0)
    bounded = AdamW2(b.named_parameters(), lr=3e-3, weight_decay=0.1, tau=0.05, floor=0)
    train(a, opt, 1)
    train(b, bounded, 1)
    for seen, done in zip(watch.readings(), bounded.readings(), strict=True):
        assert seen.bound == done.bound
        assert seen.sigma1_u == pytest.approx(done.sigma1_u, 1e-2)
        assert seen.effective_lr == pytest.approx(done.effective_lr, 2e-2)
    assert watch.bound_fraction == bounded.bound_fraction
    before = a[0].weight.detach().clone()
    train(a, opt, 1)
    moved = torch.linalg.matrix_norm(before - a[0].weight.detach() - 3e-4 * before, 2).item()
    assert watch.readings()[0].sigma1_u == pytest.approx(moved / 3e-3, 0.05)
    assert watch.suggest_tau(1.0) == min(r.relative_step for r in watch.readings())


def test_every_public_name_is_what_it_is_called():
    named = {name: getattr(qkspec.optim, name) for name in qkspec.optim.__all__}
    assert named.pop("REMEDIES")
    assert all(callable(thing) for thing in named.values())


def test_one_role_may_be_exempt():
    opt = torch.optim.AdamW(net().parameters())
    assert len(observe(opt, names=net().named_parameters(), exempt="vector").readings()) == len(
        observe(opt, names=net().named_parameters(), exempt=("vector",)).readings()
    )


def test_detach_ends_it():
    a = net()
    opt = torch.optim.AdamW(a.parameters())
    watch = observe(opt)
    watch.detach()
    train(a, opt, 1)
    assert watch.readings() == ()
    with pytest.raises(UsageError):
        observe(opt, tau=0)
