"""Files as the first releases wrote them, before anybody converted them: each against its code's own split, by hand.

OLMo (olmo/model.py, ``att_proj``), Gemma (gemma_pytorch, ``qkv_proj``), GPT-NeoX (``query_key_value`` of pipelines),
LitGPT before and after 0.5 (``attn.attn``, ``attn.qkv``), torchtune, x-transformers, DeepSeek-V3's inference code, and
Mistral's ``consolidated.safetensors`` with its ``params.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts.agree import layers_of

from qkspec.checkpoints.memory import from_state_dict
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import LayoutError
from qkspec.layouts.find import plan
from qkspec.metrics import measure
from qkspec.qk import QKLayer

H, KV, D, WIDTH = 4, 2, 6, 24
GROUP = H // KV
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def rows(weight: np.ndarray, start: int) -> np.ndarray:
    return weight[start * D : (start + 1) * D]


def thirds(w: np.ndarray, kv: int = KV) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split as ``w.split((H * D, kv * D, kv * D))`` does: all queries, all keys, all values."""
    return [(rows(w, h), rows(w, H + h // (H // kv))) for h in range(H)]


def runs(w: np.ndarray, kv: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split as ``w.view(kv, H // kv + 2, D, -1)`` does: each group's queries, then its key, then its value."""
    size = H // kv
    return [(rows(w, h // size * (size + 2) + h % size), rows(w, h // size * (size + 2) + size)) for h in range(H)]


def check(tensors: dict[str, np.ndarray], config: dict[str, Any], expected: Any, **options: int) -> QKLayer:
    (layer,) = layers_of(from_state_dict(tensors, config), **options)
    assert layer.heads == len(expected)
    for head, (q, k) in enumerate(expected):
        np.testing.assert_array_equal(layer.q[head], q)
        np.testing.assert_array_equal(layer.k[head // (layer.heads // layer.kv_heads)], k)
    return layer


@pytest.mark.parametrize("model_type", ["hf_olmo", None])
def test_olmo(model_type: str | None, record_property: Any) -> None:
    w = random(3 * H * D, WIDTH)
    config = {"n_heads": H, "d_model": WIDTH, "rope": True, "clip_qkv": 8.0, "layer_norm_with_affine": False}
    config |= {"model_type": model_type} if model_type else {}
    name = "transformer.blocks.0" if model_type is None else "model.transformer.blocks.0"
    layer = check({f"{name}.att_proj.weight": w}, config, thirds(w, H))
    assert (layer.clamp, layer.unknown, layer.q_input is not None and layer.q_input.kind) == (8.0, (), "layer")
    assert layer.rotary is not None
    assert layer.rotary.pairing == "halves"
    record_property("architecture", f"olmo (original){', on the hub' if model_type else ''}")


def test_olmo_2_has_its_norms_behind_and_on_queries(record_property: Any) -> None:
    w, gain = random(3 * H * D, WIDTH), random(WIDTH)
    tensors = {"transformer.blocks.0.att_proj.weight": w, "transformer.blocks.0.attn_norm.weight": gain}
    tensors |= {f"transformer.blocks.0.{side}_norm.weight": gain for side in "qk"}
    layer = check(tensors, {"n_heads": H, "rope": True, "norm_after": True}, thirds(w, H))
    assert layer.q_input is None
    assert layer.qk_norm is not None
    assert layer.qk_norm.per_head is False
    layer = check({**tensors}, {"n_heads": H, "rope": True, "norm_after": False}, thirds(w, H))
    assert layer.q_input is not None
    np.testing.assert_array_equal(layer.q_input.gain, gain)
    record_property("architecture", "olmo 2 (original)")


def test_gemma(record_property: Any) -> None:
    w, gain = random((H + 2 * KV) * D, WIDTH), random(WIDTH)
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": w, "model.layers.0.input_layernorm.weight": gain}
    layer = check({**tensors, "embedder.weight": random(9, WIDTH)}, {}, thirds(w), num_heads=H, num_kv_heads=KV)
    assert layer.q_input is not None
    np.testing.assert_array_equal(layer.q_input.gain, gain + 1.0)
    with pytest.raises(LayoutError):  # Phi-3 has the same names, with other gains
        layers_of(from_state_dict(tensors, {}), num_heads=H, num_kv_heads=KV)
    record_property("architecture", "gemma (original)")


def test_gpt_neox_of_a_pipeline(record_property: Any) -> None:
    w = random(3 * H * D, WIDTH)
    tensors = {"sequential.2.attention.query_key_value.weight": w, "sequential.2.input_layernorm.weight": random(WIDTH)}
    layer = check(tensors, {}, runs(w, H), num_heads=H)
    assert layer.layer == 2
    record_property("architecture", "gpt-neox (original)")


@pytest.mark.parametrize(("name", "split"), [("qkv", thirds), ("attn", lambda w: runs(w, KV))])
def test_litgpt(name: str, split: Any, record_property: Any) -> None:
    w = random((H + 2 * KV) * D, WIDTH)
    tensors = {f"transformer.h.0.attn.{name}.weight": w, "transformer.h.0.norm_1.weight": random(WIDTH)}
    layer = check(tensors, {}, split(w), num_heads=H, num_kv_heads=KV)
    assert layer.q_input is not None
    record_property("architecture", f"litgpt, {'since' if name == 'qkv' else 'before'} 0.5")


def test_torchtune(record_property: Any) -> None:
    q, k, gain = random(H * D, WIDTH), random(KV * D, WIDTH), random(WIDTH)
    tensors = {"layers.0.attn.q_proj.weight": q, "layers.0.attn.k_proj.weight": k, "layers.0.sa_norm.scale": gain}
    expected = [(rows(q, h), rows(k, h // GROUP)) for h in range(H)]
    layer = check(tensors, {}, expected, num_heads=H, num_kv_heads=KV)
    assert layer.q_input is not None
    np.testing.assert_array_equal(layer.q_input.gain, gain)
    del tensors["layers.0.sa_norm.scale"]  # the names of many a private model
    (layer,) = layers_of(from_state_dict(tensors, {}), num_heads=H, num_kv_heads=KV)
    assert "input norm" in layer.unknown
    record_property("architecture", "torchtune")


def test_x_transformers(record_property: Any) -> None:
    q, k = random(2 * 64, WIDTH), random(64, WIDTH)
    names = ("attn_layers.layers.0.1.to_q.weight", "attn_layers.layers.0.1.to_k.weight")
    tensors = {**dict(zip(names, (q, k), strict=True)), "attn_layers.layers.0.0.0.gamma": random(WIDTH)}
    (layer,) = layers_of(from_state_dict(tensors, {}))
    np.testing.assert_array_equal(layer.q, q.reshape(2, 64, WIDTH))
    np.testing.assert_array_equal(layer.k, k.reshape(1, 64, WIDTH))
    assert "input norm" in layer.unknown  # gains are stored minus one, or not, as the version has it
    record_property("architecture", "x-transformers")


def test_deepseek(record_property: Any) -> None:
    nope, rope, value, r_q, r = 6, 4, 5, 12, 10
    q_a, q_b = random(r_q, WIDTH), random(H * (nope + rope), r_q)
    kv_a, kv_b = random(r + rope, WIDTH), random(H * (nope + value), r)
    at = "layers.0.attn"
    tensors = {
        f"{at}.wq_a.weight": q_a,
        f"{at}.wq_b.weight": q_b,
        f"{at}.wkv_a.weight": kv_a,
        f"{at}.wkv_b.weight": kv_b,
    }
    tensors |= {f"{at}.q_norm.weight": random(r_q), f"{at}.kv_norm.weight": random(r)}
    tensors |= {"layers.0.attn_norm.weight": random(WIDTH)}
    (layer,) = layers_of(from_state_dict(tensors, {"n_heads": H, "dim": WIDTH, "max_seq_len": 4096}))
    for head in range(H):
        q = q_b[head * (nope + rope) : (head + 1) * (nope + rope)] @ q_a
        up = kv_b[head * (nope + value) : head * (nope + value) + nope]
        k = np.concatenate([up @ kv_a[:r], kv_a[r:]])
        np.testing.assert_allclose(layer.q[head].T @ layer.k[head], q.T @ k, rtol=1e-4, atol=1e-4)
    assert layer.scale == pytest.approx((nope + rope) ** -0.5)
    (longer,) = layers_of(from_state_dict(tensors, {"n_heads": H, "dim": WIDTH}))
    assert longer.scale == pytest.approx((nope + rope) ** -0.5 * (0.1 * np.log(40) + 1) ** 2)
    record_property("architecture", "deepseek (original)")


def test_mistral_consolidated(tmp_path: Path, record_property: Any) -> None:
    from safetensors.numpy import save_file

    q, k = random(H * D, WIDTH), random(KV * D, WIDTH)
    tensors = {"layers.0.attention.wq.weight": q, "layers.0.attention.wk.weight": k}
    save_file({**tensors, "layers.0.attention_norm.weight": random(WIDTH)}, tmp_path / "consolidated.safetensors")
    params = {"dim": WIDTH, "n_heads": H, "n_kv_heads": KV, "head_dim": D, "rope_theta": 1e6, "n_layers": 1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    (layer,) = layers_of(open_checkpoint(tmp_path))
    np.testing.assert_array_equal(layer.q, q.reshape(H, D, WIDTH))
    np.testing.assert_array_equal(layer.k, k.reshape(KV, D, WIDTH))
    assert layer.rotary is not None
    assert (layer.rotary.pairing, layer.rotary.theta) == ("adjacent", 1e6)
    record_property("architecture", "mistral (original)")


def test_a_norm_that_no_row_knows_leaves_no_logit_known() -> None:
    tensors = {f"layers.0.self_attn.{side}_proj.weight": random(WIDTH, WIDTH) for side in "qk"}
    tensors |= {"layers.0.input_layernorm.weight": random(WIDTH)}
    config = {"model_type": "llama", "num_attention_heads": H}
    (layer,) = layers_of(from_state_dict(tensors, config))
    assert np.isfinite(measure(layer)[0]["freezing_ratio"]).all()
    tensors["layers.0.self_attn.qk_layernorm.weight"] = random(D)
    (layer,) = layers_of(from_state_dict(tensors, config))
    values = measure(layer)[0]
    assert np.isnan(values["freezing_ratio"]).all()
    assert np.isfinite(values["sigma1"]).all()


def test_layers_that_borrow_keys_are_named() -> None:
    tensors = {f"layers.{i}.self_attn.q_proj.weight": random(H * D, WIDTH) for i in range(4)}
    tensors |= {f"layers.{i}.self_attn.k_proj.weight": random(KV * D, WIDTH) for i in range(3)}
    config = {"model_type": "gemma3n_text", "num_attention_heads": H, "num_key_value_heads": KV, "num_hidden_layers": 4}
    found = plan(from_state_dict(tensors, {**config, "num_kv_shared_layers": 2}))
    assert [module.layer for module in found.modules] == [0, 1]
    assert found.skipped == {}  # nothing that could be measured is left out
    assert [line[:39] for line in found.remarks] == ["2 of its modules (layers.2.self_attn, …)"[:39]]
    assert "layer before it" in found.remarks[0]
    with pytest.raises(LayoutError, match=r"k_proj\.weight is not"):  # nothing says that it should be missing
        plan(from_state_dict(tensors, config))
