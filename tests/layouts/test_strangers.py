"""Configs and shapes that no trainer writes, carried from names to verdicts: measured, or refused in a sentence."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkspec.checkpoints.memory import from_state_dict
from qkspec.errors import QkspecError
from qkspec.measuring import Settings, measure

LATENT = {"model_type": "deepseek_v3", "num_attention_heads": 2, "q_lora_rank": 6, "kv_lora_rank": 5}
# model type: its config, and its tensors as (name, shape)
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "gpt2": (
        {"model_type": "gpt2", "n_head": 2, "n_positions": 16},
        {"h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_attn.bias": (24,), "h.0.ln_1.weight": (8,)},
    ),
    "llama": (
        {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": {}},
        {
            "model.layers.0.self_attn.q_proj.weight": (8, 8),
            "model.layers.0.self_attn.k_proj.weight": (4, 8),
            "model.layers.0.input_layernorm.weight": (8,),
        },
    ),
    "qwen3": (
        {"model_type": "qwen3", "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
        {
            "model.layers.0.self_attn.q_proj.weight": (8, 8),
            "model.layers.0.self_attn.k_proj.weight": (8, 8),
            "model.layers.0.self_attn.q_norm.weight": (4,),
            "model.layers.0.self_attn.k_norm.weight": (4,),
            "model.layers.0.input_layernorm.weight": (8,),
        },
    ),
    "gemma2": (
        {"model_type": "gemma2", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
         "query_pre_attn_scalar": 4, "attn_logit_softcapping": 50.0},
        {
            "model.layers.0.self_attn.q_proj.weight": (8, 8),
            "model.layers.0.self_attn.k_proj.weight": (4, 8),
            "model.layers.0.input_layernorm.weight": (8,),
        },
    ),
    "deberta": (
        {"model_type": "deberta-v2", "num_attention_heads": 2, "relative_attention": True, "pos_att_type": "c2p|p2c"},
        {
            "encoder.layer.0.attention.self.query_proj.weight": (8, 8),
            "encoder.layer.0.attention.self.key_proj.weight": (8, 8),
        },
    ),
    "swinv2": (
        {"model_type": "swinv2", "num_heads": [2, 4], "depths": [1, 1], "window_size": 4, "image_size": 16},
        {
            "encoder.layers.0.blocks.0.attention.self.query.weight": (8, 8),
            "encoder.layers.0.blocks.0.attention.self.key.weight": (8, 8),
            "encoder.layers.0.blocks.0.attention.self.logit_scale": (2, 1, 1),
        },
    ),
    "deepseek": (
        LATENT | {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0}},
        {
            "model.layers.0.self_attn.q_a_proj.weight": (6, 8),
            "model.layers.0.self_attn.q_a_layernorm.weight": (6,),
            "model.layers.0.self_attn.q_b_proj.weight": (8, 6),
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (7, 8),
            "model.layers.0.self_attn.kv_a_layernorm.weight": (5,),
            "model.layers.0.self_attn.kv_b_proj.weight": (8, 5),
            "model.layers.0.input_layernorm.weight": (8,),
        },
    ),
}  # fmt: skip
KEYS = (
    "attention_factor", "mscale", "mscale_all_dim", "factor", "rope_theta", "rope_type", "partial_rotary_factor",
    "rope_parameters", "rope_scaling", "image_size", "patch_size", "layer_types", "max_position_embeddings",
    "original_max_position_embeddings", "attention_multiplier", "softcap", "clip_qkv", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "is_decoder", "sliding_window", "hidden_size", "text_config", "head_dim",
    "qk_rope_head_dim", "rotary_dim", "pos_att_type", "depths", "num_kv_shared_layers", "num_hidden_layers",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(-(10**400), 10**400), st.floats(),
    st.sampled_from(["", "yarn", "longrope", "c2p", "²", "0", "x" * 40]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)


@st.composite
def strangers(draw: st.DrawFn, family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A family's config with some values replaced or added, its tensors with some shapes and numbers changed."""
    config, shapes = FAMILIES[family]
    config = {**config, **draw(st.dictionaries(st.sampled_from((*config, *KEYS)), VALUES, max_size=3))}
    config["model_type"] = FAMILIES[family][0]["model_type"]
    shapes = dict(shapes)
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=2)):
        shapes[name] = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    scale = np.float32(draw(st.sampled_from([1.0, 0.0, 1e-30, 1e30, np.inf, np.nan])))
    with np.errstate(all="ignore"):
        return config, {name: np.asarray(rng.standard_normal(shape) * scale, "f4") for name, shape in shapes.items()}


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_a_stranger_is_measured_or_refused_in_a_sentence(family: str, data: st.DataObject) -> None:
    config, tensors = data.draw(strangers(family))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = measure(from_state_dict(tensors, config=config), Settings())
            said = [*found.skipped.values()] or ["measured"]
        except QkspecError as error:
            said = [str(error)]
    assert all(0 < len(sentence) < 2000 for sentence in said)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_measured_as_it_stands(family: str) -> None:
    config, shapes = FAMILIES[family]
    rng = np.random.default_rng(0)
    found = measure(
        from_state_dict(
            {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}, config=config
        ),
        Settings(),
    )
    assert len(found.readings) == 2
    assert not found.skipped
