"""Rule 1, with exact SVDs in float64: ‖W_t‖₂ <= (1 + τ) ‖W_(t-1)‖₂ for every update, the adversary's included."""

import pytest
import torch

from qkspec.optim.adamw2 import AdamW2

TAU = 0.01


def sigma1(a):
    return torch.linalg.svdvals(a)[0].item()


def random_gradient(w, gen):
    return torch.randn(w.shape, generator=gen, dtype=w.dtype) * 10 ** (4 * torch.rand((), generator=gen) - 2)


def new_direction(w, gen):
    """Rank one in a direction that no earlier step had."""
    u, v = (torch.randn(n, generator=gen, dtype=w.dtype) for n in w.shape)
    return 100 * torch.outer(u, v)


def along_the_weight(w, gen):
    """Straight up the weight's own leading direction."""
    u, _, vh = torch.linalg.svd(w)
    return -torch.outer(u[:, 0], vh[0])


def one_entry(w, gen):
    g = torch.zeros_like(w)
    g[torch.randint(w.shape[0], (), generator=gen), torch.randint(w.shape[1], (), generator=gen)] = 1.0
    return g


def alternating(w, gen):
    return random_gradient(w, gen) if torch.rand((), generator=gen) < 0.5 else new_direction(w, gen)


@pytest.mark.parametrize("gradient", [random_gradient, new_direction, along_the_weight, one_entry, alternating])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33)])
@pytest.mark.parametrize("options", [{}, {"batched": True, "refresh": 3}, {"betas": (0.0, 0.5)}])
def test_certified_steps_obey_rule_1(gradient, shape, options):
    gen = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(0.02 * torch.randn(shape, generator=gen, dtype=torch.float64))
    opt = AdamW2([p], 1e-1, tau=TAU, certified=True, floor=0, block=2, **options)
    cut = 0
    for _ in range(25):
        before = p.detach().clone()
        p.grad = gradient(before, gen)
        opt.step()
        assert sigma1(p.detach()) <= (1 + TAU) * sigma1(before)
        (reading,) = opt.readings()
        step = (before - p.detach()) / reading.effective_lr - 0.01 * before
        assert reading.sigma1_w <= sigma1(before) * (1 + 1e-9)
        assert reading.sigma1_u <= sigma1(step) * (1 + 1e-9) <= reading.sigma1_u_upper * (1 + 2e-9)
        cut += reading.bound
    assert cut >= 20


def test_the_certificate_costs_little():
    gen = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(0.02 * torch.randn(64, 96, generator=gen))
    opt = AdamW2([p], 1e-1, certified=True)
    for _ in range(30):
        p.grad = torch.randn(64, 4, generator=gen) @ torch.randn(4, 96, generator=gen)
        opt.step()
    (reading,) = opt.readings()
    assert 1 <= reading.sigma1_u_upper / reading.sigma1_u < 1.15
