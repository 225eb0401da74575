"""What a model's config says and its weights do not, held against models of the library that runs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from layouts.agree import layers_of  # noqa: E402
from layouts.tiny import build  # noqa: E402
from layouts.zoo import CASES as WRITERS  # noqa: E402
from layouts.zoo_vision import CASES as SEERS  # noqa: E402

from qkspec.checkpoints.memory import from_state_dict  # noqa: E402
from qkspec.qk import QKLayer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def read(name: str, changes: dict[str, Any] | None = None, **config: Any) -> tuple[torch.nn.Module, list[QKLayer]]:
    """Return a tiny model, some of its settings changed before it is built or (config) in its file alone."""
    case = next(one for one in (*WRITERS, *SEERS) if one.name == name)
    model = build(replace(case, changes=case.changes | (changes or {})))
    return model, layers_of(from_state_dict(model.state_dict(), model.config.to_dict() | config))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gemma4_text", {"use_bidirectional_attention": "all"}),
        ("embedding_gemma2_text", {}),
    ],
)
def test_a_decoder_that_is_told_to_look_both_ways_does(name: str, said: dict[str, Any]) -> None:
    model, layers = read(name, said)
    assert {bool(part.is_causal) for part in model.modules() if hasattr(part, "is_causal")} == {False}
    assert {layer.causal for layer in layers} == {False}
    for off in (False, None) if said else ():
        assert {layer.causal for layer in read(name, use_bidirectional_attention=off)[1]} == {True}


@pytest.mark.parametrize(("kind", "per_head"), [("qwen3", True), ("olmo", False)])
def test_molmo_norms_one_head_or_all_of_them_together(kind: str, per_head: bool) -> None:
    model, layers = read("molmo2_text", {"qk_norm_type": kind})
    assert {layer.qk_norm.per_head for layer in layers if layer.qk_norm} == {per_head}
    gain = next(value for name, value in model.state_dict().items() if name.endswith("q_norm.weight"))
    assert gain.numel() == layers[0].d_q * (1 if per_head else layers[0].heads)


def test_a_layer_type_without_rotary_settings_does_not_rotate() -> None:
    turns = {"rope_type": "default", "rope_theta": 50000.0}
    kinds = ["sliding_attention", "full_attention"]
    settings = {"rope_parameters": {"sliding_attention": turns, "full_attention": None}, "layer_types": kinds}
    model, layers = read("cohere_compass_text", settings)
    with torch.no_grad():  # the library does not rotate there either
        model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    assert [layer.rotary is None for layer in sorted(layers, key=lambda layer: layer.layer)] == [False, True]


def test_the_units_of_a_translator_see_those_before_them_in_its_first_version_alone() -> None:
    for name, causal in (("seamless_m4t", True), ("seamless_m4t_v2", False)):
        layers = {layer.name: layer for layer in read(name)[1]}
        assert layers["t2u_model.model.decoder.layers.0.self_attn"].causal is causal
        assert layers["text_decoder.layers.0.self_attn"].causal is True


def test_keys_of_a_translator_stand_behind_the_last_norm_of_what_made_them() -> None:
    model, layers = read("seamless_m4t")
    crossed = {layer.name: layer.k_input for layer in layers if layer.name.endswith("cross_attention")}
    assert len(crossed) > 1
    for name, norm in crossed.items():
        part = name.partition("decoder")[0]
        assert norm is not None
        assert norm.gain is not None
        assert torch.equal(torch.tensor(norm.gain), model.state_dict()[f"{part}encoder.layer_norm.weight"])


def test_frames_have_their_own_count_of_heads() -> None:
    frames = [layer for layer in read("xclip")[1] if ".mit." in f".{layer.name}"]
    assert {(layer.block, layer.heads, layer.causal) for layer in frames} == {("frames", 2, False)}


def test_what_stands_before_and_beside_the_projections() -> None:
    model, layers = read("lfm3")
    norm = layers[0].q_input
    assert norm is not None
    assert norm.gain is not None
    gain = next(value for name, value in model.state_dict().items() if name.endswith("0.operator_norm.weight"))
    assert torch.equal(torch.tensor(norm.gain), gain)
    assert "input norm" not in layers[0].unknown
    assert all("key's value" in layer.remarks[0] for layer in read("doge")[1])
    assert {layer.rotary for layer in read("hunyuan_vl_vision")[1]} == {None}
    model, layers = read("glmasr_encoder")
    config = {key: value for key, value in model.config.to_dict().items() if key != "rope_parameters"}
    silent = layers_of(from_state_dict(model.state_dict(), config))
    assert {layer.rotary and layer.rotary.dims for layer in (*layers, *silent)} == {layers[0].d_q // 2}
