import dataclasses

import pytest
import torch

from qkspec.train.config import TrainConfig
from qkspec.train.models import vit

SMALL = TrainConfig(model="vit", layers=2, heads=2, width=16, image_size=8, patch=2, classes=5)


def _shaken(config: TrainConfig) -> vit.ViT:
    torch.manual_seed(0)
    model = vit.build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("change", [{}, {"mlp": 24, "channels": 3, "patch": 4}])
def test_timm_loads_it_and_gives_the_same_logits(change: dict[str, int]) -> None:
    timm = pytest.importorskip("timm")
    config = dataclasses.replace(SMALL, **change)
    model = _shaken(config)
    said = vit.config_json(config)
    theirs = timm.create_model(said["architecture"], **said["model_args"])
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(3, config.channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images), atol=1e-5, rtol=1e-5)


def test_what_timm_cannot_express_is_marked() -> None:
    assert vit.config_json(SMALL)["architecture"] == "vit_base_patch16_224"
    for change in ({"norm_position": "post"}, {"norm": "rms"}, {"qk_norm": True}):
        said = vit.config_json(dataclasses.replace(SMALL, **change))
        assert said["architecture"] == "qkspec_vit"
        assert {k: said[k] for k in change} == change


@pytest.mark.parametrize("change", [{}, {"qk_norm": True}, {"norm_position": "post", "norm": "rms"}])
def test_attention_logits_are_those_of_the_forward_pass(change: dict[str, object]) -> None:
    model = _shaken(dataclasses.replace(SMALL, **change))
    inputs: list[torch.Tensor] = []
    parts = vit.anatomy(model)
    for part in parts:
        part.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(torch.randn(2, 1, 8, 8))
    for part, x in zip(parts, list(inputs), strict=True):
        _, _, v = part.module.project(x)
        mixed = part.module.proj((part.module.logits(x).softmax(-1) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, part.module(x), atol=1e-6, rtol=1e-5)
        q = part.module.qkv(x)[..., :16].view(2, 17, 2, 8).transpose(1, 2)
        if "qk_norm" not in change:
            torch.testing.assert_close(
                x @ part.matrices["q"].T + part.module.qkv.bias[:16], q.transpose(1, 2).flatten(2)
            )


def test_attention_weights_are_the_projection_and_the_norm_that_feeds_it() -> None:
    for position, feeding in (("pre", "norm1"), ("post", "norm2")):
        config = dataclasses.replace(SMALL, norm_position=position, layers=1)
        kept = {n for n in vit.build(config).state_dict() if vit.attention_weight(n, config)}
        assert kept == {f"blocks.0.{m}.{p}" for m in ("attn.qkv", feeding) for p in ("weight", "bias")}
