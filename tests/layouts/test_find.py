"""Finding attention modules: prefixes, copies, towers, what is skipped and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkspec.checkpoints.memory import MemoryStore, from_state_dict
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import LayoutError
from qkspec.layouts.families import FAMILIES
from qkspec.layouts.find import attention_layers, plan
from qkspec.layouts.layout import Fused, Layout, Separate
from qkspec.layouts.load import read

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "hidden_size": 20}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def llama(prefix: str = "model.", layers: int = 2) -> dict[str, np.ndarray]:
    tensors = {}
    for i in range(layers):
        stem = f"{prefix}layers.{i}."
        tensors[f"{stem}self_attn.q_proj.weight"] = array(24, 20, seed=10 * i)
        tensors[f"{stem}self_attn.k_proj.weight"] = array(12, 20, seed=10 * i + 1)
        tensors[f"{stem}self_attn.v_proj.weight"] = array(12, 20, seed=10 * i + 2)
        tensors[f"{stem}input_layernorm.weight"] = array(20, seed=10 * i + 3)
    return tensors


class Verbatim(MemoryStore):
    """A store that keeps every name as it is, as files do."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.verbatim = tensors

    def names(self) -> Any:
        return self.verbatim.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.verbatim[name].shape

    def dtype(self, name: str) -> str:
        return str(self.verbatim[name].dtype)


def as_file(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Any:
    return plan(Checkpoint("x", None, config, Verbatim(tensors)))


def found(tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None, **options: Any) -> Any:
    return plan(from_state_dict(tensors, config or {}), **options)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.model.", "base_model.model.model.", "_orig_mod.model.", "net.0."]
)
def test_whatever_stands_in_front(prefix: str) -> None:
    result = as_file(llama(prefix), LLAMA)
    assert [module.layer for module in result.modules] == [0, 1]
    assert {(m.heads, m.kv_heads, m.d_q, m.d_model) for m in result.modules} == {(4, 2, 6, 20)}
    assert f"{prefix}layers.0.input_layernorm.weight" in result.modules[0].tensors


@pytest.mark.parametrize("size", [0, 1, 5, 99])
def test_a_norm_of_another_width_is_refused(size: int) -> None:
    tensors = llama() | {"model.layers.0.input_layernorm.weight": np.ones(size, np.float32)}
    checkpoint = from_state_dict(tensors, LLAMA)
    found = plan(checkpoint)
    with pytest.raises(LayoutError, match="input norm has"):
        read(checkpoint, found, found.modules[0])


def test_a_number_of_hundreds_of_digits_is_none() -> None:
    assert as_file(llama(), {**LLAMA, "max_position_embeddings": 10**400, "rope_theta": 10**400}).modules


def test_wrappers_inside_names_are_seen_through() -> None:
    tensors = {name.replace("self_attn.", "self_attn._orig_mod."): value for name, value in llama().items()}
    result = plan(from_state_dict(tensors, LLAMA))  # every store takes wrappers out of its names
    assert result.modules[0].name == "model.layers.0.self_attn"
    assert "model.layers.0.self_attn.q_proj.weight" in result.modules[0].tensors


def test_only_queries_and_keys_are_read() -> None:
    checkpoint = from_state_dict(llama(), LLAMA)
    result = plan(checkpoint)
    assert all("v_proj" not in name for module in result.modules for name in module.tensors)
    assert result.modules[0].nbytes == (24 + 12) * 20 * 4
    layer = read(checkpoint, result, result.modules[1])
    np.testing.assert_array_equal(layer.q.reshape(24, 20), array(24, 20, seed=10))
    assert layer.q_input is not None
    np.testing.assert_array_equal(layer.q_input.gain, array(20, seed=13))
    assert (layer.causal, layer.unknown, layer.stored) == (True, (), "float32")


def test_layers_come_in_natural_order() -> None:
    assert [layer.layer for layer in attention_layers(from_state_dict(llama(layers=12), LLAMA))] == list(range(12))


def test_averaged_copies_and_moments_are_skipped_but_an_average_alone_is_read() -> None:
    copies = llama("model_ema.") | llama("optimizer.exp_avg.")
    result = found(llama() | copies, LLAMA)
    assert len(result.modules) == 2
    assert "model_ema.layers.0.self_attn" in result.skipped
    assert len(found(llama("ema."), LLAMA).modules) == 2


def test_masks_and_buffers_are_no_weights() -> None:
    tensors = {f"h.{i}.attn.c_attn.weight": array(12, 36) for i in range(2)}
    tensors |= {f"h.{i}.attn.bias": array(1, 1, 8, 8) for i in range(2)} | {"h.0.attn.masked_bias": array(1)}
    assert len(found(tensors, {"model_type": "gpt2", "n_head": 3}).modules) == 2


TOWERS = {"model_type": "new_vlm", "text_config": LLAMA}


def test_a_tower_without_a_row_is_read_by_its_names_and_says_so() -> None:
    config = TOWERS | {"vision_config": {"model_type": "nobody_knows", "num_heads": 4}}
    result = found(llama("language_model.model.") | llama("vision_tower."), config)
    assert [module.block for module in result.modules] == ["text.self"] * 2 + ["vision.self"] * 2
    assert result.family == "llama + unlisted"
    assert result.modules[0].unknown == ()
    assert result.modules[2].row.norm is None
    assert "nobody_knows" in " ".join(result.modules[2].unknown)
    assert "nobody_knows" in result.remarks[0]


@pytest.mark.parametrize(
    ("vision", "extra", "why"),
    [
        ({"model_type": "nobody_knows"}, {}, "number of heads"),
        ({"model_type": "nobody_knows", "num_heads": 5}, {}, "cannot be 5"),
        ({"num_heads": 4, "head_dim": 3}, {}, "the config says 3"),
        ({"num_heads": 4}, {"vision_tower.layers.0.self_attn.A_log": array(4)}, "linear attention"),
        ({"num_heads": 4}, {"vision_tower.layers.0.self_attn.q_conv1d.weight": array(4)}, "linear attention"),
    ],
)
def test_a_tower_that_cannot_be_read_is_skipped_and_named(vision: Any, extra: Any, why: str) -> None:
    tensors = llama("language_model.model.") | llama("vision_tower.") | extra
    result = found(tensors, TOWERS | {"vision_config": vision})
    assert {module.block for module in result.modules} >= {"text.self"}
    assert "vision_tower.layers.0.self_attn" not in [module.name for module in result.modules]
    assert why in result.skipped["vision_tower.layers.0.self_attn"]


GATED = {"model.layers.0.self_attn.output_gate.weight": array(20, 20)}


def test_a_gate_is_proof_of_linear_attention_in_minimax_alone() -> None:
    for kind in ("llama", "llama_of_tomorrow"):
        result = found(llama() | GATED, LLAMA | {"model_type": kind})
        assert (len(result.modules), dict(result.skipped)) == (2, {})
        assert not any("linear" in line for line in result.remarks)
    alone = {"model.layers.0.self_attn.qkv_proj.weight": array(60, 20)} | GATED
    with pytest.raises(LayoutError, match=r"^model has nothing to measure in model\.layers\.0\.self_attn: linear"):
        found(alone, LLAMA | {"model_type": "minimax"})
    slow = {f"model.layers.{i}.self_attn.A_log": array(4) for i in range(2)}
    with pytest.raises(LayoutError, match=r"^model has nothing to measure in model\.layers\.0\.self_attn: linear"):
        found(llama() | slow, LLAMA | {"model_type": "llama_of_tomorrow"})


def test_a_router_of_experts_is_no_additive_attention() -> None:
    routers = {f"model.layers.{i}.mlp.w_g": array(20, 4) for i in range(2)}
    for kind in ("llama", "llama_of_tomorrow"):
        result = found(llama() | routers, LLAMA | {"model_type": kind})
        assert (len(result.modules), dict(result.skipped)) == (2, {})
        assert not any("additive" in line for line in result.remarks)
    added = {f"net.0.attn.{name}": array(8, 8) for name in ("w_g", "to_query.weight", "to_key.weight")}
    with pytest.raises(LayoutError, match=r"in net\.0\.attn: additive attention"):
        found(added, {"model_type": "swiftformer", "num_heads": 1})


def test_learned_queries_are_no_gap_and_have_a_name() -> None:
    learned = {"query.weight": array(5, 20)}
    known, guessed = (found(llama() | learned, LLAMA | {"model_type": kind}) for kind in ("llama", "tomorrow"))
    assert dict(known.skipped) == {}
    assert known.remarks == ("1 of its modules (query): learned query tokens, not a projection",)
    assert dict(guessed.skipped) == {"query": "learned query tokens, not a projection"}


def test_the_way_a_fused_weight_lies_tells_who_wrote_it_unless_rows_may_be_in_another_order() -> None:
    tensors = {f"transformer.h.{i}.attn.c_attn.weight": array(36, 12) for i in range(2)}
    result = found(tensors, {"model_type": "strange", "n_head": 3})
    assert {(module.row.name, module.heads, module.d_q) for module in result.modules} == {("nanogpt", 3, 4)}
    assert any("strange" in line for line in result.modules[0].unknown)
    with pytest.raises(LayoutError):
        found(tensors, {"model_type": "strange", "n_head": 3, "multi_query": False})  # GPT-BigCode's, head by head


def test_a_scope_is_not_chosen_for_a_path_that_it_shares_with_others() -> None:
    vision = {"num_heads": 6, "model_type": "nobody_knows"}
    config = {"model_type": "new", "thinker_config": {"text_config": LLAMA, "audio_config": vision, "model_type": "t"}}
    tensors = llama("thinker.model.") | {
        f"thinker.audio_tower.layers.0.self_attn.{name}.weight": array(24, 20) for name in ("q_proj", "k_proj")
    }
    result = found(tensors, config)
    assert [(module.name, module.heads) for module in result.modules] == [
        ("thinker.model.layers.0.self_attn", 4),
        ("thinker.model.layers.1.self_attn", 4),
        ("thinker.audio_tower.layers.0.self_attn", 6),
    ]


def test_unlisted_modules_are_read_wherever_they_stand() -> None:
    tensors = {f"net.{i}.mix.{name}.weight": array(12, 20) for i in (2, 10) for name in ("to_q", "to_k")}
    tensors |= {"net.2.cross_mix.query.weight": array(12, 20), "net.2.cross_mix.key.weight": array(12, 9)}
    result = found(tensors, {"model_type": "strange", "n_heads": 3})
    assert [module.name for module in result.modules] == ["net.2.cross_mix", "net.2.mix", "net.10.mix"]
    assert [(module.block, module.layer, module.heads) for module in result.modules] == [
        ("cross", 2, 3),
        ("self", 2, 3),
        ("self", 10, 3),
    ]


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 4}, [4, 3]),
        ({"encoder_attention_heads": 3, "num_heads": 4}, [4, 3]),
        ({"encoder_attention_heads": 3}, [3]),
    ],
)
def test_the_halves_of_a_pair_have_their_own_heads(config: dict[str, Any], heads: list[int]) -> None:
    tensors = {f"{side}.0.q.weight": array(12, 12) for side in ("encoder", "decoder")}
    tensors |= {f"{side}.0.k.weight": array(12, 12) for side in ("encoder", "decoder")}
    assert [module.heads for module in found(tensors, config).modules] == heads


def test_an_unknown_model_type_is_read_by_names_that_prove_their_layout_and_says_so() -> None:
    result = found(llama(), LLAMA | {"model_type": "llama_of_tomorrow"})
    assert len(result.modules) == 2
    assert "llama_of_tomorrow" in result.remarks[0]
    assert any("llama_of_tomorrow" in line for line in result.modules[0].unknown)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (llama(), LLAMA | {"num_attention_heads": 5}, r"\(24, 20\).*cannot be 5 query heads"),
        (llama(), LLAMA | {"head_dim": 8}, "the config says 8"),
        (llama(), {"model_type": "llama"}, "--num-heads"),
        (llama(), LLAMA | {"num_attention_heads": True}, "no count of heads"),
        (llama(), LLAMA | {"num_attention_heads": -4}, "no count of heads"),
        (llama(), LLAMA | {"num_attention_heads": [4]}, "too few for layer"),
        ({"h.0.attn.c_attn.weight": array(12, 12)}, {"n_head": 3}, "as wide as the input|cannot be"),
        ({"h.0.attn.c_attn.weight": array(36)}, {"n_head": 3}, "should be matrices"),
        ({"x.q.weight": array(4, 4)}, {}, "matches no known layout"),
        (
            {"x.y.weight": array(4, 4)},
            {"model_type": "llama"},
            r"calls itself llama, but has no tensor like layers\.\{\}",
        ),
        ({"model.layers.0.self_attn.q_proj.weight": array(8, 8)}, LLAMA, r"k_proj\.weight is not"),
        ({"blocks.0.attn.qkv.weight": array(36, 12)}, {}, "--num-heads"),
        ({"model.layers.0.self_attn.q_proj.qweight": array(4, 4)}, LLAMA, "GPTQ or AWQ"),
        (
            {"l.0.self_attn.q_proj.lora_A.weight": array(4, 8), "l.0.self_attn.q_proj.lora_B.weight": array(8, 4)},
            {},
            "merge",
        ),
    ],
)
def test_what_does_not_add_up_is_refused(tensors: dict[str, np.ndarray], config: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        found(tensors, config)


def test_counts_of_the_command_line_fill_gaps_and_never_contradict() -> None:
    tensors = {"blocks.0.attn.qkv.weight": array(36, 12)}
    assert found(tensors, num_heads=3).modules[0].d_q == 4
    with pytest.raises(LayoutError, match="cannot be 5"):
        found(tensors, num_heads=5)
    with pytest.raises(LayoutError, match="the config says 4 heads, the command line 2"):
        found(llama(), LLAMA, num_heads=2)


def test_integers_are_refused_by_the_name_of_the_tensor() -> None:
    tensors = llama() | {"model.layers.0.self_attn.q_proj.weight": np.zeros((24, 20), np.int8)}
    with pytest.raises(LayoutError, match=r"layers\.0\.self_attn\.q_proj\.weight is stored as int8"):
        found(tensors, LLAMA)


def test_a_norm_of_queries_that_the_row_does_not_know_is_unknown() -> None:
    tensors = llama() | {"model.layers.0.self_attn.q_special_norm.weight": array(6)}
    result = found(tensors, LLAMA)
    assert "q_special_norm" in result.modules[0].unknown[0]
    assert result.modules[1].unknown == ()


def test_a_private_layout_replaces_the_table() -> None:
    row = Layout("mine", (), Separate("b.{}.a.one", "b.{}.a.two"), heads=4, kv_heads=2, scale=lambda *_: 1.0)
    tensors = {"b.0.a.one.weight": array(24, 20), "b.0.a.two.weight": array(12, 20, seed=1)}
    (layer,) = attention_layers(from_state_dict(tensors, LLAMA), layout=row)
    assert (layer.name, layer.heads, layer.kv_heads, layer.scale) == ("b.0.a", 4, 2, 1.0)


def test_a_post_norm_model_is_fed_by_the_norm_of_the_layer_before() -> None:
    tensors = {f"h.{i}.attn.c_attn.weight": array(12, 36) for i in range(2)}
    tensors |= {f"h.{i}.ln_2.weight": array(12, seed=i) for i in range(2)} | {
        f"h.{i}.ln_2.bias": array(12) for i in range(2)
    }
    config = {"model_type": "gpt2", "n_head": 3, "norm_position": "post"}
    first, second = attention_layers(from_state_dict(tensors, config))
    assert first.q_input is None
    assert first.unknown == ("input norm",)
    assert second.q_input is not None
    np.testing.assert_array_equal(second.q_input.gain, array(12, seed=0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Fused(""), "is no pattern"),
        (Fused("a.{}.qkv.weight"), "is no pattern"),
        (Fused("a.{}.{}.{}.qkv"), "is no pattern"),
        (Fused("a.{0.__class__}.qkv"), "is no pattern"),
        (Separate("a.{}.q", "a.k"), "differ in their number"),
        (Fused("a.{}.qkv", parts="kv"), "must hold 'q'"),
        (Separate("a.{}.q", "a.{}.k", k_parts="kk"), "each once"),
    ],
)
def test_a_row_that_makes_no_sense_cannot_be_built(weights: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout("bad", (), weights)


def test_no_two_rows_read_the_same_weights_of_a_model_type() -> None:
    seen: dict[tuple[object, ...], str] = {}
    for row in FAMILIES:
        for kind in row.model_types:
            key = (kind, row.patterns(), tuple(sorted((name, str(value)) for name, value in row.when.items())))
            assert key not in seen, f"{kind}: rows {seen[key]} and {row.name}"
            seen[key] = row.name
