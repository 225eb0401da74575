import math
import os

import numpy as np
import pytest
import torch
from build import random_layer
from safetensors.numpy import save_file

from qkspec import activations
from qkspec.analysis import Settings, analyze
from qkspec.checkpoints.memory import from_state_dict
from qkspec.errors import InputError
from qkspec.layouts.find import attention_layers
from qkspec.metrics import MEASURED, on_activations

BATCH, TOKENS = 3, 12


def gpt2():
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    )


def llama():
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, attn_implementation="eager",
        )
    )  # fmt: skip


def vit():
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
            patch_size=4, attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def made(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # far from uniform maps, so that a wrong road would show
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(8)
    return model


def given_to(model):
    if model.config.model_type == "vit":
        return torch.randn(BATCH, 3, 16, 16)
    return torch.randint(0, 50, (BATCH, TOKENS))


def naive(maps, *, causal):
    """Mean row entropy / ln(length), diagonal mass, of torch's own maps (batch, heads, n, n), by loops."""
    entropy, diagonal = np.zeros(maps.shape[1]), np.zeros(maps.shape[1])
    for sequence in maps.double().numpy():
        for h, a in enumerate(sequence):
            rows = [(i, row) for i, row in enumerate(a) if not causal or i > 0]
            values = [
                -sum(p * math.log(p) for p in row if p > 0) / math.log(i + 1 if causal else len(a)) for i, row in rows
            ]
            entropy[h] += np.mean(values) / len(maps)
            diagonal[h] += np.trace(a) / len(a) / len(maps)
    return entropy, diagonal


@pytest.mark.parametrize("build", [gpt2, llama, vit])
def test_maps_from_recorded_activations_are_the_models_own(build):
    model = made(build)
    inputs = given_to(model)
    recorded = activations.record(model, inputs)
    with torch.no_grad():
        maps = model(inputs, output_attentions=True).attentions
    layers = list(attention_layers(from_state_dict(model.state_dict(), model.config.to_dict())))
    assert len(recorded) == len(layers) == len(maps)
    for layer, own in zip(layers, maps, strict=True):
        x, y = activations.of_module(recorded, layer, "any")
        found = on_activations(layer, x, y)
        entropy, diagonal = naive(own, causal=layer.causal)
        np.testing.assert_allclose(found["measured_entropy"], entropy, atol=1e-5)
        np.testing.assert_allclose(found["measured_diagonal"], diagonal, atol=1e-5)
        assert entropy.min() < 0.97, "the planted weights must show"


def test_analyze_with_a_file_of_activations(tmp_path):
    model = made(gpt2)
    model.save_pretrained(tmp_path / "checkpoint")
    save_file(activations.record(model, given_to(model)), tmp_path / "x.safetensors")
    path = str(tmp_path / "x.safetensors")
    report = analyze([tmp_path / "checkpoint"], Settings(activations=path))
    assert np.isfinite(report.readings.metric("measured_entropy")).all()
    assert report.evidence(0)[3].metric == "measured_entropy"
    plain = analyze([tmp_path / "checkpoint"])
    assert not set(MEASURED) & set(plain.readings.metrics)
    np.testing.assert_array_equal(plain.readings.metric("sigma1"), report.readings.metric("sigma1"))


def test_a_checkpoints_own_activations_come_before_those_for_all():
    layer = random_layer(d=32)
    x = np.zeros((1, 5, 32), dtype=np.float32)
    known = {"h.0.attn": x, "step-1/h.0.attn": x + 1}
    assert activations.of_module(known, layer, "step-1")[0][0, 0, 0] == 1
    assert activations.of_module(known, layer, "step-2")[0][0, 0, 0] == 0
    assert activations.of_module({}, layer, "step-2") == (None, None)
    assert np.isnan(on_activations(layer, None)["measured_entropy"]).all()


def test_activations_that_do_not_fit_are_refused(tmp_path):
    layer = random_layer(d=32)
    with pytest.raises(InputError, match="31 wide"):
        activations.of_module({"h.0.attn": np.zeros((1, 5, 31), dtype=np.float32)}, layer, "x")
    for value, said in ((np.zeros(4, dtype=np.float32), "shape"), (np.full((3, 4), np.nan, dtype=np.float32), "NaN")):
        save_file({"h.0.attn": value}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=said):
            activations.load(tmp_path / "x.safetensors")


def test_a_file_that_is_written_anew_is_read_again(tmp_path):
    path = tmp_path / "x.safetensors"
    for tokens in (4, 6):
        save_file({"h.0.attn": np.ones((1, tokens, 8), np.float32)}, path)
        first = activations.loaded(str(path))
        assert first["h.0.attn"].shape == (1, tokens, 8)
        assert activations.loaded(str(path)) is first
    save_file({"h.0.attn": np.zeros((1, 6, 8), np.float32)}, path)
    os.utime(path, ns=(0, 0))
    assert not activations.loaded(str(path))["h.0.attn"].any()
    path.unlink()
    with pytest.raises(InputError):
        activations.loaded(str(path))


def test_what_is_recorded_stays_and_can_be_saved(tmp_path):
    """A module that is given a transposed view, and a model that goes on in the same memory."""
    from safetensors.numpy import load_file

    from qkspec.train.config import TrainConfig
    from qkspec.train.models import gpt

    settings = TrainConfig(layers=1, heads=2, width=16, context=8, vocab=16)
    model, config, ids = gpt.build(settings), gpt.config_json(settings), torch.arange(8)[None]
    plain = activations.record(model, ids, config=config)
    attention = model.transformer.h[0].attn
    attention.register_forward_pre_hook(lambda _, args: (args[0].mT.contiguous().mT,))

    def go_on(_, args, __):
        args[0].zero_()

    attention.register_forward_hook(go_on)
    found = activations.record(model, ids, config=config)
    save_file(found, tmp_path / "x.safetensors")
    for kept in (found, load_file(tmp_path / "x.safetensors")):
        np.testing.assert_array_equal(kept["transformer.h.0.attn"], plain["transformer.h.0.attn"])
