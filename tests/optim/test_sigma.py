import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.optim.sigma import fresh, image_norm2, inner, key, power_iteration, products, remember, ritz, schatten8


def keys(*numbers):
    return torch.tensor([key(0, n, 0, "update") for n in numbers])


def estimate(a, rounds=1, block=4, start=0):
    """One matrix (m, n), measured as the optimizer does: σ, and what is remembered (1 + block, n)."""
    x = fresh(keys(1), torch.tensor(start), 2 * block, a.shape[1]).to(a.dtype)
    memory = x[:, : 1 + block]
    for r in range(rounds):
        gram, y = products(a[None], x)
        sigma, chosen = ritz(gram, y.double() @ y.double().mT, block, 1e-12 if a.dtype == torch.float64 else 1e-6)
        memory = remember(chosen, y.double(), memory)
        x = torch.cat([memory[:, 1:], fresh(keys(1), torch.tensor(start + r + 1), block, a.shape[1]).to(a.dtype)], 1)
    return sigma.item(), memory[0]


def sigma1(a):
    return torch.linalg.svdvals(a.double())[0].item()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-8, 8),
)
def test_never_above_sigma1_and_exact_where_the_probes_span(m, n, seed, dtype, size):
    a = (torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * 10**size).to(dtype)
    slack = 1e-5 if dtype == torch.float32 else 1e-10
    found, memory = estimate(a)
    assert found <= sigma1(a) * (1 + slack)
    assert found > 0
    assert torch.linalg.vector_norm(memory[0].double()) == pytest.approx(1, 1e-5)
    if n <= 8:
        assert found == pytest.approx(sigma1(a), 2e-4)
    upper = schatten8(inner(a[None])).item()
    assert sigma1(a) * (1 - slack) <= upper <= sigma1(a) * min(m, n) ** 0.125 * (1 + 2e-5)
    tracked = image_norm2([a], memory[:1]).sqrt().item()
    assert tracked <= sigma1(a) * (1 + slack)
    assert tracked >= found * (1 - 1e-4)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_spike_out_of_noise_is_seen_at_once(rank):
    gen = torch.Generator().manual_seed(rank)
    a = 0.01 * torch.randn(96, 200, generator=gen)
    a += torch.randn(96, rank, generator=gen) @ torch.randn(rank, 200, generator=gen)
    assert estimate(a)[0] >= 0.97 * sigma1(a)
    assert estimate(a, rounds=3)[0] >= 0.9999 * sigma1(a)


def test_noise_is_followed_from_step_to_step():
    a = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    assert estimate(a, rounds=12)[0] >= 0.99 * sigma1(a)


@pytest.mark.parametrize("shape", [(2, 6, 50), (2, 50, 6), (3, 7, 7)])
def test_the_upper_bound_takes_the_smaller_side(shape):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert inner(a).shape[-1] == min(shape[1:])
    exact = [torch.linalg.svdvals(m).pow(8).sum().pow(1 / 8).item() for m in a]
    assert schatten8(inner(a)).tolist() == pytest.approx(exact, 1e-9)


def test_zero_nan_and_infinite_matrices():
    for m, n in ((20, 30), (3, 2)):
        zero, memory = estimate(torch.zeros(m, n))
        assert zero == 0
        assert memory.isfinite().all()
        assert memory.any(-1).all()
        assert schatten8(inner(torch.zeros(1, m, n))).item() == 0
        assert power_iteration(torch.zeros(1, m, n), torch.ones(1, n), 3).item() == 0
    for bad in (math.nan, math.inf):
        a = torch.ones(20, 30)
        a[3, 4] = bad
        assert not math.isfinite(estimate(a)[0])


def test_power_iteration_converges():
    a = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = power_iteration(a, torch.ones(2, 9), 200)
    assert found.tolist() == pytest.approx([sigma1(b) for b in a], 1e-6)


def test_the_stream_depends_on_key_step_and_position_alone():
    x = fresh(keys(1, 2), torch.tensor([5, 6]), 11, 50)
    assert torch.equal(x[1:], fresh(keys(2), torch.tensor([6]), 11, 50))
    assert torch.equal(x[:, :, :20], fresh(keys(1, 2), torch.tensor([5, 6]), 11, 20))
    assert not torch.equal(x, fresh(keys(1, 2), torch.tensor([6, 7]), 11, 50))
    assert fresh(keys(1), torch.tensor(1), 3, 4).tolist() == fresh(keys(1), torch.tensor([1]), 3, 4).tolist()


def test_the_stream_looks_independent():
    x = fresh(keys(*range(8)), torch.tensor(3), 8, 4096).flatten(0, 1) / (85 / 4) ** 0.5  # 16 even steps: variance 85/4
    gram = x @ x.T / 4096
    assert (gram - torch.eye(64)).abs().max() < 5 / 64
    steps = torch.stack([fresh(keys(1), torch.tensor(s), 1, 4096)[0, 0] for s in range(40)])
    assert (torch.corrcoef(steps) - torch.eye(40)).abs().max() < 5 / 64
    lagged = torch.corrcoef(torch.stack([x[0, :-1], x[0, 1:]]))
    assert lagged[0, 1].abs() < 5 / 64


@pytest.mark.parametrize("kind", ["noise", "signal", "spike", "rank 1"])
def test_what_is_remembered_does_not_depend_on_rounding(kind):
    """Rows summed in one go against two halves, as ranks do, over 60 matrices that drift: a chaotic memory parts."""

    def matrices():
        gen = torch.Generator().manual_seed(0)
        base = torch.randn(96, 1, generator=gen) @ torch.randn(1, 80, generator=gen)
        a = torch.zeros(96, 80)
        for _ in range(60):
            noise = torch.randn(96, 80, generator=gen)
            one = torch.randn(96, 1, generator=gen) @ torch.randn(1, 80, generator=gen)
            a = (
                0.9 * a
                + {"noise": noise, "signal": base + 0.3 * noise, "spike": base + 1e-4 * noise, "rank 1": one}[kind]
            )
            yield a

    def follow(halves):
        memory = None
        for step, a in enumerate(matrices()):
            for r in range(1 if step else 8):
                new = fresh(keys(1) + r, torch.tensor(step), 8 if memory is None else 4, 80)
                x = new if memory is None else torch.cat([memory[:, 1:], new], 1)
                passed = [products(part[None], x) for part in (a.chunk(2) if halves else [a])]
                gram, y = (sum(p[i].double() for p in passed) for i in (0, 1))
                found, chosen = ritz(gram, y @ y.mT, 4, 1e-6)
                memory = remember(chosen, y, x[:, :5] if memory is None else memory)
            yield found.item(), memory

    for (one, memory), (two, other) in zip(follow(halves=False), follow(halves=True), strict=True):
        assert one == pytest.approx(two, rel=2e-5 if kind == "rank 1" else 2e-6)
        assert (memory - other).abs().max() < 1e-2
