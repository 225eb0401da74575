"""Rows of the table: models of images, and both halves of models that join images and text."""

from dataclasses import replace

from qkspec.layouts.layout import KV_HEADS, RAW, Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
WINDOWED = ("a bias by relative position is added; attention stays within windows",)
VIT = Layout(
    "vit",
    ("vit", "deit", "vit_msn", "vit_mae", "ijepa", "dpt", "vivit", "audio-spectrogram-transformer", "yolos", "vilt",
     "flava_image_model", "flava_text_model", "flava_multimodal_model"),
    Separate("encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.attention.key"),
    full=True, kv_heads=(), head_dim=(), norm=InputNorm("encoder.layer.{}.layernorm_before"), by_name=True,
)
CLIP = Layout(
    "clip",
    ("clip_vision_model", "chinese_clip_vision_model", "siglip_vision_model", "siglip2_vision_model",
     "clipseg_vision_model", "metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model",
     "idefics3_vision", "smolvlm_vision", "granite_docling_vision", "git_vision_model", "altclip_vision_model",
     "idefics2_vision", "janus_vision_model", "kosmos_2_vision_model", "phi4_multimodal_vision"),
    Separate("encoder.layers.{}.self_attn.q_proj", "encoder.layers.{}.self_attn.k_proj"),
    full=True, kv_heads=(), head_dim=(), norm=InputNorm("encoder.layers.{}.layer_norm1"),
)
SWIN = Layout(
    "swin", ("swin", "donut-swin"),
    Separate("encoder.layers.{}.blocks.{}.attention.self.query", "encoder.layers.{}.blocks.{}.attention.self.key"),
    full=True, kv_heads=(), head_dim=(), heads=("num_heads",),
    norm=InputNorm("encoder.layers.{}.blocks.{}.layernorm_before"), remarks=WINDOWED,
)
RELATIVE = ("terms by relative position that depend on the query are added",)
ADJACENT = RotaryRule("adjacent")
PROBE = ("the query is a learned probe",)
# fmt: on


def like(row: Layout, name: str, *model_types: str, **facts: object) -> Layout:
    """Return a row with another name and whatever else differs."""
    return replace(row, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


# fmt: off
VISION = (
    VIT,
    like(VIT, "vit_mae", block="decoder.self", heads=("decoder_num_attention_heads",),
        norm=InputNorm("decoder.decoder_layers.{}.layernorm_before"),
        weights=Separate("decoder.decoder_layers.{}.attention.attention.query",
        "decoder.decoder_layers.{}.attention.attention.key")),
    like(VIT, "videomae"),
    like(VIT, "beit", "beit", "data2vec-vision", remarks=("a bias by relative position may be added",)),
    like(VIT, "dinov2", "dinov2", "dinov2_with_registers", norm=InputNorm("encoder.layer.{}.norm1")),
    like(VIT, "dinov2", "dinov2", "dinov2_with_registers", norm=InputNorm("encoder.layer.{}.norm1"),
        weights=Separate("encoder.layer.{}.attention.q_proj", "encoder.layer.{}.attention.k_proj")),
    like(VIT, "dinov3_vit", weights=Separate("layer.{}.attention.q_proj", "layer.{}.attention.k_proj"),
        norm=InputNorm("layer.{}.norm1"), rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)),
    like(VIT, "internvl", "internvl_vision", weights=Separate("encoder.layer.{}.attention.q_proj",
        "encoder.layer.{}.attention.k_proj"), norm=InputNorm("encoder.layer.{}.layernorm_before"),
        qk_norm=QKNormAt("encoder.layer.{}.attention.q_norm", "encoder.layer.{}.attention.k_norm", per_head=False)),
    like(VIT, "vit", "vit", "deit", "vit_msn", "vit_mae", "ijepa", "vivit", "videomae", "yolos", "beit",
        "audio-spectrogram-transformer", weights=Separate("layers.{}.attention.q_proj", "layers.{}.attention.k_proj"),
        norm=InputNorm("layers.{}.layernorm_before")),
    like(VIT, "pvt", full=False, heads=("num_attention_heads",), norm=InputNorm("encoder.block.{}.{}.layer_norm_1"),
        weights=Separate("encoder.block.{}.{}.attention.self.query", "encoder.block.{}.{}.attention.self.key"),
        remarks=("keys come from a coarser map",)),
    like(VIT, "segformer", full=False, heads=("num_attention_heads",),
        norm=InputNorm("encoder.block.{}.{}.layer_norm_1"), weights=Separate("encoder.block.{}.{}.attention.self.query",
        "encoder.block.{}.{}.attention.self.key"), remarks=("keys come from a coarser map",)),
    like(VIT, "timesformer", weights=Fused("encoder.layer.{}.attention.attention.qkv"),
        norm=InputNorm("encoder.layer.{}.layernorm_before")),
    like(VIT, "timesformer", weights=Fused("encoder.layer.{}.temporal_attention.attention.qkv"), block="temporal",
        norm=InputNorm("encoder.layer.{}.temporal_layernorm")),
    like(VIT, "segformer", full=False, heads=("num_attention_heads",),
        norm=InputNorm("stages.{}.blocks.{}.layernorm_before"), weights=Separate("stages.{}.blocks.{}.attention.q_proj",
        "stages.{}.blocks.{}.attention.k_proj"), remarks=("keys come from a coarser map",)),
    CLIP,
    like(CLIP, "clip", "siglip_text_model", "siglip2_text_model", norm=InputNorm("encoder.layers.{}.layer_norm1")),
    like(CLIP, "clip", "clip_text_model", "clipseg_text_model", "metaclip_2_text_model", "xclip_text_model",
        "owlvit_text_model", "owlv2_text_model", "groupvit_text_model", causal=True),
    # transformers 5 saves it under a name that only its text model should have
    like(CLIP, "altclip", "altclip_vision_model", weights=Separate("encoder.layer.{}.self_attn.q_proj",
        "encoder.layer.{}.self_attn.k_proj"), norm=InputNorm("encoder.layer.{}.layer_norm1")),
    like(CLIP, "siglip", "siglip_vision_model", "siglip2_vision_model", "phi4_multimodal_vision",
        weights=Fused("head.attention.in_proj_weight"),
        block="pool", biases=("head.attention.in_proj_bias",), norm=RAW, unknown=PROBE),
    like(CLIP, "aimv2", "aimv2_vision_model", "aimv2_text_model", weights=Separate("encoder.layers.{}.attention.q_proj",
        "encoder.layers.{}.attention.k_proj"), norm=InputNorm("encoder.layers.{}.rms_norm1", "rms")),
    like(CLIP, "blip", "blip_vision_model", "blip_2_vision_model", "instructblip_vision_model",
        "instructblipvideo_vision_model",
        weights=Fused("encoder.layers.{}.self_attn.qkv")),
    SWIN,
    like(SWIN, "swin", *SWIN.model_types, weights=Separate("encoder.layers.{}.blocks.{}.attention.q_proj",
        "encoder.layers.{}.blocks.{}.attention.k_proj")),
    like(SWIN, "swinv2", qk_norm=QKNormAt(None, None, "l2",
        temperature="encoder.layers.{}.blocks.{}.attention.self.logit_scale"), norm=RAW, remarks=(*WINDOWED,
        "cosine attention: only directions of q and k count")),
    like(CLIP, "sam", "sam_vision_model", "sam_hq_vision_model", weights=Fused("vision_encoder.layers.{}.attn.qkv"),
        norm=InputNorm("vision_encoder.layers.{}.layer_norm1"), remarks=RELATIVE),
    like(CLIP, "sam", "sam_vision_model", "sam_hq_vision_model", "got_ocr2_vision", "slanext_vision",
        "deepseek_ocr2_sam_vision_model",
        weights=Fused("layers.{}.attn.qkv"), norm=InputNorm("layers.{}.layer_norm1"), remarks=RELATIVE),
    like(VIT, "vitdet", weights=Fused("encoder.layer.{}.attention.qkv"), norm=InputNorm("encoder.layer.{}.norm1"),
        remarks=RELATIVE),
    like(VIT, "seggpt", weights=Fused("encoder.layers.{}.attention.qkv"), remarks=RELATIVE,
        norm=InputNorm("encoder.layers.{}.layernorm_before")),
    like(VIT, "hiera", weights=Fused("encoder.stages.{}.layers.{}.attn.qkv"), heads=("num_heads",), full=False,
        norm=InputNorm("encoder.stages.{}.layers.{}.layernorm_before"),
        remarks=("at the start of a stage queries are the largest of each patch of tokens",)),
    like(VIT, "mgp-str", weights=Fused("blocks.{}.attn.qkv"), norm=InputNorm("blocks.{}.norm1")),
    like(CLIP, "mllama", "mllama_vision_model", weights=Separate("transformer.layers.{}.self_attn.q_proj",
        "transformer.layers.{}.self_attn.k_proj"), norm=InputNorm("transformer.layers.{}.input_layernorm")),
    like(CLIP, "mllama", "mllama_vision_model", weights=Separate("global_transformer.layers.{}.self_attn.q_proj",
        "global_transformer.layers.{}.self_attn.k_proj"), block="global",
        norm=InputNorm("global_transformer.layers.{}.input_layernorm")),
    like(CLIP, "llama4", "llama4_vision_model", weights=Separate("model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj"), norm=InputNorm("model.layers.{}.input_layernorm"), rotary=ADJACENT,
        remarks=("patches rotate in two dimensions",)),
    like(CLIP, "qwen2_vl", "qwen2_vl", "qwen2_vl_vision", weights=Fused("blocks.{}.attn.qkv"), heads=("num_heads",),
        norm=InputNorm("blocks.{}.norm1"), rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)),
    like(CLIP, "qwen2_5_vl", "qwen2_5_vl", "qwen2_5_vl_vision", "glm4v_vision", "glm4v_moe_vision",
        weights=Fused("blocks.{}.attn.qkv"),
        heads=("num_heads",), norm=InputNorm("blocks.{}.norm1", "rms"), rotary=RotaryRule(),
        remarks=("patches rotate in two dimensions",)),
    like(CLIP, "glm_ocr", "glm_ocr_vision", weights=Fused("blocks.{}.attn.qkv"), heads=("num_heads",),
        norm=InputNorm("blocks.{}.norm1", "rms"), rotary=RotaryRule(), remarks=("patches rotate in two dimensions",),
        qk_norm=QKNormAt("blocks.{}.attn.q_norm", "blocks.{}.attn.k_norm")),
    like(CLIP, "exaone4_5", "exaone4_5_vision", weights=Fused("blocks.{}.attn.qkv"), heads=("num_heads",),
        kv_heads=KV_HEADS, norm=InputNorm("blocks.{}.norm1", "rms"), rotary=RotaryRule(),
        remarks=("patches rotate in two dimensions",)),
    like(CLIP, "qwen3_vl", "qwen3_vl", "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision",
        "qwen3_5_moe_vision", "qwen3_omni_moe_vision_encoder",
        weights=Fused("blocks.{}.attn.qkv"), heads=("num_heads",), norm=InputNorm("blocks.{}.norm1"),
        rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)),
    like(CLIP, "pixtral", weights=Separate("layers.{}.attention.q_proj", "layers.{}.attention.k_proj"),
        norm=InputNorm("layers.{}.attention_norm", "rms"), rotary=RotaryRule(),
        remarks=("patches rotate in two dimensions",)),
)
# fmt: on
