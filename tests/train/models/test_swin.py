import dataclasses

import pytest
import torch

from qkspec.errors import UsageError
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build as build_lab
from qkspec.train.models import swin
from qkspec.train.probes import probe

SMALL = TrainConfig(model="swin", heads=2, width=16, image_size=16, patch=2, stages="2,2", window=4, classes=5)


def _shaken(config: TrainConfig) -> swin.Swin:
    torch.manual_seed(0)
    model = swin.build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("change", [{}, {"window": 2, "stages": "2,3,1", "channels": 3}])
def test_timm_loads_it_and_gives_the_same_logits(change: dict[str, object]) -> None:
    timm = pytest.importorskip("timm")
    config = dataclasses.replace(SMALL, **change)
    model = _shaken(config)
    said = swin.config_json(config)
    theirs = timm.create_model(said["architecture"], **said["model_args"])
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(3, config.channels, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images), atol=1e-5, rtol=1e-5)


def test_its_own_weights_start_as_timm_draws_them() -> None:
    timm = pytest.importorskip("timm")
    config = dataclasses.replace(SMALL, width=64, init="gpt2")
    said = swin.config_json(config)
    theirs = dict(timm.create_model(said["architecture"], **said["model_args"]).named_parameters())
    for name, weight in swin.build(config).named_parameters():
        if name != "head.fc.weight":  # which timm starts smaller
            assert float(weight.detach().double().std(correction=0)) == pytest.approx(
                float(theirs[name].detach().double().std(correction=0)), rel=0.25
            ), name


def test_attention_logits_are_those_of_the_forward_pass() -> None:
    model = _shaken(SMALL)
    inputs: list[torch.Tensor] = []
    parts = swin.anatomy(model)
    for part in parts:
        part.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(torch.randn(2, 1, 16, 16))
    assert [p.name for p in parts][1:3] == ["layers.0.blocks.1.attn", "layers.1.blocks.0.attn"]
    for part, x in zip(parts, list(inputs), strict=True):
        _, _, v = part.module.project(x)
        mixed = part.module.proj((part.module.logits(x).softmax(-1) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, part.module(x), atol=1e-5, rtol=1e-5)
    assert len(inputs[1]) == 2 * 4  # four windows of two images
    assert torch.isinf(parts[1].module.logits(inputs[1])).any()


def test_what_a_swin_does_not_have_is_refused() -> None:
    for change in ({"norm": "rms"}, {"qk_norm": True}, {"stages": "2,x"}, {"window": 3}, {"stages": "1,1,1,1,1"}):
        with pytest.raises(UsageError, match="--"):
            swin.build(dataclasses.replace(SMALL, **change))


def test_it_is_probed_like_the_others() -> None:
    pytest.importorskip("sklearn")
    config = TrainConfig(model="swin", heads=2, width=16, patch=1, stages="2,1", window=4, batch=4, threads=1)
    blocks = probe(build_lab(config))["blocks"]
    assert [len(b["entropy"]) for b in blocks] == [2, 2, 4]
    assert all(v is not None and 0 < v <= 1 for b in blocks for v in b["entropy"])
    assert len(blocks[0]["terms"]) == 15
