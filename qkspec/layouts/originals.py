"""Rows of the table: what libraries other than transformers write. Names and shapes alone prove the layout.

Head counts are rarely in these files: where neither a config nor a shape tells, the user is asked (``--num-heads``).
"""

from dataclasses import replace

from qkspec.layouts.layout import RAW, Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
WINDOWED = ("a bias by relative position is added; attention stays within windows",)
TIMM = Layout(
    "timm", (), Fused("blocks.{}.attn.qkv"), full=True, kv_heads=(), by_name=True, norm=InputNorm("blocks.{}.norm1",
        "auto"),
    heads=("num_heads", "model_args.num_heads"), heads_at=("blocks.{}.attn.relative_position_bias_table", 1),
    qk_norm=QKNormAt("blocks.{}.attn.q_norm", "blocks.{}.attn.k_norm", "auto"), when={"norm_position": (None, "pre")},
)
PYRAMID = replace(
    TIMM, weights=Fused("layers.{}.blocks.{}.attn.qkv"), norm=InputNorm("layers.{}.blocks.{}.norm1"), qk_norm=None,
        when={},
    heads_at=("layers.{}.blocks.{}.attn.relative_position_bias_table", 1), remarks=WINDOWED,
    linear="layers.{}.blocks.{}.attn.dwc",  # FLatten Transformer: its first stages have no softmax
)
TORCH = Layout("torch.nn.MultiheadAttention", (), Fused("in_proj_weight"), biases=("in_proj_bias",), full=True,
               kv_heads=(), by_name=True)
CLIP = replace(
    TORCH, name="clip (original)", weights=Fused("transformer.resblocks.{}.attn.in_proj_weight"), causal=True,
    biases=("transformer.resblocks.{}.attn.in_proj_bias",), norm=InputNorm("transformer.resblocks.{}.ln_1"),
    block="text.self", head_width=64,
    remarks=("heads are 64 wide, as in every model of that code, unless --num-heads says how many there are",),
)
WHISPER = Layout(
    "whisper (original)", (), Separate("encoder.blocks.{}.attn.query", "encoder.blocks.{}.attn.key"), "encoder.self",
    heads=("n_audio_head",), kv_heads=(), full=True, by_name=True, norm=InputNorm("encoder.blocks.{}.attn_ln"),
)

MEGATRON_NORM = InputNorm("decoder.layers.{}.self_attention.linear_qkv.layer_norm", "auto",
    instead="decoder.layers.{}.input_layernorm")
MEGATRON_QK_NORM = QKNormAt("decoder.layers.{}.self_attention.q_layernorm",
    "decoder.layers.{}.self_attention.k_layernorm", "auto")
MEGATRON = Layout(
    "megatron-core", (), Fused("decoder.layers.{}.self_attention.linear_qkv", units=None), by_name=True, causal=True,
    norm=MEGATRON_NORM, qk_norm=MEGATRON_QK_NORM, unknown=("rotary position, of which the file says nothing",),
)
# Where the run's arguments lie beside the weights, they tell the rest; gains may be stored minus one.
MEGATRON_TOLD = tuple(
    replace(MEGATRON, model_types=("megatron-core",), by_name=False, unknown=(),
        norm=replace(MEGATRON_NORM, offset=float(minus_one)),
        qk_norm=replace(MEGATRON_QK_NORM, offset=float(minus_one)),
        rotary=RotaryRule("adjacent" if adjacent else "halves", flag=("position_embedding_type", "rope")),
        when={"position_embedding_type": ("rope", "learned_absolute", "none"), "apply_layernorm_1p": minus_one,
            "rotary_interleaved": adjacent})
    for minus_one in (False, True) for adjacent in (False, True)
)

UNSAID = ("rotary position and mask, of which the file says nothing",)
WIDE = ("heads are 64 wide, as that code has it, unless --num-heads says how many there are",)

ORIGINALS = (
    # GPT-BigCode, which names its tensors alike, orders its rows in another way
    Layout("nanogpt", ("nanogpt",), Fused("h.{}.attn.c_attn"), full=True, kv_heads=(), head_dim=(),
        norm=InputNorm("h.{}.ln_1"), causal=True, by_name=True, when={"multi_query": (None,)}),
    TIMM,
    replace(TIMM, norm=InputNorm("blocks.{}.norm2", "auto", first=""), when={"norm_position": "post"}),
    PYRAMID,
    replace(PYRAMID, heads_at=("layers.{}.blocks.{}.attn.logit_scale", 0), norm=RAW, qk_norm=QKNormAt(None, None, "l2",
        temperature="layers.{}.blocks.{}.attn.logit_scale")),
    TORCH,
    replace(TORCH, weights=Separate("q_proj_weight", "k_proj_weight"), block="cross"),
    CLIP,
    replace(CLIP, weights=Fused("visual.transformer.resblocks.{}.attn.in_proj_weight"), causal=False,
        block="vision.self", biases=("visual.transformer.resblocks.{}.attn.in_proj_bias",),
        norm=InputNorm("visual.transformer.resblocks.{}.ln_1")),
    WHISPER,
    replace(WHISPER, weights=Separate("decoder.blocks.{}.attn.query", "decoder.blocks.{}.attn.key"),
        block="decoder.self", heads=("n_text_head",), norm=InputNorm("decoder.blocks.{}.attn_ln"), causal=True),
    replace(WHISPER, weights=Separate("decoder.blocks.{}.cross_attn.query", "decoder.blocks.{}.cross_attn.key"),
        full=False, block="decoder.cross", heads=("n_text_head",), norm=InputNorm("decoder.blocks.{}.cross_attn_ln"),
        k_norm=InputNorm("encoder.ln_post", last=True)),
    Layout("llama (original)", (), Separate("layers.{}.attention.wq", "layers.{}.attention.wk"), by_name=True,
        causal=True, norm=InputNorm("layers.{}.attention_norm", "rms"), rotary=RotaryRule("adjacent")),
    MEGATRON,
    *MEGATRON_TOLD,
    # transformer.blocks.0.att_proj: OLMo 1 without gains, with gains, OLMo 2 with norms behind its blocks
    *(Layout("olmo (original)", ("hf_olmo",), Fused("blocks.{}.att_proj"), by_name=True, causal=True, full=True,
        when=when, norm=norm, qk_norm=QKNormAt("blocks.{}.q_norm", "blocks.{}.k_norm", "auto", per_head=False),
        rotary=RotaryRule(flag=("rope", True)), clamp="clip_qkv")
        for when, norm in (
        ({"norm_after": False, "layer_norm_with_affine": (False,)}, InputNorm(None, "layer")),
        ({"norm_after": False, "layer_norm_with_affine": (True, None)}, InputNorm("blocks.{}.attn_norm", "auto")),
        ({"norm_after": True}, RAW))),
    Layout("gemma (original)", (), Fused("layers.{}.self_attn.qkv_proj"), by_name=True, causal=True,
        proof="embedder.weight", norm=InputNorm("layers.{}.input_layernorm", "rms", 1.0), rotary=RotaryRule(),
        qk_norm=QKNormAt("layers.{}.self_attn.query_norm", "layers.{}.self_attn.key_norm", offset=1.0),
        unknown=("soft cap and scale, where they are Gemma 2's or 3's",)),
    Layout("gpt-neox (original)", (), Fused("sequential.{}.attention.query_key_value", units=None), kv_heads=(),
        full=True, by_name=True, causal=True, norm=InputNorm("sequential.{}.input_layernorm", "auto"), unknown=UNSAID),
    *(Layout("litgpt", (), Fused(f"h.{{}}.attn.{qkv}", units=units), by_name=True, proof="h.{}.norm_1.weight",
        causal=True, norm=InputNorm("h.{}.norm_1", "auto"), unknown=UNSAID,
        qk_norm=QKNormAt("h.{}.attn.norm_q", "h.{}.attn.norm_k")) for qkv, units in (("qkv", 1), ("attn", None))),
    Layout("torchtune", (), Separate("layers.{}.attn.q_proj", "layers.{}.attn.k_proj"), by_name=True, causal=True,
        proof="layers.{}.sa_norm.scale", norm=InputNorm("layers.{}.sa_norm", "rms"), unknown=UNSAID,
        qk_norm=QKNormAt("layers.{}.attn.q_norm", "layers.{}.attn.k_norm")),
    *(Layout("x-transformers", (), Separate("layers.{}.1.to_q", "layers.{}.1.to_k"), by_name=True, head_width=64,
        proof=f"layers.{{}}.0.0.{gain}", remarks=WIDE, unknown=UNSAID)
        for gain in ("gamma", "g")),  # which is the gain in some versions, and the gain - 1 in others
    Layout("transformer_lens", (), Separate("blocks.{}.attn.W_Q", "blocks.{}.attn.W_K", heads_first=True), by_name=True,
        causal=True, biases=("blocks.{}.attn.b_Q", "blocks.{}.attn.b_K"), norm=InputNorm("blocks.{}.ln1", "auto")),
)
# fmt: on
