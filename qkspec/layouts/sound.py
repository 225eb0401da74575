"""Rows of the table: models of speech, music and series in time, alone or beside a text model."""

import math
from dataclasses import replace

from qkspec.layouts.encoders import BERT, POST, like_bert, pair
from qkspec.layouts.facts import disentangled_scale, fixed
from qkspec.layouts.layout import KV_HEADS, RAW, Config, Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

SIDED = ("{side}_attention_heads", "{side}_num_attention_heads", "num_attention_heads", "num_heads")
RELATIVE = ("terms by relative position that depend on the query are added, with biases of their own",)
OTHER = ("the keys come from another model",)
MOON = RotaryRule("adjacent", share=0.9)
PER_HEAD = QKNormAt("layers.{}.self_attn.q_norm", "layers.{}.self_attn.k_norm")
PLAIN = replace(BERT, full=False, by_name=False, kv_heads=KV_HEADS)


def tower(
    name: str, types: tuple[str, ...], at: str, norm: InputNorm | str | None, block: str = "self", **facts: object
) -> Layout:
    """Return a row of q_proj and k_proj side by side.

    Args:
        name: as in Layout.
        types: as in Layout.
        at: path of the attention module.
        norm: what feeds it; a path alone is that of a LayerNorm.
        block: as in Layout.
        facts: what else differs.
    """
    weights, fed = Separate(f"{at}.q_proj", f"{at}.k_proj"), InputNorm(norm) if isinstance(norm, str) else norm
    row = replace(PLAIN, name=name, model_types=types, weights=weights, block=block, norm=fed)
    return replace(row, **facts)  # type: ignore[arg-type]


def gemma_audio(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
    """Return the scale of Gemma 4's audio encoder: keys are multiplied by softplus(1) / softplus(0)."""
    return float(d_q**-0.5) * math.log1p(math.e) / math.log(2.0)


# A row is read across, not down.
# fmt: off
SOUND = (
    # towers
    tower("qwen_audio", ("qwen2_5_omni_audio_encoder", "qwen3_asr_encoder", "qwen3_omni_moe_audio_encoder"),
        "layers.{}.self_attn", "layers.{}.self_attn_layer_norm", heads=SIDED),
    tower("glmasr", ("glmasr_encoder",), "layers.{}.self_attn", "layers.{}.input_layernorm",
        rotary=RotaryRule(share=0.5)),
    tower("voxtral_realtime", ("voxtral_realtime_encoder",), "layers.{}.self_attn", InputNorm(
        "layers.{}.self_attn_layer_norm", "rms"), rotary=RotaryRule(), causal=True),
    tower("parakeet", ("parakeet_encoder", "nemotron_asr_streaming_encoder"),
        "layers.{}.self_attn", "layers.{}.norm_self_att", remarks=RELATIVE),
    tower("lasr", ("lasr_encoder",), "layers.{}.self_attn", "layers.{}.norm_self_att", rotary=RotaryRule()),
    tower("moonshine", ("moonshine_streaming_encoder",), "layers.{}.self_attn", InputNorm("layers.{}.input_layernorm",
        offset=1.0), remarks=("attention stays within windows",)),
    tower("pe_audio", ("pe_audio_encoder",), "layers.{}.self_attn",
        InputNorm("layers.{}.input_layernorm", "rms"), qk_norm=PER_HEAD, rotary=RotaryRule()),
    tower("phi4_audio", ("phi4_multimodal_audio",), "encoders.{}.self_attn", "encoders.{}.layer_norm_att",
        remarks=("a bias by relative position is added",)),
    replace(PLAIN, name="granite_speech", model_types=("granite_speech_encoder", "granite_speech_plus_encoder"),
        weights=Separate("layers.{}.attn.to_q", "layers.{}.attn.to_kv", k_parts="kv"),
        norm=InputNorm("layers.{}.attn.pre_norm"), remarks=RELATIVE),
    tower("gemma_audio", ("gemma3n_audio",), "conformer.{}.attention.attn", InputNorm(
        "conformer.{}.attention.pre_attn_norm", "rms"), heads=("conf_num_attention_heads",),
        gain="conformer.{}.attention.attn.per_dim_scale",
        softcap="conf_attention_logit_cap", remarks=RELATIVE),
    replace(PLAIN, name="gemma_audio", model_types=("gemma4_audio",), weights=Separate(
        "layers.{}.self_attn.q_proj.linear", "layers.{}.self_attn.k_proj.linear"), norm=InputNorm(
        "layers.{}.norm_pre_attn", "rms"), gain="layers.{}.self_attn.per_dim_scale", scale=gemma_audio,
        softcap="attention_logit_cap", remarks=RELATIVE),
    like_bert("sew-d", weights=Separate("encoder.layer.{}.attention.self.query_proj",
        "encoder.layer.{}.attention.self.key_proj"), norm=replace(POST, first=""), scale=disentangled_scale,
        remarks=("content-position terms are added",)),
    tower("vits", ("vits",), "encoder.layers.{}.attention",
        InputNorm("encoder.layers.{}.final_layer_norm", first=""), remarks=RELATIVE),
    # generation
    *(replace(PLAIN, name="bark", model_types=(kind,), weights=Fused("layers.{}.attn.att_proj"), causal=causal,
        heads=("num_heads",), norm=InputNorm("layers.{}.layernorm_1"), context=("block_size",))
        for kind, causal in (("semantic", True), ("coarse_acoustics", True), ("fine_acoustics", False))),
    tower("clvp", ("clvp_encoder",), "layers.{}.self_attn", InputNorm("layers.{}.input_rmsnorm", "rms"),
        rotary=RotaryRule(share=0.5)),
    tower("clvp", ("clvp_decoder",), "layers.{}.attn", "layers.{}.input_layernorm", causal=True),
    tower("musicgen", ("musicgen_decoder",), "layers.{}.encoder_attn", "layers.{}.encoder_attn_layer_norm",
        block="cross", k_norm=RAW, unknown=OTHER),
    tower("canary", ("canary_decoder",), "layers.{}.self_attn",
        "layers.{}.input_layernorm", causal=True),
    tower("canary", ("canary_decoder",), "layers.{}.encoder_attn",
        "layers.{}.post_attention_layernorm", block="cross", k_norm=RAW, unknown=OTHER),
    *(tower("dia", (f"dia_{side}",), "layers.{}.self_attention", InputNorm("layers.{}.pre_sa_norm", "rms"),
        scale=fixed(1.0),
        rotary=RotaryRule(), causal=side == "decoder") for side in ("encoder", "decoder")),
    tower("dia", ("dia_decoder",), "layers.{}.cross_attention", InputNorm("layers.{}.pre_ca_norm", "rms"),
        block="cross",
        scale=fixed(1.0), heads=("cross_num_attention_heads",), kv_heads=("cross_num_key_value_heads",),
        head_dim=("cross_head_dim",), k_norm=RAW, unknown=OTHER),
    tower("mimi", ("mimi", "mimi_encoder", "mimi_decoder"), "layers.{}.self_attn",
        "layers.{}.input_layernorm", rotary=RotaryRule(), causal=True),
    replace(PLAIN, name="kyutai", model_types=("kyutai_speech_to_text",), weights=Separate(
        "layers.{}.self_attn.q_proj.linear", "layers.{}.self_attn.k_proj.linear"),
        norm=InputNorm("layers.{}.input_layernorm", "rms"), rotary=RotaryRule(), causal=True),
    # encoder and decoder
    *(tower("moonshine", types, f"{side}.layers.{{}}.{at}", f"{side}.layers.{{}}.{norm}", block=block, rotary=rotary,
        heads=(f"{side}_num_attention_heads", "num_attention_heads"), k_norm=k_norm, causal=block == "decoder.self",
        kv_heads=(f"{side}_num_key_value_heads", "num_key_value_heads")) for types, side, at, norm, block, rotary,
        k_norm
        in ((("moonshine",), "encoder", "self_attn", "input_layernorm", "encoder.self", MOON, None),
        (("moonshine",), "decoder", "self_attn", "input_layernorm", "decoder.self", MOON, None),
        (("moonshine",), "decoder", "encoder_attn", "post_attention_layernorm", "decoder.cross",
        None, InputNorm("encoder.layer_norm", last=True)))),
    replace(PLAIN, name="speecht5", model_types=("speecht5",), kv_heads=(), block="encoder.self", heads=SIDED,
        weights=Separate("encoder.wrapped_encoder.layers.{}.attention.q_proj",
        "encoder.wrapped_encoder.layers.{}.attention.k_proj"), remarks=RELATIVE, norm=InputNorm(
        "encoder.wrapped_encoder.layers.{}.final_layer_norm", first="encoder.wrapped_encoder.layer_norm")),
    *(replace(PLAIN, name="speecht5", model_types=("speecht5",), kv_heads=(), block=block, heads=SIDED,
        weights=Separate(f"decoder.wrapped_decoder.layers.{{}}.{at}.q_proj",
        f"decoder.wrapped_decoder.layers.{{}}.{at}.k_proj"), norm=norm, k_norm=k_norm, causal=block == "decoder.self")
        for at, block, norm, k_norm in (("self_attn", "decoder.self",
        InputNorm("decoder.wrapped_decoder.layers.{}.final_layer_norm", first=""), None),
        ("encoder_attn", "decoder.cross", InputNorm("decoder.wrapped_decoder.layers.{}.self_attn_layer_norm"),
        InputNorm("encoder.wrapped_encoder.layers.{}.final_layer_norm", last=True)))),
    like_bert("seamless_m4t", "seamless_m4t", "seamless_m4t_v2", block="speech.self", full=False,
        heads=("speech_encoder_attention_heads",), norm=InputNorm(
        "speech_encoder.encoder.layers.{}.self_attn_layer_norm"),
        weights=Separate("speech_encoder.encoder.layers.{}.self_attn.linear_q",
        "speech_encoder.encoder.layers.{}.self_attn.linear_k"), remarks=RELATIVE),
    like_bert("seamless_m4t", "seamless_m4t", "seamless_m4t_v2", block="adapter.self",
        heads=("speech_encoder_attention_heads",), norm=RAW, weights=Separate(
        "speech_encoder.adapter.layers.{}.self_attn.linear_q", "speech_encoder.adapter.layers.{}.self_attn.linear_k"),
        remarks=("a convolution stands between the norm and the projections",)),
    *(like_bert("seamless_m4t", model_type, block=f"{side}.{kind}", full=kind == "self",
        weights=Separate(f"{part}.layers.{{}}.{at}.q_proj", f"{part}.layers.{{}}.{at}.k_proj"),
        norm=InputNorm(f"{part}.layers.{{}}.{at}_layer_norm"), k_norm=k_norm, heads=(f"{t2u}{side}_attention_heads",),
        causal=(side, kind) == ("decoder", "self") and (t2u, model_type) != ("t2u_", "seamless_m4t_v2"),
        remarks=("keys that are made of speech stand behind another norm",) if kind == "cross" and not t2u else ())
        for model_type in ("seamless_m4t", "seamless_m4t_v2")
        for part, side, t2u in (("text_encoder", "encoder", ""), ("text_decoder", "decoder", ""),
        ("t2u_model.model.encoder", "encoder", "t2u_"), ("t2u_model.model.decoder", "decoder", "t2u_"))
        for at, kind, k_norm in (("self_attn", "self", None), ("cross_attention", "cross",
        InputNorm(f"{part.replace('decoder', 'encoder')}.layer_norm", last=True)))[: 1 + (side == "decoder")]),
    # series in time
    *pair("time_series_transformer", ("time_series_transformer",), post=True),
    tower("patchtst", ("patchtst",), "encoder.layers.{}.self_attn", None),
    tower("timesfm", ("timesfm",), "layers.{}.self_attn", InputNorm("layers.{}.input_layernorm", "rms"), causal=True,
        gain="layers.{}.self_attn.scaling"),
    tower("timesfm", ("timesfm2_5",), "layers.{}.self_attn", InputNorm("layers.{}.input_layernorm", "rms"), causal=True,
        gain="layers.{}.self_attn.scaling", qk_norm=PER_HEAD, rotary=RotaryRule()),
)
# fmt: on
