from dataclasses import replace

import numpy as np
import pytest
from build import random_layer

from qkspec import embeddings
from qkspec.analysis import Settings, analyze
from qkspec.checkpoints.memory import from_state_dict
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.layouts.find import attention_layers
from qkspec.metrics import EMBEDDED
from qkspec.qk import Norm


def checkpoint(**tensors):
    rng = np.random.default_rng(0)
    known = {
        "transformer.wte.weight": rng.standard_normal((50, 32)),
        "transformer.wpe.weight": np.arange(64 * 32).reshape(64, 32) / 99,
    }
    return from_state_dict({name: value.astype(np.float32) for name, value in {**known, **tensors}.items()})


def test_inputs_are_rows_of_the_embeddings_at_their_places_behind_the_norm():
    gain = np.linspace(1, 2, 32)
    layer = random_layer(d=32, q_input=Norm("layer", gain=gain, bias=gain))
    made = checkpoint()
    found = embeddings.inputs(made, layer)
    assert found.shape == (4, 64, 32)
    tokens, places = (made.store.read(f"transformer.{name}.weight").astype(float) for name in ("wte", "wpe"))
    for sequence in found:
        for place, row in enumerate(sequence):
            sums = tokens + places[place]
            centred = sums - sums.mean(1, keepdims=True)
            normal = centred / centred.std(1, keepdims=True) * gain + gain
            assert np.abs(normal - row).max(axis=1).min() < 1e-4, "it is some token's"


def test_what_bert_gives_its_first_layer(tmp_path):
    """Token, place and the type of a first sentence, behind the norm of the embeddings, as the model sums them."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=24, initializer_range=1.0, **size)).eval()
    model.save_pretrained(tmp_path / "bert")
    made = open_checkpoint(tmp_path / "bert")
    (layer,) = attention_layers(made)
    with torch.no_grad():
        real = torch.stack([model.embeddings(torch.full((1, 24), token))[0] for token in range(50)]).numpy()
    for sequence in embeddings.inputs(made, layer):
        assert np.abs(real - sequence).max(axis=2).min(axis=0).max() < 1e-4, "each is some token's at its place"


def test_the_tokens_are_the_same_for_every_checkpoint():
    """Which rows of the table were taken, read off two tables of different numbers at different steps."""
    layer = random_layer(d=32, q_input=None)
    trained = {"transformer.wte.weight": np.random.default_rng(1).standard_normal((50, 32))}
    chosen = []
    for made in (checkpoint(), replace(checkpoint(**trained), name="step-000100", step=100)):
        tokens, places = (made.store.read(f"transformer.{name}.weight") for name in ("wte", "wpe"))
        bare = embeddings.inputs(made, layer) - places
        away = np.abs(bare[:, :, None] - tokens).max(axis=3)
        assert away.min(axis=2).max() < 1e-5
        chosen.append(away.argmin(axis=2))
    np.testing.assert_array_equal(*chosen)
    assert len(np.unique(chosen[0])) > 20


@pytest.mark.parametrize(
    "layer",
    [random_layer(d=16), random_layer(d=32, block="decoder.cross"), random_layer(d=32, unknown=("input norm",))],
    ids=["width", "cross", "norm"],
)
def test_nothing_is_made_up_where_the_embeddings_do_not_tell(layer):
    assert embeddings.inputs(checkpoint(), layer) is None


def test_without_token_embeddings_there_is_nothing():
    bare = from_state_dict({"h.0.attn.c_attn.weight": np.zeros((32, 96), dtype=np.float32)})
    assert embeddings.inputs(bare, random_layer(d=32)) is None


@pytest.mark.parametrize(
    ("tensors", "tokens"),
    [
        ({"pos_embed": (1, 17, 32)}, 17),
        ({"vit.embeddings.position_embeddings": (1, 197, 32)}, 197),
        ({"visual.positional_embedding": (50, 64), "positional_embedding": (77, 32)}, 77),
        ({"text.positional_embedding": (77, 32), "vision.positional_embedding": (50, 32)}, 50),
        ({"pos_embed": (1, 14, 14, 32)}, None),
        ({"pos_embed": (1, 1, 32)}, None),
        ({}, None),
    ],
)
def test_the_table_of_positions_tells_the_tokens_of_a_row(tensors, tokens):
    made = from_state_dict({name: np.zeros(shape, np.float32) for name, shape in tensors.items()})
    assert embeddings.positions(made, random_layer(d=32, name="vision.blocks.0.attn")) == tokens


def test_a_timm_vit_is_judged_at_its_own_row_length(tmp_path):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=1, num_heads=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = analyze([tmp_path / "model.safetensors"], Settings(num_heads=3))
    said = analyze([tmp_path / "model.safetensors"], Settings(num_heads=3, context=5))
    np.testing.assert_array_equal(found.readings["freezing_ratio"], said.readings["freezing_ratio"])
    assert not any("assumed" in remark for remark in found.checkpoints[0].remarks)


def test_analyze_with_embeddings_judges_by_their_map(tmp_path):
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    model.save_pretrained(tmp_path / "checkpoint")
    report = analyze([tmp_path / "checkpoint"], Settings(embeddings=True))
    assert all(np.isfinite(report.readings.metric(name)).all() for name in EMBEDDED)
    found = {c.name: c for c in report.evidence(0)}
    assert (found["sparse"].metric, found["sparse"].limit) == ("embedded_entropy", 0.5)


def test_a_checkpoint_that_keeps_no_embeddings_falls_back(sample):
    report = analyze([sample], Settings(embeddings=True, layers=frozenset({0})))
    assert np.isnan(report.readings.metric("embedded_entropy")).all()
    assert {c.name: c for c in report.evidence(0)}["sparse"].metric == "predicted_entropy"
