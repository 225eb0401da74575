import argparse
from dataclasses import dataclass

import pytest
import torch
from callbacks.loops import Loop
from torch import nn

from qkspec.callbacks import live
from qkspec.engine import blas_on_one_thread
from qkspec.errors import UsageError


@dataclass
class Config:
    n_head: int = 2
    block_size: int = 16


class WithMethod:
    def to_dict(self):
        return {"n_head": 2, "block_size": 16}


@pytest.mark.parametrize(
    "config",
    [{"n_head": 2, "block_size": 16}, Config(), WithMethod(), argparse.Namespace(n_head=2, block_size=16)],
    ids=["mapping", "dataclass", "to_dict", "namespace"],
)
def test_any_config_becomes_plain_data(config):
    loop = Loop()
    loop.model.config = config
    for model in (loop.model, nn.DataParallel(loop.model), torch.compile(loop.model, backend="eager")):
        assert live.config_of(model) == {"n_head": 2, "block_size": 16}


@pytest.mark.parametrize("config", [None, Config, nn.Linear(2, 2), 7], ids=["none", "class", "module", "number"])
def test_what_is_no_config_is_none(config):
    assert live.as_plain(config) == {}


def test_the_network_is_the_one_attribute_that_holds_the_weights():
    outer = nn.Module()
    outer.net = nn.Sequential()
    outer.net.add_module("head", nn.Linear(2, 2))
    assert live.network(outer) is outer.net
    outer.loss = nn.Linear(2, 2)
    assert live.network(outer) is outer
    numbered = nn.Module()
    numbered.blocks = nn.Sequential(nn.Linear(2, 2))
    assert live.network(numbered) is numbered, "a list's own name belongs to the names of its layers"
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.zeros(2))
    assert live.network(bare) is bare


def test_nothing_is_copied_before_it_is_read():
    loop = Loop()
    checkpoint = live.checkpoint_of(loop.model, loop.config, 3)
    weight = loop.model.transformer.h[0].attn.c_attn.weight
    name = "transformer.h.0.attn.c_attn.weight"
    with torch.no_grad():
        weight[0, 0] = 9.0
    assert (checkpoint.name, checkpoint.step) == ("step-000003", 3)
    read = checkpoint.store.read(name)
    assert read[0, 0] == 9.0
    with torch.no_grad():
        weight[0, 0] = 1.0
    assert read[0, 0] == 9.0, "what was read stays as it was"


def test_weights_whose_shapes_are_hidden_are_refused():
    model = nn.Linear(2, 2)
    live.check_whole(model)
    model.weight = nn.Parameter(torch.empty(0))  # what DeepSpeed leaves of a weight between its uses
    model.weight.ds_id = 0
    with pytest.raises(UsageError, match="ZeRO-3"):
        live.check_whole(model)


def test_blas_is_held_to_one_thread_for_as_long_as_a_measurement_takes():
    control = pytest.importorskip("threadpoolctl")

    def threads():
        return [pool["num_threads"] for pool in control.threadpool_info() if pool["user_api"] == "blas"]

    with control.threadpool_limits(2, user_api="blas"):
        before = threads()
        with blas_on_one_thread():
            assert set(threads()) == {1}
        assert threads() == before
