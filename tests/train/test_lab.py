import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkspec.errors import UsageError
from qkspec.train import save
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build, reparametrise, resolve_device
from qkspec.train.loop import train
from qkspec.train.models import gpt


def test_weights_depend_on_the_seed_alone(tiny: TrainConfig) -> None:
    one, two, other = build(tiny), build(tiny), build(dataclasses.replace(tiny, seed=1))
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.model.transformer.wte.weight, other.model.transformer.wte.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw2"])
def test_only_matrices_decay(tiny: TrainConfig, optimizer: str) -> None:
    decayed, plain = build(dataclasses.replace(tiny, optimizer=optimizer)).optimizer.param_groups
    assert decayed["weight_decay"] == tiny.weight_decay
    assert plain["weight_decay"] == 0
    assert {w.ndim for w in decayed["params"]} == {2}
    assert {w.ndim for w in plain["params"]} == {1}


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:97"):
        with pytest.raises(UsageError, match=name):
            resolve_device(name)


def test_sigma_reparam_covers_every_linear_layer_but_a_shared_embedding(tiny: TrainConfig) -> None:
    layers = {
        f"transformer.h.{i}.{m}" for i in range(2) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    torch.manual_seed(0)
    assert set(reparametrise(gpt.build(tiny), 0)) == layers | {"lm_head"}
    assert set(reparametrise(gpt.build(dataclasses.replace(tiny, tied=True)), 0)) == layers


def test_a_sigma_checkpoint_holds_the_weights_that_the_model_computes_with(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, reparam="sigma", optimizer="adamw")
    lab = build(config)
    *_, last = train(lab)
    folder = save.publish(lab, tmp_path, last)
    plain = gpt.GPT(tiny)
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    lab.model.eval()
    ids = lab.data.batch("validation", 0, 0)[0]
    torch.testing.assert_close(plain(ids), lab.model(ids), atol=1e-5, rtol=1e-5)
    weight = plain.transformer.h[0].mlp.c_fc.weight.detach()
    gamma = lab.model.transformer.h[0].mlp.c_fc.parametrizations.weight[0].gamma.detach()
    assert float(torch.linalg.svdvals(weight)[0]) == pytest.approx(float(gamma), rel=0.02)
