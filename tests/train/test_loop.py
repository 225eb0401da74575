import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn import functional

from qkspec.train.config import TrainConfig
from qkspec.train.lab import build, learning_rate
from qkspec.train.loop import train, verdict


def test_the_loop_is_adamw_written_out(tiny: TrainConfig) -> None:
    """The whole procedure a second time: batches, schedule, decay of matrices only, update for update.

    The large eps is for the key bias: its gradient is zero but for rounding, which Adam would blow up.
    """
    config = dataclasses.replace(tiny, optimizer="adamw", warmup=3, accumulate=2, clip=0.7, eps=1e-4)
    lab, twin = build(config), build(config)
    model, data = twin.model, twin.data
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in model.named_parameters()}
    losses = []
    for t in range(config.steps):
        model.zero_grad()
        total = 0.0
        for micro in range(2):
            x, y = data.batch("train", t, micro)
            loss = functional.cross_entropy(model(x).reshape(-1, 256), y.reshape(-1)) / 2
            torch.autograd.backward(loss)
            total += loss.item()
        losses.append(total)
        norm = math.sqrt(sum(w.grad.square().sum().item() for w in model.parameters()))
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (t - 3) / (config.steps - 3)))
        lr = config.lr * ((t + 1) / 3 if t < 3 else cosine)
        with torch.no_grad():
            for n, w in model.named_parameters():
                g = w.grad * min(1.0, 0.7 / (norm + 1e-6))
                m, v = moments[n]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.95).add_(g * g, alpha=0.05)
                update = (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.95 ** (t + 1))).sqrt() + 1e-4)
                w.sub_(lr * (update + (0.1 * w if w.ndim > 1 else 0.0)))
    steps = list(train(lab))
    assert [s.step for s in steps] == list(range(config.steps + 1))
    assert [s.loss for s in steps[1:]] == pytest.approx(losses, abs=2e-5)
    for (n, w), ours in zip(model.named_parameters(), lab.model.parameters(), strict=True):
        torch.testing.assert_close(ours, w, atol=2e-5, rtol=1e-3, msg=n)


def test_adamw2_with_no_limit_is_adamw_and_with_one_is_bound(tiny: TrainConfig) -> None:
    ends = {}
    for optimizer, tau in (("adamw", 1.0), ("adamw2", math.inf), ("adamw2", 0.001)):
        lab = build(dataclasses.replace(tiny, optimizer=optimizer, tau=tau, eps=1e-4))
        steps = list(train(lab))
        ends[optimizer, tau] = (steps, [w.detach().clone() for w in lab.model.parameters()])
    for free, plain in zip(ends["adamw2", math.inf][1], ends["adamw", 1.0][1], strict=True):
        torch.testing.assert_close(free, plain, atol=1e-6, rtol=1e-5)
    assert {s.bound for s in ends["adamw", 1.0][0]} == {None}
    assert {s.bound for s in ends["adamw2", math.inf][0][1:]} == {0.0}
    assert all(s.bound is not None and s.bound > 0.9 for s in ends["adamw2", 0.001][0][1:])


def test_accumulated_micro_batches_are_one_batch(tiny: TrainConfig) -> None:
    """Two micro-batches of four give the gradient of their eight rows together."""
    lab = build(dataclasses.replace(tiny, accumulate=2, steps=1, optimizer="adamw"))
    rows = [lab.data.batch("train", 0, m) for m in (0, 1)]
    x, y = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    loss = functional.cross_entropy(lab.model(x).flatten(0, 1), y.flatten())
    grads = torch.autograd.grad(loss, list(lab.model.parameters()))
    last = list(train(lab))[-1]
    assert last.loss == pytest.approx(loss.item(), rel=1e-6)
    assert last.grad_norm == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in grads)), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_yielded(tiny: TrainConfig) -> None:
    lab = build(dataclasses.replace(tiny, optimizer="adamw"))
    seen = []
    for step in train(lab):
        seen.append(step)
        if step.step == 4:
            with torch.no_grad():
                next(lab.model.parameters())[:] = math.nan
            broken = {n: w.detach().clone() for n, w in lab.model.named_parameters()}
    assert [s.step for s in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[-1].outcome == "loss is NaN"
    assert lab.step == 4
    for name, weight in lab.model.named_parameters():
        torch.testing.assert_close(weight.detach(), broken[name], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (1.0, 1.0, "ok"),
        (math.nan, 1.0, "loss is NaN"),
        (math.inf, 1.0, "loss is infinite"),
        (1.0, math.inf, "gradient"),
    ],
)
def test_only_what_is_finite_is_ok(loss: float, norm: float, said: str) -> None:
    assert verdict(loss, norm).startswith(said)


def test_the_schedule_rises_then_falls_to_a_tenth() -> None:
    config = TrainConfig(steps=100, warmup=20, lr=1.0)
    rates = [learning_rate(config, t) for t in range(100)]
    assert rates[:20] == pytest.approx([(t + 1) / 20 for t in range(20)])
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))
    assert learning_rate(config, 100) == pytest.approx(0.1)
    assert learning_rate(dataclasses.replace(config, warmup=0), 0) == 1.0


def test_bfloat16_autocast_keeps_float32_weights_and_nearly_the_loss(tiny: TrainConfig) -> None:
    full, half = (build(dataclasses.replace(tiny, dtype=d, optimizer="adamw")) for d in ("float32", "bfloat16"))
    a, b = [list(train(lab))[-1] for lab in (full, half)]
    assert {w.dtype for w in half.model.parameters()} == {torch.float32}
    assert a.loss != b.loss
    assert b.loss == pytest.approx(a.loss, rel=0.02)


def test_the_global_generator_is_neither_read_nor_moved(tiny: TrainConfig) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    lab = build(tiny)
    first = [s.loss for s in train(lab)]
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    assert [s.loss for s in train(build(tiny))] == first
