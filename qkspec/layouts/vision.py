"""Rows of the table: models of images, and both halves of models that join images and text."""

from dataclasses import replace

from qkspec.layouts.facts import fixed
from qkspec.layouts.heads import look_up, stage_of
from qkspec.layouts.layout import KV_HEADS, RAW, Config, Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
WINDOWED = ("a bias by relative position is added; attention stays within windows",)
VIT = Layout(
    "vit",
    ("vit", "deit", "vit_msn", "vit_mae", "ijepa", "dpt", "vivit", "audio-spectrogram-transformer", "yolos", "vilt",
     "flava_image_model", "flava_text_model", "flava_multimodal_model", "vitpose_backbone"),
    Separate("encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.attention.key"),
    full=True, kv_heads=(), head_dim=(), norm=InputNorm("encoder.layer.{}.layernorm_before"), by_name=True,
)
CLIP = Layout(
    "clip",
    ("clip_vision_model", "chinese_clip_vision_model", "siglip_vision_model", "siglip2_vision_model",
     "clipseg_vision_model", "metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model",
     "idefics3_vision", "smolvlm_vision", "granite_docling_vision", "git_vision_model", "altclip_vision_model",
     "idefics2_vision", "janus_vision_model", "kosmos_2_vision_model", "phi4_multimodal_vision", "idefics_vision",
     "cosmos3_edge_vision", "unlimited_ocr_vision_encoder", "minicpm_ocr_vision", "minicpmv4_6_vision",
     "minicpmv4_7_vision", "xclip_vision_model"),
    Separate("encoder.layers.{}.self_attn.q_proj", "encoder.layers.{}.self_attn.k_proj"),
    full=True, kv_heads=(), head_dim=(), norm=InputNorm("encoder.layers.{}.layer_norm1"),
)
SWIN = Layout(
    "swin", ("swin", "donut-swin"),
    Separate("encoder.layers.{}.blocks.{}.attention.self.query", "encoder.layers.{}.blocks.{}.attention.self.key"),
    full=True, kv_heads=(), head_dim=(), heads=("num_heads",),
    norm=InputNorm("encoder.layers.{}.blocks.{}.layernorm_before"), remarks=WINDOWED,
)
CONVOLVED = ("every token but that of the class passes a convolution and a batch norm before each projection",)
LEARNED = ("a bias by relative position is added; batch norms are folded into q and k",)
RELATIVE = ("terms by relative position that depend on the query are added",)
ADJACENT = RotaryRule("adjacent")
PROBE = ("the query is a learned probe",)
# fmt: on


def like(row: Layout, name: str, *model_types: str, **facts: object) -> Layout:
    """Return a row with another name and whatever else differs."""
    return replace(row, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


def whole_width(config: Config, d_q: int, layer: int) -> float:
    """Return CvT's scale: one over the root of the width of all heads together."""
    heads = look_up(config, ("num_heads",))
    stage = stage_of(layer, look_up(config, ("depth",)))
    return float((d_q * heads[stage]) ** -0.5) if isinstance(heads, list) and stage < len(heads) else float(d_q**-0.5)


def linked(side: str) -> InputNorm:
    """Return the norm in front of a layer of BridgeTower's cross-modal encoder: that of the link before it."""
    return InputNorm(f"cross_modal_{side}_link_tower.{{}}.LayerNorm", first=f"cross_modal_{side}_layernorm")


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
    like(VIT, "dinov2", "radio", "rf_detr_dinov2", "tipsv2_vision_model", norm=InputNorm("layer.{}.norm1"),
        weights=Separate("layer.{}.attention.q_proj", "layer.{}.attention.k_proj")),
    like(VIT, "dinov2", "rf_detr_dinov2", norm=InputNorm("encoder.layer.{}.norm1")),
    like(VIT, "lw_detr", "lw_detr_vit", remarks=("attention stays within windows in most layers",)),
    like(VIT, "lw_detr", "lw_detr_vit", remarks=("attention stays within windows in most layers",), weights=Separate(
        "layer.{}.attention.q_proj", "layer.{}.attention.k_proj"), norm=InputNorm("layer.{}.layernorm_before")),
    *(like(VIT, "sapiens2", weights=Separate(f"{at}.{q}", f"{at}.{k}"), norm=InputNorm(norm, "rms"), full=False,
        kv_heads=("num_key_value_heads_per_layer",), qk_norm=QKNormAt(f"{at}.q_norm", f"{at}.k_norm"),
        rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)) for at, q, k, norm in (
        ("layer.{}.attention", "q_proj", "k_proj", "layer.{}.norm1"), ("blocks.{}.attn", "wq", "wk", "blocks.{}.ln1"))),
    like(VIT, "radio", "radio", "tipsv2_vision_model", weights=Fused("blocks.{}.attn.qkv"),
        norm=InputNorm("blocks.{}.norm1")),
    like(VIT, "tipsv2", "tipsv2_text_model", weights=Fused("transformer.resblocks.{}.attn.in_proj_weight"),
        biases=("transformer.resblocks.{}.attn.in_proj_bias",), norm=InputNorm("transformer.resblocks.{}.ln_1")),
    like(VIT, "pixio", norm=InputNorm("encoder.layer.{}.norm1")),
    like(VIT, "eomt", "eomt", "videomt", weights=Separate("layers.{}.attention.q_proj", "layers.{}.attention.k_proj"),
        norm=InputNorm("layers.{}.norm1")),
    like(VIT, "eomt_dinov3", weights=Separate("layers.{}.attention.q_proj", "layers.{}.attention.k_proj"),
        norm=InputNorm("layers.{}.norm1"), rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)),
    like(VIT, "dinov3_vit", weights=Separate("layer.{}.attention.q_proj", "layer.{}.attention.k_proj"),
        norm=InputNorm("layer.{}.norm1"), rotary=RotaryRule(), remarks=("patches rotate in two dimensions",)),
    like(VIT, "internvl", "internvl_vision", weights=Separate("encoder.layer.{}.attention.q_proj",
        "encoder.layer.{}.attention.k_proj"), norm=InputNorm("encoder.layer.{}.layernorm_before"),
        qk_norm=QKNormAt("encoder.layer.{}.attention.q_norm", "encoder.layer.{}.attention.k_norm", per_head=False)),
    like(VIT, "vit", "vit", "deit", "vit_msn", "vit_mae", "ijepa", "vivit", "videomae", "yolos", "beit",
        "audio-spectrogram-transformer", "pixio", "qianfan_ocr_vision", weights=Separate("layers.{}.attention.q_proj",
        "layers.{}.attention.k_proj"),
        norm=InputNorm("layers.{}.layernorm_before")),
    like(VIT, "pvt", full=False, heads=("num_attention_heads",), norm=InputNorm("encoder.block.{}.{}.layer_norm_1"),
        weights=Separate("encoder.block.{}.{}.attention.self.query", "encoder.block.{}.{}.attention.self.key"),
        remarks=("keys come from a coarser map",)),
    like(VIT, "segformer", "segformer", "glpn", full=False, heads=("num_attention_heads",),
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
    like(CLIP, "clip", "siglip_text_model", "siglip2_text_model", "tipsv2_text_model", norm=InputNorm(
        "encoder.layers.{}.layer_norm1")),
    like(CLIP, "clip", "clip_text_model", "clipseg_text_model", "metaclip_2_text_model", "xclip_text_model",
        "owlvit_text_model", "owlv2_text_model", "groupvit_text_model", causal=True),
    # transformers 5 saves it under a name that only its text model should have
    like(CLIP, "altclip", "altclip_vision_model", weights=Separate("encoder.layer.{}.self_attn.q_proj",
        "encoder.layer.{}.self_attn.k_proj"), norm=InputNorm("encoder.layer.{}.layer_norm1")),
    like(CLIP, "siglip", "siglip_vision_model", "siglip2_vision_model", "phi4_multimodal_vision",
        weights=Fused("head.attention.in_proj_weight"),
        block="pool", biases=("head.attention.in_proj_bias",), norm=RAW, unknown=PROBE),
    like(CLIP, "sam", "unlimited_ocr_sam_vision_model", "pp_formulanet_vision", "pp_chart2table_vision",
        weights=Fused("blocks.{}.attn.qkv"), norm=InputNorm("blocks.{}.norm1"), remarks=RELATIVE),
    like(CLIP, "clip", "unlimited_ocr_vision_encoder", weights=Fused("transformer.layers.{}.self_attn.qkv_proj"),
        norm=InputNorm("transformer.layers.{}.layer_norm1")),
    # the blocks of image tokenizers: one head over all channels, behind a norm of groups of channels
    *(like(VIT, "vqgan", "chameleon_vqgan", "janus_vqgan", block=block, heads=1, norm=None, weights=Separate(
        f"{at}.q", f"{at}.k")) for at, block in (("encoder.mid.attn_1", "encoder.self"), ("decoder.mid.attn_1",
        "decoder.self"), ("encoder.down.{}.attn.{}", "encoder.down"), ("decoder.up.{}.attn.{}", "decoder.up"))),
    like(CLIP, "aimv2", "aimv2_vision_model", "aimv2_text_model", "ovis2_vision", weights=Separate(
        "encoder.layers.{}.attention.q_proj",
        "encoder.layers.{}.attention.k_proj"), norm=InputNorm("encoder.layers.{}.rms_norm1", "rms")),
    like(CLIP, "blip", "blip_vision_model", "blip_2_vision_model", "instructblip_vision_model",
        "instructblipvideo_vision_model",
        weights=Fused("encoder.layers.{}.self_attn.qkv")),
    SWIN,
    like(SWIN, "swin", "clap_audio_model", "maskformer-swin", norm=InputNorm("layers.{}.blocks.{}.layernorm_before"),
        heads=("num_heads", "num_attention_heads"), weights=Separate("layers.{}.blocks.{}.attention.self.query",
        "layers.{}.blocks.{}.attention.self.key")),
    like(VIT, "pvt_v2", full=False, heads=("num_attention_heads",), weights=Separate(
        "encoder.layers.{}.blocks.{}.attention.query", "encoder.layers.{}.blocks.{}.attention.key"),
        norm=InputNorm("encoder.layers.{}.blocks.{}.layer_norm_1"), remarks=("keys come from a coarser map",)),
    like(VIT, "mobilevit", weights=Separate("layer.{}.transformer.layer.{}.attention.attention.query",
        "layer.{}.transformer.layer.{}.attention.attention.key"),
        norm=InputNorm("layer.{}.transformer.layer.{}.layernorm_before")),
    like(VIT, "davit", "florence_vision", full=False, heads=("num_heads",), remarks=("attention stays within windows",),
        weights=Fused("blocks.{}.{}.spatial_block.window_attn.qkv"), norm=InputNorm(
        "blocks.{}.{}.spatial_block.norm1")),
    like(VIT, "cvt", full=False, heads=("num_heads",), scale=whole_width, remarks=CONVOLVED, norm=InputNorm(
        "encoder.stages.{}.layers.{}.layernorm_before"), weights=Separate(
        "encoder.stages.{}.layers.{}.attention.attention.projection_query",
        "encoder.stages.{}.layers.{}.attention.attention.projection_key")),
    like(VIT, "levit", full=False, heads=("num_attention_heads",), head_dim=("key_dim",), norm=RAW, remarks=LEARNED,
        weights=Fused("encoder.stages.{}.layers.{}.module.queries_keys_values.linear", units=None, v_width=2),
        batch_norm=("encoder.stages.{}.layers.{}.module.queries_keys_values.batch_norm",)),
    like(VIT, "levit", block="shrink", full=False, heads=(), head_width="key_dim", norm=RAW, remarks=LEARNED,
        weights=Separate("encoder.stages.{}.layers.{}.queries.linear", "encoder.stages.{}.layers.{}.keys_values.linear",
        k_parts="kv", k_units=None, v_width=4), batch_norm=("encoder.stages.{}.layers.{}.queries.batch_norm",
        "encoder.stages.{}.layers.{}.keys_values.batch_norm")),
    like(VIT, "vjepa2", weights=Separate("encoder.layer.{}.attention.query", "encoder.layer.{}.attention.key"),
        norm=InputNorm("encoder.layer.{}.norm1"), rotary=ADJACENT, remarks=("patches rotate in three dimensions",)),
    like(VIT, "vjepa2", weights=Separate("predictor.layer.{}.attention.query", "predictor.layer.{}.attention.key"),
        block="predictor.self", heads=("pred_num_attention_heads",), norm=InputNorm("predictor.layer.{}.norm1"),
        rotary=ADJACENT, remarks=("patches rotate in three dimensions",)),
    like(VIT, "pix2struct", "pix2struct_vision_model", full=False, scale=fixed(1.0), weights=Separate(
        "layer.{}.attention.query", "layer.{}.attention.key"), norm=InputNorm("layer.{}.pre_attention_layer_norm",
        "rms")),
    like(VIT, "pix2struct", "kosmos_2_5_vision_model", full=False, weights=Separate(
        "layer.{}.attention.query", "layer.{}.attention.key"), norm=InputNorm("layer.{}.pre_attention_layer_norm",
        "rms")),
    *(like(VIT, "pix2struct", "pix2struct_text_model", full=False, scale=fixed(1.0), causal=block == "self",
        block=block, remarks=("a bias by relative position is added",) if block == "self" else (), k_norm=k_norm,
        weights=Separate(f"layer.{{}}.{at}.attention.query", f"layer.{{}}.{at}.attention.key"),
        norm=InputNorm(f"layer.{{}}.{at}.layer_norm", "rms")) for at, block, k_norm in (("self_attention", "self",
        None),
        ("encoder_decoder_attention", "cross", RAW))),
    like(VIT, "tvp", weights=Separate("encoder.layer.{}.attention.query", "encoder.layer.{}.attention.key"),
        norm=InputNorm("encoder.layer.{}.output.layer_norm", first="")),
    *(like(VIT, "qformer", "blip_2_qformer", "instructblip_qformer", "instructblipvideo_qformer", block=block,
        norm=norm,
        full=False, k_norm=k_norm, remarks=remarks, weights=Separate(f"encoder.layer.{{}}.{at}.attention.query",
        f"encoder.layer.{{}}.{at}.attention.key")) for at, block, norm, k_norm, remarks in (
        ("attention", "self", InputNorm("encoder.layer.{}.output_query.LayerNorm", first=""), None,
        ("text beside the queries comes through norms of its own",)),
        ("crossattention", "cross", InputNorm("encoder.layer.{}.attention.output.LayerNorm"), RAW, ()))),
    *(like(VIT, "groupvit", "groupvit_vision_model", block=block, weights=Separate(f"{at}.q_proj", f"{at}.k_proj"),
        norm=norm, k_norm=k_norm, remarks=remarks, **more) for at, block, norm, k_norm, remarks, more in (
        ("encoder.stages.{}.layers.{}.self_attn", "self", InputNorm("encoder.stages.{}.layers.{}.layer_norm1"), None, (
        ),
        {}), ("encoder.stages.{}.downsample.pre_assign_attn.attn", "cross", RAW,
        InputNorm("encoder.stages.{}.downsample.norm_x"), (), {}), ("encoder.stages.{}.downsample.assign", "assign",
        InputNorm("encoder.stages.{}.downsample.pre_assign_attn.norm_post"),
        InputNorm("encoder.stages.{}.downsample.norm_x"), ("each image token picks one of the groups",),
        {"heads": 1}))),
    *(like(CLIP, "idefics", full=False, weights=Separate(f"{at}.q_proj", f"{at}.k_proj"), block=block, rotary=rotary,
        causal=block == "self", norm=InputNorm(f"{at.rpartition('.')[0]}.input_layernorm", "rms"), k_norm=k_norm)
        for at, block, rotary, k_norm in (("layers.{}.self_attn", "self", RotaryRule(), None),
        ("gated_cross_attn_layers.{}.cross_attn", "cross", None, RAW))),
    *(like(CLIP, "idefics2", "idefics2_perceiver", full=False, weights=Separate(f"{at}.q_proj", f"{at}.k_proj"),
        heads=("resampler_n_heads",), kv_heads=KV_HEADS, norm=InputNorm("layers.{}.input_latents_norm", "rms"),
        head_dim=("resampler_head_dim",), k_norm=InputNorm("layers.{}.input_context_norm", "rms"), block="resampler",
        remarks=("keys are made of the image and of the latents, each behind a norm of its own",))
        for at in ("layers.{}.self_attn",)),
    like(CLIP, "minicpmv", "minicpmv4_6_vision", "minicpm_ocr_vision", "minicpmv4_7_vision", block="merger",
        weights=Separate("vit_merger.self_attn.q_proj", "vit_merger.self_attn.k_proj"),
        norm=InputNorm("vit_merger.layer_norm1"), remarks=("attention stays within windows",)),
    like(CLIP, "xclip", "xclip_vision_model", block="message", norm=InputNorm("encoder.layers.{}.message_ln"),
        weights=Separate("encoder.layers.{}.message_attn.q_proj", "encoder.layers.{}.message_attn.k_proj")),
    like(CLIP, "xclip", block="prompts", heads=("prompt_num_attention_heads",), k_norm=InputNorm(
        "prompts_generator.layernorm"), norm=InputNorm("prompts_generator.decoder.{}.norm1"), weights=Separate(
        "prompts_generator.decoder.{}.cross_attn.q_proj", "prompts_generator.decoder.{}.cross_attn.k_proj")),
    like(CLIP, "xclip", "xclip", "xclip_vision_model", block="frames",
        norm=InputNorm("mit.encoder.layers.{}.layer_norm1"), heads=("vision_config.mit_num_attention_heads",
        "mit_num_attention_heads"), weights=Separate("mit.encoder.layers.{}.self_attn.q_proj",
        "mit.encoder.layers.{}.self_attn.k_proj")),
    *(like(CLIP, kind, *types, weights=Separate(f"{at}.q_proj", f"{at}.k_proj"), norm=InputNorm(norm), rotary=rotary,
        remarks=("patches rotate in two dimensions",) if rotary else (), kv_heads=(
        ) if kind in ("minimax_m3_vl", "hunyuan_vl") else KV_HEADS,
        full=False) for kind, types, at, norm,
        rotary in (("mlcd", ("mlcd_vision_model", "paddleocr_vl_vision", "video_llama_3_vision"),
        "encoder.layers.{}.self_attn", "encoder.layers.{}.layer_norm1", RotaryRule()),
        ("molmo2", ("molmo2_vision",), "layers.{}.self_attn", "layers.{}.layer_norm1", None),
        ("minimax_m3_vl", ("minimax_m3_vl_vision",), "layers.{}.self_attn", "layers.{}.layer_norm1", RotaryRule()),
        ("hunyuan_vl", ("hunyuan_vl_vision",), "layers.{}.self_attn", "layers.{}.layer_norm1", None),
        ("inkling2", ("inkling2_vision",), "layers.{}.self_attn", "layers.{}.layernorm_before", ADJACENT),
        ("muse_spark", ("muse_spark_vision", "muse_glimmer_vision", "kimi_k25_vision"), "layers.{}.attn",
        "layers.{}.norm1", RotaryRule()))),
    like(SWIN, "swin", *SWIN.model_types, weights=Separate("encoder.layers.{}.blocks.{}.attention.q_proj",
        "encoder.layers.{}.blocks.{}.attention.k_proj")),
    like(SWIN, "swinv2", qk_norm=QKNormAt(None, None, "l2",
        temperature="encoder.layers.{}.blocks.{}.attention.self.logit_scale"), norm=RAW, remarks=(*WINDOWED,
        "cosine attention: only directions of q and k count")),
    like(CLIP, "sam", "sam_vision_model", "sam_hq_vision_model", weights=Fused("vision_encoder.layers.{}.attn.qkv"),
        norm=InputNorm("vision_encoder.layers.{}.layer_norm1"), remarks=RELATIVE),
    like(CLIP, "sam", "sam_vision_model", "sam_hq_vision_model", "got_ocr2_vision", "slanext_vision",
        "deepseek_ocr2_sam_vision_model", "unlimited_ocr_sam_vision_model", "pp_formulanet_vision",
        "pp_chart2table_vision",
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
    like(CLIP, "qwen2_5_omni", "qwen2_5_omni_vision_encoder", weights=Separate("blocks.{}.attn.q", "blocks.{}.attn.k"),
        heads=("num_heads",), norm=InputNorm("blocks.{}.norm1", "rms"), rotary=RotaryRule(),
        remarks=("patches rotate in two dimensions",)),
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
    like(SWIN, "swin2sr", qk_norm=QKNormAt(None, None, "l2",
        temperature="encoder.stages.{}.layers.{}.attention.self.logit_scale"), norm=RAW, remarks=(*WINDOWED,
        "cosine attention: only directions of q and k count"), weights=Separate(
        "encoder.stages.{}.layers.{}.attention.self.query", "encoder.stages.{}.layers.{}.attention.self.key")),
    like(CLIP, "bridgetower", "bridgetower_vision_model", heads=(), head_width=64,
        weights=Fused("transformer.resblocks.{}.attn.in_proj_weight"),
        biases=("transformer.resblocks.{}.attn.in_proj_bias",), norm=InputNorm("transformer.resblocks.{}.ln_1")),
    # the tower's config speaks for the layers of images too, and counts no heads
    *(like(VIT, "bridgetower", "bridgetower", f"bridgetower_{scope}_model", block=f"{mine}.{block}", norm=norm,
        k_norm=k_norm, weights=Separate(f"cross_modal_{mine}_layers.{{}}.{at}.self.query",
        f"cross_modal_{mine}_layers.{{}}.{at}.self.key"), **counted)
        for mine, other, scope, counted in (("text", "image", "text", {}), ("image", "text", "vision",
        {"heads": (), "head_width": 64, "remarks": ("its heads are taken to be 64 wide, as in every release",)}))
        for at, block, norm, k_norm in (("attention", "self", linked(mine), None), ("crossattention", "cross",
        InputNorm(f"cross_modal_{mine}_layers.{{}}.attention.output.LayerNorm"), linked(other)))),
    *(like(CLIP, "videoprism", *types, block=block, softcap="attn_logit_softcapping", causal=causal,
        weights=Separate(f"{at}.{{}}.attention.q_proj", f"{at}.{{}}.attention.k_proj"),
        norm=InputNorm(f"{at}.{{}}.layernorm_before", offset=1.0)) for types, at, block, causal in (
        (("videoprism_vision_model",), "spatial_layers", "self", False),
        (("videoprism_vision_model",), "temporal_layers", "temporal", False),
        (("videoprism_vision_model",), "auxiliary_layers", "auxiliary", False),
        (("videoprism_text_model",), "layers", "self", True))),
    like(CLIP, "videoprism", "videoprism_vision_model", block="pool", full=False, gain="head.per_dim_scale",
        weights=Separate("head.q_proj", "head.k_proj"), norm=RAW, k_norm=RAW, unknown=PROBE),
    like(CLIP, "deepseek_ocr2", "deepseek_ocr2_encoder", full=False, causal=True, kv_heads=KV_HEADS,
        rotary=RotaryRule(),
        weights=Separate("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj"),
        norm=InputNorm("layers.{}.input_layernorm", "rms"),
        remarks=("patches see every patch, queries all patches and the queries before them",)),
    # as released and as transformers saves it, which is not how transformers holds it
    like(CLIP, "kimi_k25", "kimi_k25_vision", weights=Fused("blocks.{}.wqkv"), norm=InputNorm("blocks.{}.norm0"),
        rotary=ADJACENT, remarks=("patches rotate in two dimensions",)),
)
# fmt: on
