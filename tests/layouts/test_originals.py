"""Files that libraries other than transformers write, and models whose code lives on the hub.

torch and timm run and are compared like the models of the conformance suite. Where the library cannot be run here, the
reference is its published way to split the projection, written out head by head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts.agree import check_layer, layers_of, pair_up
from layouts.tiny import scramble

from qkspec.checkpoints.memory import from_state_dict
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import LayoutError
from qkspec.layouts.find import plan

torch = pytest.importorskip("torch")
H, KV, D, WIDTH = 4, 2, 6, 20


def compare(model: Any, run: Any, config: Mapping[str, Any] | None = None, **options: int) -> list[Any]:
    """Assert that a live model's state dict is read as it computes; return the layers."""
    from layouts.capture import regress, watching

    model = scramble(model).double().eval()
    layers = layers_of(from_state_dict(model.state_dict(), dict(config or {})), **options)
    with torch.no_grad(), watching(model) as watch:
        run(model)
    maps = [regress(caught) for caught in watch.caught.values()]
    assert len(layers) == len(maps) > 0
    for layer, truth in pair_up(layers, maps):
        check_layer(layer, truth)
    return layers


def timm_model(name: str, **options: Any) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported here: {error}")
    return timm.create_model(name, num_classes=3, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4}, 4),
        (
            "vit_tiny_patch16_224",
            {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "qk_norm": True},
            4,
        ),
        ("deit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4}, 4),
        (
            "beit_base_patch16_224",
            {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "use_rel_pos_bias": True},
            None,
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)},
            None,
        ),
        (
            "swinv2_tiny_window8_256",
            {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)},
            None,
        ),
    ],
    ids=["vit", "vit-qk-norm", "deit", "beit", "swin", "swinv2"],
)
def test_timm(name: str, options: dict[str, Any], heads: int | None, record_property: Any) -> None:
    size = options["img_size"]
    images = torch.randn(8, 3, size, size, dtype=torch.float64)
    compare(timm_model(name, **options), lambda model: model(images), **({"num_heads": heads} if heads else {}))
    record_property("architecture", f"timm {name}{' with norms of q and k' if options.get('qk_norm') else ''}")


def test_timm_vit_asks_for_its_heads() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=4)
    with pytest.raises(LayoutError, match="--num-heads"):
        layers_of(from_state_dict(model.state_dict(), {}))


@pytest.mark.filterwarnings("ignore")
def test_torch_transformer(record_property: Any) -> None:
    nn = torch.nn
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 32, batch_first=True), 2)
    compare(encoder, lambda model: model(torch.randn(48, 1, 24, dtype=torch.float64)), num_heads=4)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 32, batch_first=True), 2)
    tokens = torch.randn(48, 1, 24, dtype=torch.float64)
    layers = compare(decoder, lambda model: model(tokens, torch.randn(48, 1, 24, dtype=torch.float64)), num_heads=4)
    assert [layer.layer for layer in layers if "self_attn" in layer.name] == [0, 1]
    record_property("architecture", "torch.nn.TransformerEncoder and TransformerDecoder")


@pytest.mark.filterwarnings("ignore")
def test_torch_attention_between_two_widths(record_property: Any) -> None:
    attention = torch.nn.MultiheadAttention(24, 4, kdim=10, vdim=10, batch_first=True)
    wrapper = torch.nn.ModuleDict({"cross": attention})
    q, k = torch.randn(48, 1, 24, dtype=torch.float64), torch.randn(48, 1, 10, dtype=torch.float64)
    (layer,) = compare(wrapper, lambda model: model["cross"](q, k, k), num_heads=4)
    assert layer.q.shape == (4, 6, 24)
    assert layer.k.shape == (4, 6, 10)
    record_property("architecture", "torch.nn.MultiheadAttention with keys of another width")


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(abs(hash(shape)) % 2**32).standard_normal(shape).astype(np.float32)


def check(
    tensors: dict[str, np.ndarray],
    config: dict[str, Any],
    expected: list[tuple[np.ndarray, np.ndarray]],
    **options: int,
) -> Any:
    """Assert that the first module's heads are the expected (q, k) pairs, one a query head."""
    layers = layers_of(from_state_dict(tensors, config), **options)
    layer = layers[0]
    group = layer.heads // layer.kv_heads
    assert layer.heads == len(expected)
    for head, (q, k) in enumerate(expected):
        np.testing.assert_array_equal(layer.q[head], q)
        np.testing.assert_array_equal(layer.k[head // group], k)
    return layer


def rows(weight: np.ndarray, start: int) -> np.ndarray:
    return weight[start * D : (start + 1) * D]


def test_per_group_runs_of_internlm2_and_megatron(record_property: Any) -> None:
    """A key head's run: its query heads, then its key, then its value."""
    w, group = random((H + 2 * KV) * D, WIDTH), H // KV
    expected = [
        (rows(w, (h // group) * (group + 2) + h % group), rows(w, (h // group) * (group + 2) + group)) for h in range(H)
    ]
    config = {"model_type": "internlm2", "num_attention_heads": H, "num_key_value_heads": KV}
    check({"model.layers.0.attention.wqkv.weight": w}, config, expected)
    record_property("architecture", "internlm2")


def test_megatron_core(record_property: Any) -> None:
    w, group = random((H + 2 * KV) * D, WIDTH), H // KV
    expected = [
        (rows(w, (h // group) * (group + 2) + h % group), rows(w, (h // group) * (group + 2) + group)) for h in range(H)
    ]
    name = "decoder.layers.0.self_attention.linear_qkv"
    tensors = {f"{name}.weight": w, f"{name}.layer_norm_weight": random(WIDTH)}
    layer = check(tensors, {}, expected, num_heads=H, num_kv_heads=KV)
    assert layer.q_input is not None
    assert layer.q_input.kind == "rms"
    with pytest.raises(LayoutError, match="--num-heads"):
        layers_of(from_state_dict(tensors, {}))
    record_property("architecture", "megatron-core")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("stacked", [False, True])
def test_megatron_core_with_all_layers_in_one_tensor(stacked: bool, tmp_path: Path, record_property: Any) -> None:
    """Directories of torch.distributed.checkpoint with and without an axis of layers; runs as above."""
    import torch.distributed.checkpoint as dcp

    layers, group = 3, H // KV
    weights = [random((H + 2 * KV) * D, WIDTH) + i for i in range(layers)]
    gains = [np.arange(WIDTH, dtype=np.float32) + i for i in range(layers)]
    parts = {"linear_qkv.weight": weights, "linear_qkv.layer_norm_weight": gains}
    if stacked:
        tensors = {f"decoder.layers.self_attention.{name}": np.stack(parts[name]) for name in parts}
    else:
        tensors = {f"decoder.layers.{i}.self_attention.{name}": parts[name][i] for name in parts for i in range(layers)}
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    dcp.save(state | {"decoder.final_layernorm.weight": torch.ones(WIDTH)}, checkpoint_id=tmp_path, no_dist=True)
    made = layers_of(open_checkpoint(tmp_path), num_heads=H, num_kv_heads=KV)
    assert [layer.layer for layer in made] == [0, 1, 2]
    for layer, w, gain in zip(made, weights, gains, strict=True):
        for h in range(H):
            np.testing.assert_array_equal(layer.q[h], rows(w, (h // group) * (group + 2) + h % group))
        for g in range(KV):
            np.testing.assert_array_equal(layer.k[g], rows(w, g * (group + 2) + group))
        assert layer.q_input is not None
        np.testing.assert_array_equal(layer.q_input.gain, gain)
    record_property("architecture", f"megatron-core, {'stacked' if stacked else 'numbered'} layers")


@pytest.mark.parametrize(
    ("model_type", "name", "config"),
    [
        ("baichuan", "model.layers.0.self_attn.W_pack", {"num_attention_heads": H}),
        ("qwen", "transformer.h.0.attn.c_attn", {"num_attention_heads": H, "kv_channels": D}),
        (
            "chatglm",
            "transformer.encoder.layers.0.self_attention.query_key_value",
            {"num_attention_heads": H, "multi_query_attention": True, "multi_query_group_num": H},
        ),
    ],
)
def test_thirds_of_code_on_the_hub(model_type: str, name: str, config: dict[str, Any], record_property: Any) -> None:
    w = random(3 * H * D, H * D)
    expected = [(rows(w, h), rows(w, H + h)) for h in range(H)]
    check({f"{name}.weight": w}, {"model_type": model_type, **config}, expected)
    record_property("architecture", model_type)


def test_chatglm_with_grouped_keys_and_chatglm_1(record_property: Any) -> None:
    w = random((H + 2 * KV) * D, WIDTH)
    config = {
        "model_type": "chatglm",
        "num_attention_heads": H,
        "multi_query_attention": True,
        "multi_query_group_num": KV,
    }
    expected = [(rows(w, h), rows(w, H + h // (H // KV))) for h in range(H)]
    check({"transformer.encoder.layers.0.self_attention.query_key_value.weight": w}, config, expected)
    w = random(3 * H * D, H * D)
    expected = [(rows(w, 3 * h), rows(w, 3 * h + 1)) for h in range(H)]
    check(
        {"transformer.layers.0.attention.query_key_value.weight": w},
        {"model_type": "chatglm", "num_attention_heads": H},
        expected,
    )
    record_property("architecture", "chatglm 1")


def test_llama_whisper_exaone_and_transformer_lens(record_property: Any) -> None:
    q, k = random(H * D, WIDTH), random(KV * D, WIDTH)
    expected = [(rows(q, h), rows(k, h // 2)) for h in range(H)]
    tensors = {
        "layers.0.attention.wq.weight": q,
        "layers.0.attention.wk.weight": k,
        "layers.0.attention_norm.weight": random(WIDTH),
    }
    layer = check(tensors, {"n_heads": H, "n_kv_heads": KV, "dim": WIDTH}, expected)
    assert layer.unknown == ()
    assert layer.rotary is not None
    assert layer.rotary.pairing == "adjacent"
    stem = "transformer.h.0.attn.attention"
    config = {"model_type": "exaone", "num_attention_heads": H, "num_key_value_heads": KV}
    check({f"{stem}.q_proj.weight": q, f"{stem}.k_proj.weight": k}, config, expected)
    wide = random(H * D, H * D)
    tensors = {
        f"{side}.blocks.0.{kind}.{part}.weight": wide
        for side, kind in (("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross_attn"))
        for part in ("query", "key")
    }
    layers = layers_of(from_state_dict(tensors, {"n_audio_head": 2, "n_text_head": H}))
    assert {(layer.block, layer.heads) for layer in layers} == {
        ("encoder.self", 2),
        ("decoder.self", 4),
        ("decoder.cross", 4),
    }
    w_q, w_k = random(H, WIDTH, D), random(H, WIDTH, D) * 2
    expected = [(w_q[h].T, w_k[h].T) for h in range(H)]
    check({"blocks.0.attn.W_Q": w_q, "blocks.0.attn.W_K": w_k}, {}, expected)
    for name in ("llama (original)", "whisper (original)", "exaone", "transformer_lens"):
        record_property("architecture", name)


def test_nanogpt_and_gpt2_have_the_same_names_in_opposite_orientation(record_property: Any) -> None:
    d = H * D
    w = random(3 * d, d)
    expected = [(rows(w, h), rows(w, H + h)) for h in range(H)]
    layer = check(
        {"_orig_mod.transformer.h.0.attn.c_attn.weight": w}, {"n_head": H, "n_embd": d, "block_size": 32}, expected
    )
    assert layer.context == 32
    check({"transformer.h.0.attn.c_attn.weight": np.ascontiguousarray(w.T)}, {"n_head": H}, expected)
    record_property("architecture", "nanogpt")


@pytest.mark.filterwarnings("ignore")
def test_clip_of_openai(record_property: Any) -> None:
    w = random(3 * H * D, H * D)
    names = ("visual.transformer.resblocks.0.attn", "transformer.resblocks.0.attn")
    tensors = {f"{name}.in_proj_weight": w for name in names} | {f"{name}.in_proj_bias": w[:, 0] for name in names}
    layers = layers_of(from_state_dict(tensors, {}), num_heads=H)
    assert {(layer.block, layer.causal) for layer in layers} == {("vision.self", False), ("text.self", True)}
    for layer in layers:
        assert layer.k_bias is not None
        np.testing.assert_array_equal(layer.k[1], rows(w, H + 1))
        np.testing.assert_array_equal(layer.k_bias[1], rows(w, H + 1)[:, 0])
    record_property("architecture", "clip (original)")


def test_towers_of_clip_have_heads_of_width_64() -> None:
    """As its code has it: ``vision_heads = vision_width // 64``, ``transformer_heads = transformer_width // 64``."""
    tensors = {
        "visual.transformer.resblocks.0.attn.in_proj_weight": random(3 * 192, 192),
        "transformer.resblocks.0.attn.in_proj_weight": random(3 * 128, 128),
    }
    found = plan(from_state_dict(tensors, {}))
    assert {module.block: module.heads for module in found.modules} == {"vision.self": 3, "text.self": 2}
    with pytest.raises(LayoutError, match="--num-heads"):
        plan(from_state_dict({"transformer.resblocks.0.attn.in_proj_weight": random(3 * 96, 96)}, {}))
