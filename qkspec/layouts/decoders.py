"""Rows of the table: language models that attend to what came before."""

from dataclasses import replace

from qkspec.layouts.facts import fixed, from_key, gpt2_scale, latent_scale, times_key
from qkspec.layouts.layout import RAW, Fused, InputNorm, Latent, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
HALVES, ADJACENT = RotaryRule("halves"), RotaryRule("adjacent")
WINDOWED = RotaryRule(only="sliding_attention")
RMS, LN = InputNorm("layers.{}.input_layernorm", "rms"), InputNorm("layers.{}.input_layernorm", "layer")
QK = Separate("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj")
H_NORM = QKNormAt("h.{}.attn.q_norm", "h.{}.attn.k_norm", "auto")
PER_HEAD = QKNormAt("layers.{}.self_attn.q_norm", "layers.{}.self_attn.k_norm")
PER_HEAD_LN = QKNormAt("layers.{}.self_attn.q_layernorm", "layers.{}.self_attn.k_layernorm", "layer")
GEMMA = replace(RMS, offset=1.0)
FULL = replace(PER_HEAD, per_head=False)
LLAMA = Layout(
    "llama",
    ("llama", "mistral", "mixtral", "ministral3", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl",
     "qwen2_5_vl_text", "arcee", "aria_text", "bitnet", "cwm", "seed_oss", "internlm3", "solar_open",
     "iquestcoder", "higgs_audio_v2", "csm", "emu3_text_model", "unlimited_ocr_text",
     "qwen2_5_omni_text"),
    QK, norm=RMS, qk_norm=PER_HEAD, rotary=HALVES, causal=True, by_name=True,
)
MLA = Latent(
    "layers.{}.self_attn.q_proj", "layers.{}.self_attn.q_a_proj", "layers.{}.self_attn.q_b_proj",
    "layers.{}.self_attn.kv_a_proj_with_mqa", "layers.{}.self_attn.kv_b_proj",
    "layers.{}.self_attn.q_a_layernorm", "layers.{}.self_attn.kv_a_layernorm",
)
DEEPSEEK = Layout("deepseek", ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "mistral4", "youtu", "axk1"), MLA,
    kv_heads=(), head_dim=(), norm=RMS, rotary=RotaryRule("adjacent", end=True), scale=latent_scale, causal=True)
OTHER = ("the keys come from another model",)
SINK = ("a learned sink takes part in every softmax",)
# fmt: on


def like_llama(name: str, *model_types: str, **facts: object) -> Layout:
    """Return Llama's row with another name and whatever else differs."""
    return replace(LLAMA, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


# fmt: off
DECODERS = (
    # the GPT-2 line
    Layout("gpt2", ("gpt2",), Fused("h.{}.attn.c_attn"), inputs_first=True, full=True, kv_heads=(), head_dim=(),
        scale=gpt2_scale, norm=InputNorm("h.{}.ln_1", "auto"), qk_norm=H_NORM, causal=True, by_name=True,
        when={"norm_position": (None, "pre")}),
    Layout("gpt2", ("gpt2",), Fused("h.{}.attn.c_attn"), inputs_first=True, full=True, kv_heads=(), head_dim=(),
        scale=gpt2_scale, norm=InputNorm("h.{}.ln_2", "auto", first=""), qk_norm=H_NORM, causal=True,
        when={"norm_position": "post"}),
    Layout("gpt2", ("gpt2",), Separate("h.{}.crossattention.q_attn", "h.{}.crossattention.c_attn", k_parts="kv"),
        "cross", inputs_first=True, full=True, kv_heads=(), head_dim=(), scale=gpt2_scale,
        norm=InputNorm("h.{}.ln_cross_attn"), k_norm=RAW, unknown=OTHER),
    Layout("imagegpt", ("imagegpt",), Fused("h.{}.attn.c_attn"), inputs_first=True, full=True, kv_heads=(), head_dim=(),
        scale=gpt2_scale, norm=InputNorm("h.{}.ln_1", "rms"), causal=True),
    Layout("openai-gpt", ("openai-gpt",), Fused("h.{}.attn.c_attn"), inputs_first=True, full=True, kv_heads=(),
        head_dim=(), norm=InputNorm("h.{}.ln_2", first=""), causal=True),
    Layout("gpt_neo", ("gpt_neo",), Separate("h.{}.attn.attention.q_proj", "h.{}.attn.attention.k_proj"), full=True,
        kv_heads=(), heads=("num_heads",), scale=fixed(1.0), norm=InputNorm("h.{}.ln_1"), causal=True,
        remarks=("every other layer attends to a window",)),
    Layout("exaone", ("exaone",), Separate("h.{}.attn.attention.q_proj", "h.{}.attn.attention.k_proj"),
        norm=InputNorm("h.{}.ln_1", "rms"), rotary=HALVES, causal=True),
    Layout("gptj", ("gptj",), Separate("h.{}.attn.q_proj", "h.{}.attn.k_proj"), full=True, kv_heads=(),
        norm=InputNorm("h.{}.ln_1"), rotary=ADJACENT, causal=True),
    Layout("codegen", ("codegen",), Fused("h.{}.attn.qkv_proj", units=4, parts="qvk"), full=True, kv_heads=(),
        norm=InputNorm("h.{}.ln_1"), rotary=ADJACENT, causal=True),
    Layout("gpt_bigcode", ("gpt_bigcode",), Fused("h.{}.attn.c_attn"), kv_heads=1, full=True,
        when={"multi_query": True}, scale=gpt2_scale, norm=InputNorm("h.{}.ln_1"), causal=True),
    Layout("gpt_bigcode", ("gpt_bigcode",), Fused("h.{}.attn.c_attn", units=None), kv_heads=(), full=True,
        when={"multi_query": False}, scale=gpt2_scale, norm=InputNorm("h.{}.ln_1"), causal=True),
    Layout("ctrl", ("ctrl",), Separate("h.{}.multi_head_attention.Wq", "h.{}.multi_head_attention.Wk"), full=True,
        kv_heads=(), norm=InputNorm("h.{}.layernorm1"), causal=True),
    # fused q, k, v
    Layout("gpt_neox", ("gpt_neox",), Fused("layers.{}.attention.query_key_value", units=None), kv_heads=(), full=True,
        norm=LN, rotary=RotaryRule(share=0.25), causal=True),
    Layout("gpt_neox_japanese", ("gpt_neox_japanese",), Fused("layers.{}.attention.query_key_value", units=None),
        kv_heads=(), full=True, norm=LN, rotary=HALVES, causal=True),
    Layout("persimmon", ("persimmon",), Fused("layers.{}.self_attn.query_key_value", units=None), kv_heads=(),
        full=True, norm=LN, qk_norm=PER_HEAD_LN, rotary=RotaryRule(share=0.5), causal=True),
    Layout("bloom", ("bloom",), Fused("h.{}.self_attention.query_key_value", units=None), kv_heads=(), full=True,
        norm=InputNorm("h.{}.input_layernorm"), causal=True, remarks=("ALiBi is added to the logits",)),
    Layout("falcon", ("falcon",), Fused("h.{}.self_attention.query_key_value",
        units=None), when={"new_decoder_architecture": True}, norm=InputNorm("h.{}.ln_attn"), rotary=HALVES,
        causal=True),
    Layout("falcon", ("falcon",), Fused("h.{}.self_attention.query_key_value",
        units=None), when={"new_decoder_architecture": False, "multi_query": False}, kv_heads=(), full=True,
        norm=InputNorm("h.{}.input_layernorm"), rotary=RotaryRule(flag=("alibi", False)), causal=True),
    Layout("falcon", ("falcon",), Fused("h.{}.self_attention.query_key_value"),
        when={"new_decoder_architecture": False, "multi_query": True}, kv_heads=1, full=True,
        norm=InputNorm("h.{}.input_layernorm"), rotary=RotaryRule(flag=("alibi", False)), causal=True),
    Layout("mpt", ("mpt",), Fused("blocks.{}.attn.Wqkv"), kv_heads=(), full=True, norm=InputNorm("blocks.{}.norm_1"),
        scale=from_key("attn_config.softmax_scale"), clamp="attn_config.clip_qkv", causal=True,
        remarks=("ALiBi is added to the logits",)),
    Layout("dbrx", ("dbrx",), Fused("blocks.{}.norm_attn_norm.attn.Wqkv"), kv_heads=("attn_config.kv_n_heads",),
        full=True, norm=InputNorm("blocks.{}.norm_attn_norm.norm_1"), clamp="attn_config.clip_qkv", rotary=HALVES,
        causal=True),
    Layout("phi3", ("phi3", "phi4_multimodal"), Fused("layers.{}.self_attn.qkv_proj"), norm=RMS, rotary=HALVES,
        causal=True),
    Layout("internlm2", ("internlm2",), Fused("layers.{}.attention.wqkv", units=None),
        norm=InputNorm("layers.{}.attention_norm", "rms"), rotary=HALVES, causal=True),
    Layout("baichuan", ("baichuan",), Fused("layers.{}.self_attn.W_pack"), kv_heads=(), full=True, norm=RMS,
        rotary=HALVES, causal=True),
    Layout("qwen", ("qwen",), Fused("h.{}.attn.c_attn"), kv_heads=(), head_dim=(), norm=InputNorm("h.{}.ln_1", "rms"),
        rotary=HALVES, causal=True, remarks=("log-n scaling of long contexts is not followed",)),
    Layout("chatglm", ("chatglm",), Fused("layers.{}.self_attention.query_key_value"),
        kv_heads=("multi_query_group_num",), norm=InputNorm("layers.{}.input_layernorm", "rms"),
        rotary=RotaryRule("adjacent", 0.5), causal=True, when={"multi_query_attention": True}),
    Layout("chatglm", ("chatglm",), Fused("layers.{}.attention.query_key_value", units=None), kv_heads=(), full=True,
        norm=InputNorm("layers.{}.input_layernorm"), when={"multi_query_attention": False}, causal=True,
        unknown=("two-dimensional rotary position",)),
    # names of Llama
    LLAMA,
    like_llama("qwen3", "qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "mellum", "dots1",
        "hy_v3", "qwen3_omni_moe_text", "qwen3_omni_moe_talker_code_predictor"),
    like_llama("windowed", "afmoe", "flint", "kolibri1", "exaone_moe", rotary=WINDOWED),
    like_llama("smollm3"),
    like_llama("gpt_oss", remarks=SINK),
    like_llama("openai_privacy_filter", remarks=SINK, causal=False),
    like_llama("mimo_v2_flash", kv_heads=None, rotary=RotaryRule(share=0.334),
        remarks=("a learned sink takes part in the softmax of layers with a window",)),
    like_llama("moshi", weights=Separate("layers.{}.self_attn.q_proj.linear",
        "layers.{}.self_attn.k_proj.linear")),
    like_llama("recurrent_gemma", norm=InputNorm("layers.{}.temporal_pre_norm", "rms", 1.0),
        weights=Separate("layers.{}.temporal_block.q_proj", "layers.{}.temporal_block.k_proj"),
        rotary=RotaryRule(share=0.5)),
    like_llama("glm4_moe", "glm4_moe", "glm4v_moe_text", rotary=RotaryRule(share=0.5)),
    like_llama("glm", "glm", "glm4", "glm4v_text", "glm_ocr_text", rotary=RotaryRule("adjacent", 0.5)),
    like_llama("helium", rotary=ADJACENT),
    like_llama("ernie4_5", "ernie4_5", "ernie4_5_moe", rotary=ADJACENT),
    like_llama("granite", "granite", "granitemoe", "granitemoeshared", "granite_swa", "granitemoe_swa", "hyperclovax",
        "granite4_vision_text", "granite_docling_text",
        scale=from_key("attention_multiplier")),
    like_llama("granite", "granitemoehybrid", scale=from_key("attention_multiplier"),
        rotary=RotaryRule(flag=("position_embedding_type", "rope"))),
    like_llama("gemma", norm=GEMMA),
    like_llama("gemma2", "gemma2", "vaultgemma", norm=GEMMA, scale=from_key("query_pre_attn_scalar", -0.5),
        softcap="attn_logit_softcapping"),
    like_llama("gemma3", "gemma3", "gemma3_text", norm=GEMMA, scale=from_key("query_pre_attn_scalar", -0.5),
        softcap="attn_logit_softcapping", qk_norm=replace(PER_HEAD, offset=1.0)),
    like_llama("apertus", norm=InputNorm("layers.{}.attention_layernorm", "rms")),
    like_llama("exaone4", "exaone4", norm=RAW, rotary=WINDOWED),
    like_llama("olmo", norm=InputNorm(None, "layer"), clamp="clip_qkv"),
    like_llama("olmo2", "olmo2", "olmo3", "flex_olmo", norm=RAW, qk_norm=FULL),
    like_llama("olmoe", qk_norm=FULL, clamp="clip_qkv"),
    like_llama("minimax_m2", qk_norm=FULL),
    like_llama("cohere", norm=LN, rotary=ADJACENT, qk_norm=replace(PER_HEAD, kind="layer")),
    like_llama("cohere2", "cohere2", "cohere2_moe", norm=LN, rotary=replace(ADJACENT, only="sliding_attention")),
    like_llama("phi", norm=LN, qk_norm=PER_HEAD_LN, rotary=RotaryRule(share=0.5)),
    like_llama("phimoe", "phimoe", "jais2", norm=LN),
    like_llama("starcoder2", norm=LN),
    like_llama("stablelm", norm=LN, rotary=RotaryRule(share=0.25),
        qk_norm=QKNormAt("layers.{}.self_attn.q_layernorm.norms.[head]", "layers.{}.self_attn.k_layernorm.norms.[head]",
        "layer")),
    like_llama("nemotron", norm=replace(LN, offset=1.0), rotary=RotaryRule(share=0.5)),
    like_llama("jamba", rotary=None),
    like_llama("bamba", rotary=RotaryRule(share=0.5)),
    like_llama("falcon_h1", scale=times_key("key_multiplier")),
    like_llama("minimax", rotary=HALVES),
    like_llama("nanochat", norm=InputNorm(None, "rms"), qk_norm=QKNormAt(None, None, flag="model_type"),
        remarks=("it rotates backwards: offset Δ here is -Δ there",)),
    like_llama("llama4", "llama4_text", rotary=ADJACENT, qk_norm=QKNormAt(None, None, flag="use_qk_norm"),
        remarks=("layers that do not rotate scale queries by their position",)),
    like_llama("lfm2", "lfm2", "lfm2_moe", norm=InputNorm("layers.{}.operator_norm", "rms"),
        qk_norm=replace(PER_HEAD_LN, kind="rms")),
    like_llama("qwen3_next", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", norm=GEMMA, qk_norm=replace(PER_HEAD,
        offset=1.0), rotary=RotaryRule(share=0.25), weights=replace(QK, q_parts="qg", q_units=None)),
    like_llama("ultrabert", causal=False),
    like_llama("hunyuan_v1", "hunyuan_v1_dense", "hunyuan_v1_moe",
        qk_norm=QKNormAt("layers.{}.self_attn.query_layernorm", "layers.{}.self_attn.key_layernorm")),
    like_llama("nemotron_h", weights=Separate("layers.{}.mixer.q_proj", "layers.{}.mixer.k_proj"),
        norm=InputNorm("layers.{}.norm", "rms"), rotary=None),
    like_llama("mllama", "mllama_text_model"),
    like_llama("mllama", "mllama_text_model", block="cross", weights=Separate("layers.{}.cross_attn.q_proj",
        "layers.{}.cross_attn.k_proj"), qk_norm=QKNormAt("layers.{}.cross_attn.q_norm", "layers.{}.cross_attn.k_norm"),
        rotary=None, causal=False, k_norm=RAW, unknown=OTHER),
    like_llama("diffllama", remarks=("each map is the difference of two softmaxes, of which this is one",)),
    like_llama("eurobert", causal=False),
    like_llama("biogpt", norm=InputNorm("layers.{}.self_attn_layer_norm"), rotary=None),
    like_llama("xglm", "xglm", "kosmos_2_text_model", "kosmos_2_5_text_model", "musicgen_decoder",
        "musicgen_melody_decoder", norm=InputNorm("layers.{}.self_attn_layer_norm"), rotary=None,
        heads=("attention_heads", "num_attention_heads")),
    like_llama("opt", weights=Separate("decoder.layers.{}.self_attn.q_proj", "decoder.layers.{}.self_attn.k_proj"),
        rotary=None, norm=InputNorm("decoder.layers.{}.self_attn_layer_norm"), when={"do_layer_norm_before": True},
        kv_heads=(), full=True),
    like_llama("opt", weights=Separate("decoder.layers.{}.self_attn.q_proj", "decoder.layers.{}.self_attn.k_proj"),
        rotary=None, norm=InputNorm("decoder.layers.{}.final_layer_norm", first=""),
        when={"do_layer_norm_before": False}, kv_heads=(), full=True),
    # multi-head latent attention
    DEEPSEEK,
    replace(DEEPSEEK, name="deepseek sparse", model_types=("deepseek_v32", "glm_moe_dsa"),
        remarks=("each token attends to those that a second, small attention chooses",)),
    Layout("minicpm3", ("minicpm3",), MLA, kv_heads=(), head_dim=(), norm=RMS, rotary=RotaryRule(end=True),
        causal=True),
)
# fmt: on
