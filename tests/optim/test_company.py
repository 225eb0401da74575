"""AdamW² beside what users train with: distributed checkpoints, torch.compile, gradient accumulation."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from qkspec.optim.adamw2 import AdamW2

D = 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c_attn, self.up, self.down = nn.Linear(D, 3 * D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        q, k, v = self.c_attn(x).chunk(3, -1)
        x = x + torch.softmax(q @ k.mT / D**0.5, -1) @ v
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def made(dtype=torch.float32):
    net = Block().to(dtype)
    return net, AdamW2(net.named_parameters(), 1e-2, block=4)


def train(net, opt, steps, forward=None, parts=1):
    for step in steps:
        x = torch.randn(8, 5, D, generator=torch.Generator().manual_seed(step)).to(net.up.weight.dtype)
        opt.zero_grad()
        for chunk in x.chunk(parts):
            ((net if forward is None else forward)(chunk).square().mean() / parts).backward()
        opt.step()


def gap(one, other):
    return max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_a_distributed_checkpoint_resumes_bit_for_bit(tmp_path):
    net, opt = made()
    train(net, opt, range(13))
    weights, state = get_state_dict(net, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "c")
    train(net, opt, range(13, 25))
    other, again = made()
    weights, state = get_state_dict(other, again)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "c")
    set_state_dict(other, again, model_state_dict=weights, optim_state_dict=state)
    assert again.param_groups[0]["bounded_steps"] == 13
    train(other, again, range(13, 25))
    assert gap(net, other) == 0
    assert [r.effective_lr for r in again.readings()] == [r.effective_lr for r in opt.readings()]


# In double precision: the gradient of the keys' bias is zero but for rounding, and Adam makes whole steps of rounding.


def test_a_compiled_model_trains_as_the_plain_one():
    net, opt = made(torch.float64)
    other, theirs = made(torch.float64)
    train(net, opt, range(15))
    train(other, theirs, range(15), torch.compile(other, backend="aot_eager"))
    assert gap(net, other) <= 1e-7
    assert [r.name for r in theirs.readings()][:3] == [f"c_attn.weight[{part}]" for part in "qkv"]
    assert opt.bound_fraction > 0


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")  # torch's own code
def test_a_step_inside_what_is_compiled_is_the_plain_one():
    torch.compiler.reset()
    net, opt = made(torch.float64)
    other, theirs = made(torch.float64)

    def whole_step(x):
        theirs.zero_grad()
        other(x).square().mean().backward()
        theirs.step()

    compiled = torch.compile(whole_step, backend="aot_eager")
    train(net, opt, range(12))
    for step in range(12):
        compiled(torch.randn(8, 5, D, generator=torch.Generator().manual_seed(step)).double())
    assert gap(net, other) <= 1e-7


def test_accumulated_gradients_are_one_step():
    net, opt = made(torch.float64)
    other, theirs = made(torch.float64)
    train(net, opt, range(15))
    train(other, theirs, range(15), parts=4)
    assert gap(net, other) <= 1e-7
    assert theirs.param_groups[0]["bounded_steps"] == 15
