"""Tiny models of every architecture: a library's own default config with each size cut down, its weights at random."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

SIZES = {
    32: """hidden_size d_model n_embd dim embed_dim encoder_hidden_size decoder_hidden_size emb_dim width
        word_embed_proj_dim embedding_size hidden_dim projection_dim out_hidden_size encoder_embed_dim
        output_dim intermediate_size d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_dim mlp_dim
        moe_intermediate_size shared_expert_intermediate_size mlp_hidden_size ffn_hidden_size
        decoder_intermediate_size intermediate_dim shared_intermediate_size d_inner lru_width""",
    4: """num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads
        attention_heads decoder_num_attention_heads num_experts num_local_experts n_routed_experts
        moe_num_experts qk_rope_head_dim patch_size rotary_dim mamba_n_heads""",
    2: """num_key_value_heads n_head_kv num_kv_heads num_hidden_layers n_layer num_layers n_layers encoder_layers
        decoder_layers num_decoder_layers decoder_num_hidden_layers depth num_experts_per_tok moe_top_k moe_k
        type_vocab_size""",
    16: "head_dim d_kv kv_channels attention_head_dim image_size",
    64: "max_position_embeddings n_positions max_seq_len max_source_positions max_target_positions n_ctx",
    96: "vocab_size",
    1: "n_group topk_group n_shared_experts",
    12: "q_lora_rank",
    10: "kv_lora_rank",
    6: "qk_nope_head_dim",
    5: "v_head_dim",
}
SIZE = {key: size for size, keys in SIZES.items() for key in keys.split()}
PER_LAYER = ("out_features", "out_indices", "stage_names", "_out_features", "_out_indices", "per_layer_config")
KEPT = ("rope_scaling", "rope_parameters", "id2label", "label2id")
DROPPED = ("transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation")
GONE: Any = object()


@dataclass(frozen=True)
class Out:
    """What another part of the model gave, as an input."""

    path: str


@dataclass(frozen=True)
class Case:
    """One line of the conformance suite.

    Args:
        name: what is printed; model_type: the config class, if another name.
        changes: config keys to set after shrinking; dotted for nested configs; GONE removes a key.
        auto: which Auto class builds it.
        feed: extra inputs by name: a shape of floats, or a tensor; None leaves an input out.
        unread: how many of the attention calls that run are knowingly not in the table.
        tied: how many of those calls use weights of another module, which a file holds once.
        unrun: how many of the modules that are read do not run on these inputs.
        every: compare on every so many tokens only, the first of each image (rotary position).
        batch: how many images or sounds are fed.
        also: parts of the model to run besides (their path and inputs), such as a vision tower.
        whole: False: run nothing but those parts.
        still: switch rotary position off, where no token stands at position zero.
        turn: how queries are also brought to another position (rotary position): by "ids", or by a longer "sequence"
            where those are not taken or mean more; "" where neither can be.
        zero: parts of the names of parameters that are set to zero (terms outside W_q'W_k).
        one: parts of the names of parameters that are set to one (factors of whole heads).
        inside: what the names of input norms end in that stand inside an attention module, so that what is handed to
            it is not normalised.
        wide: let ``.float()`` leave float64 alone, for models that compute their logits in float32 come what may.
        norms: False where the input norm differs between calls of shared weights.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""
    auto: str = "AutoModel"
    feed: dict[str, Any] = field(default_factory=dict)
    unread: int = 0
    tied: int = 0
    unrun: int = 0
    every: int = 1
    norms: bool = True
    wide: bool = False
    inside: tuple[str, ...] = ()
    also: tuple[tuple[str, dict[str, Any]], ...] = ()
    whole: bool = True
    still: bool = False
    turn: Literal["ids", "sequence", ""] = "ids"
    zero: tuple[str, ...] = ()
    one: tuple[str, ...] = ()
    batch: int = 8


def shrink(config: dict[Any, Any]) -> dict[Any, Any]:
    """Return a config with every known size cut down; lists per layer are cut to two."""
    small = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in KEPT:
            small[key] = shrink(value)
        elif key in SIZE and isinstance(value, int) and not isinstance(value, bool):
            small[key] = SIZE[key]
        elif key in ("image_size", "patch_size") and isinstance(value, list):
            small[key] = [SIZE[key]] * len(value)
        elif key == "layer_types" and isinstance(value, list):
            small[key] = sorted(set(value), reverse=True)[:2] if len(set(value)) > 1 else value[:2]
        elif key == "mlp_layer_types" and isinstance(value, list):
            small[key] = value[-2:]
        elif isinstance(key, str) and key.endswith(("token_id", "token_index")) and isinstance(value, int):
            small[key] = 5
        elif key not in DROPPED + PER_LAYER:
            small[key] = value
    return small


def change(config: dict[str, Any], changes: dict[str, Any]) -> None:
    for path, value in changes.items():
        *parents, key = path.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        if value is GONE:
            part.pop(key, None)
        else:
            part[key] = value


def build(case: Case) -> torch.nn.Module:
    """Return the tiny model of a case, its weights random."""
    import transformers

    kind = case.model_type or case.name.split(" ")[0]
    config_class = transformers.CONFIG_MAPPING[kind]
    data = shrink(config_class().to_dict())
    data.pop("model_type", None)
    change(data, case.changes)
    config = config_class(**data)
    if case.auto.startswith("Auto"):
        model = getattr(transformers, case.auto).from_config(config)
    else:  # a tower of a larger model, which the library need not export
        model = getattr(
            importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_")), case.auto
        )(config)
    assert sum(p.numel() for p in model.parameters()) < 4_000_000, "not a tiny model"
    return scramble(model, case.zero, case.one)


def scramble(model: torch.nn.Module, zero: tuple[str, ...] = (), one: tuple[str, ...] = ()) -> torch.nn.Module:
    """Give every parameter its own random values; gains around one, so that no two norms look alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                noise = noise * 0 if any(part in name for part in zero + one) else noise
                noise = noise + 1 if any(part in name for part in one) else noise
                parameter.copy_(noise + 1 if parameter.ndim == 1 and name.endswith("weight") else noise)
        for name, buffer in model.named_buffers():  # what batch norms saw
            if name.endswith(("running_mean", "running_var")):
                noise = torch.randn(buffer.shape, generator=generator) * 0.2
                buffer.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return model


def inputs(model: torch.nn.Module, case: Case) -> dict[str, Any]:
    """Return inputs for one forward pass: many sequences of one token, or a few images or sounds."""
    taken = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    ids = torch.randint(6, 60, (48, 1), generator=torch.Generator().manual_seed(1))
    fed: dict[str, Any] = {}
    if main == "input_values":
        fed["input_values"] = floats(case.batch, 2000)
    elif main == "input_features":
        fed["input_features"] = floats(
            case.batch, getattr(model.config, "num_mel_bins", 80), 2 * getattr(model.config, "max_source_positions", 64)
        )
    elif main == "pixel_values" or "input_ids" not in taken:
        size = model.config.to_dict().get("image_size", 16)
        size = size if isinstance(size, int) else size[0]
        fed["pixel_values"] = floats(case.batch, model.config.to_dict().get("num_channels", 3), size, size)
    else:
        fed["input_ids"] = ids
    if "decoder_input_ids" in taken:
        fed["decoder_input_ids"] = ids[: len(next(iter(fed.values())))]
    return {key: value for key, value in (fed | filled(case.feed)).items() if value is not None}


def filled(feed: dict[str, Any]) -> dict[str, Any]:
    return {key: floats(*value) if isinstance(value, tuple) else value for key, value in feed.items()}


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
