import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qkspec.errors import UsageError
from qkspec.optim.sigma_reparam import SigmaReparam, effective_weight, fold, reparametrize, spectral_step


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.LayerNorm(20), nn.Linear(20, 5))


def norm(a):
    return torch.linalg.svdvals(a.detach().double())[0].item()


def run(model, steps=60):
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    gen = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, 12, generator=gen)
        loss = (model(x) - x[:, :5].abs()).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


def test_the_effective_norm_is_gamma_from_the_start_and_through_training():
    model = net()
    assert reparametrize(model) == ("0", "3")
    for layer in (model[0], model[3]):
        assert norm(layer.weight) == pytest.approx(1, 1e-2)
    first = run(copy.deepcopy(model), 1)
    assert run(model) < first / 2
    for layer in (model[0], model[3]):
        gamma = layer.parametrizations.weight[0].gamma.item()
        assert gamma != 1
        assert norm(layer.weight) == pytest.approx(abs(gamma), 2e-2)


def test_keep_leaves_the_function_as_it_was():
    model, x = net(), torch.randn(3, 12)
    before = model(x)
    reparametrize(model, keep=True)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


def test_fold_gives_plain_weights_and_the_same_logits():
    model = net()
    reparametrize(model)
    run(model, 20)
    model.eval()
    state = model.state_dict()
    names = set(state)
    folded = fold(state)
    assert set(state) == names
    plain = net()
    plain.load_state_dict(folded)
    x = torch.randn(4, 12)
    torch.testing.assert_close(plain(x), model(x))
    assert torch.equal(folded["0.weight"], model[0].weight)
    del state["0.parametrizations.weight.0.gamma"]
    with pytest.raises(UsageError, match="gamma"):
        fold(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_iteration_an_update_however_often_the_weight_is_used(dtype):
    model = net().to(dtype)
    reparametrize(model, "0")
    part, original = model[0].parametrizations.weight[0], model[0].parametrizations.weight.original
    x = torch.randn(2, 12, dtype=dtype)
    for _ in range(3):
        with torch.no_grad():
            original.mul_(1 + 0.1 * torch.randn_like(original))
        before = part.u.clone(), part.v.clone()
        model.eval()
        model(x)
        assert torch.equal(part.v, before[1])
        model.train()
        expected = spectral_step(original.detach(), *before)
        for _ in range(3):
            model(x).sum().backward()
            with torch.no_grad():
                model(x)
            assert torch.equal(part.u, expected[0])
            assert torch.equal(part.v, expected[1])
        assert not torch.equal(part.v, before[1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_accumulation_and_recomputation_give_the_gradients_of_one_plain_pass(reentrant):
    def gradients(parts, recompute):
        model = net().double()
        reparametrize(model)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1).add_(0.01)
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
        for chunk in x.chunk(parts):
            out = checkpoint(model, chunk, use_reentrant=reentrant) if recompute else model(chunk)
            out.square().sum().backward()
        return [p.grad for p in model.parameters()]

    whole = gradients(1, recompute=False)
    for other in (gradients(4, recompute=False), gradients(1, recompute=True), gradients(4, recompute=True)):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradient_passes_through_sigma():
    torch.manual_seed(0)
    w = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    u, _, v = torch.linalg.svd(w.detach())
    assert torch.autograd.gradcheck(lambda w, g: effective_weight(w, g, u[:, 0], v[0]), (w, gamma))
    # the effective weight does not change with the weight's scale, so the gradient is orthogonal to the weight
    (effective_weight(w, gamma, u[:, 0], v[0]) * torch.randn(5, 4, dtype=torch.float64)).sum().backward()
    assert abs((w.grad * w).sum().item()) < 1e-12


def test_training_is_that_of_the_published_procedure():
    """v = Wu/|Wu|, u = W'v/|W'v|, then γ/(v'Wu) · W with u and v constant; in float64, its gradients by hand."""
    torch.manual_seed(4)
    left, right = (torch.linalg.qr(torch.randn(n, 5, dtype=torch.float64))[0] for n in (8, 6))
    w = left @ torch.diag(torch.tensor([3.0, 1.5, 1.0, 0.7, 0.2], dtype=torch.float64)) @ right.T
    layer = nn.Linear(6, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(w)
    reparametrize(layer_in := nn.Sequential(layer))
    opt = torch.optim.SGD(layer_in.parameters(), 0.05)
    gamma, u = 1.0, torch.linalg.svd(w)[2][0]
    for _ in range(10):
        x, goal = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
        opt.zero_grad()
        (0.5 * (layer_in(x) - goal).square().sum()).backward()
        opt.step()
        v = w @ u / torch.linalg.vector_norm(w @ u)
        u = w.T @ v / torch.linalg.vector_norm(w.T @ v)
        sigma = v @ w @ u
        g = (x @ (gamma / sigma * w).T - goal).T @ x
        w, gamma = (
            w - 0.05 * gamma / sigma * (g - (g * w).sum() / sigma * torch.outer(v, u)),
            gamma - 0.05 * (g * w).sum() / sigma,
        )
        part = layer.parametrizations.weight
        torch.testing.assert_close(part.original.detach(), w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part[0].gamma.detach(), gamma, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_the_products_with_activations_and_nothing_else(dtype):
    model = net().to(dtype)
    reparametrize(model)
    plain, weight = model(torch.ones(2, 12, dtype=dtype)), model[0].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0].weight, weight)
        assert model[0].weight.dtype == dtype
        out = model(torch.ones(2, 12))
        out.sum().backward()
    torch.testing.assert_close(out.float(), plain.float(), rtol=0.1, atol=0.1)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert norm(model[0].weight) == pytest.approx(1, 2e-2)


def test_what_cannot_be_reparametrized():
    with pytest.raises(UsageError, match="no linear layer"):
        reparametrize(net(), "attention.*")
    model = net()
    nn.init.zeros_(model[3].weight)
    with pytest.raises(UsageError, match="zero"):
        reparametrize(model)


def test_a_copy_is_deterministic():
    w = torch.randn(6, 7, generator=torch.Generator().manual_seed(2))
    a, b = SigmaReparam(w, seed=3), SigmaReparam(w, seed=3)
    assert torch.equal(a(w), b(w))
