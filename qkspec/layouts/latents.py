"""Rows of the table: multi-head latent attention, whose queries and keys are products with a norm in between."""

from dataclasses import replace

from qkspec.layouts.decoders import SINK, SPARSE
from qkspec.layouts.facts import deepseek_scale, latent_scale
from qkspec.layouts.layout import InputNorm, Latent, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
RMS = InputNorm("layers.{}.input_layernorm", "rms")
MLA = Latent(
    "layers.{}.self_attn.q_proj", "layers.{}.self_attn.q_a_proj", "layers.{}.self_attn.q_b_proj",
    "layers.{}.self_attn.kv_a_proj_with_mqa", "layers.{}.self_attn.kv_b_proj",
    "layers.{}.self_attn.q_a_layernorm", "layers.{}.self_attn.kv_a_layernorm",
)
SHORT = Latent(
    "layers.{}.attn.wq", "layers.{}.attn.wq_a", "layers.{}.attn.wq_b", "layers.{}.attn.wkv_a", "layers.{}.attn.wkv_b",
    "layers.{}.attn.q_norm", "layers.{}.attn.kv_norm",
)
MISTRAL = Latent(
    "layers.{}.attention.wq", "layers.{}.attention.wq_a", "layers.{}.attention.wq_b",
    "layers.{}.attention.wkv_a_with_mqa", "layers.{}.attention.wkv_b",
    "layers.{}.attention.q_a_norm", "layers.{}.attention.kv_a_norm",
)
DEEPSEEK = Layout("deepseek", ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "mistral4", "youtu", "axk1",
    "bailing_hybrid"), MLA,
    kv_heads=(), head_dim=(), norm=RMS, rotary=RotaryRule("adjacent", end=True), scale=latent_scale, causal=True)
# What is known of the weights and not of their logits leaves κ empty, as an unknown input norm does.
NO_LOGITS = "input norm"
COMPRESSED = ("where a layer compresses, keys made of many tokens stand beside those of single ones",)


def renamed(weights: Latent, old: str, new: str) -> Latent:
    """Return the patterns with one part of their names replaced."""
    keys = ("q", "q_a", "q_b", "kv_a", "kv_b", "q_norm", "kv_norm")
    return replace(weights, **{key: getattr(weights, key).replace(old, new) for key in keys})


LATENTS = (
    DEEPSEEK,
    replace(DEEPSEEK, name="bailing_hybrid", model_types=("bailing_hybrid",),
        weights=renamed(MLA, "self_attn", "attention")),
    replace(DEEPSEEK, name="deepseek sparse", model_types=("deepseek_v32", "glm_moe_dsa"), remarks=SPARSE),
    replace(DEEPSEEK, name="glm5_next", model_types=("glm5_next_text",), rotary=None, remarks=SPARSE),
    replace(DEEPSEEK, name="kimi_linear", model_types=("kimi_linear",), rotary=None),
    # transformers saves Kimi K2.5 with the text model's layers called blocks, as those of its tower are
    replace(DEEPSEEK, name="kimi_k25", model_types=("deepseek_v3",), weights=renamed(MLA, "layers.", "blocks."),
        norm=InputNorm("blocks.{}.input_layernorm", "rms")),
    replace(DEEPSEEK, name="hy_v4", model_types=("hy_v4",), rotary=RotaryRule(end=True), remarks=SPARSE + SINK),
    replace(DEEPSEEK, name="minicpm3", model_types=("minicpm3",), rotary=RotaryRule(end=True)),
    replace(DEEPSEEK, name="longcat_flash", model_types=("longcat_flash",), norm=InputNorm(
        "layers.{}.input_layernorm.{}", "rms"),
        weights=replace(renamed(MLA, "self_attn", "self_attn.{}"), scaled=True)),
    replace(DEEPSEEK, name="dots3_note", model_types=("dots3_note_text",), weights=replace(MLA, scaled=True),
        remarks=SPARSE, unknown=("norm of the rotary part of keys", NO_LOGITS)),
    *(replace(DEEPSEEK, name="axk2", model_types=("axk2",), norm=None, remarks=SPARSE, head_dim=("qk_nope_head_dim",),
        weights=replace(MLA, joined=True, q_b=f"layers.{{}}.self_attn.{q_b}")) for q_b in ("q_gate_proj", "q_b_proj")),
    *(replace(DEEPSEEK, name="mistral_large4", model_types=("mistral_large4_text",), weights=weights, remarks=SPARSE,
        norm=norm, unknown=("factor of each head, which is learned and grows with the position", NO_LOGITS))
        for weights, norm in ((MLA, RMS), (MISTRAL, InputNorm("layers.{}.attention_norm", "rms")))),
    replace(DEEPSEEK, name="deepseek (original)", model_types=(), weights=SHORT, by_name=True,
        norm=InputNorm("layers.{}.attn_norm", "rms"), scale=deepseek_scale),
    # queries are a product, keys are not
    *(Layout("deepseek_v4", ("deepseek_v4",),
        Separate(f"{at}.{q}", f"{at}.{k}", q_a=f"{at}.{q_a}", q_norm=f"{at}.{norm}"),
        kv_heads=1, norm=InputNorm(f"layers.{{}}.{before}", "rms"), qk_norm=QKNormAt(None, f"{at}.{k_norm}"),
        rotary=RotaryRule("adjacent", end=True), causal=True, remarks=SINK + COMPRESSED)
        for at, q, q_a, norm, k, k_norm, before in (
        ("layers.{}.self_attn", "q_b_proj", "q_a_proj", "q_a_norm", "kv_proj", "kv_norm", "input_layernorm"),
        ("layers.{}.attn", "wq_b", "wq_a", "q_norm", "wkv", "norm", "attn_norm"))),
)
# fmt: on
