"""Rows of the table: models that find, segment and match what is in an image, and read more than one stream."""

from dataclasses import replace

from qkspec.layouts.encoders import pair
from qkspec.layouts.layout import RAW, Config, Fused, InputNorm, RotaryRule, Separate
from qkspec.layouts.vision import VIT, like

# A row is read across, not down.
# fmt: off
PLACED = ("position embeddings are added to the input of q and k",)
APART = ("terms of position, with projections of their own, are added",)
POOLED = ("at the start of a stage queries are the largest of each patch of tokens",)
TURNED = ("patches rotate in two dimensions",)
BASE = replace(VIT, full=False, remarks=PLACED)
SAM_DECODERS = ("sam_mask_decoder", "sam_hq_mask_decoder", "sam2_mask_decoder", "sam2_video_mask_decoder",
    "sam3_tracker_mask_decoder", "sam3_tracker_video_mask_decoder")
TRACKERS = ("sam2_video", "sam3_tracker_video")
# fmt: on


def doubled(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
    """Return 1/√(2 d_q): content and position stand side by side in each head of q and k."""
    return float((2 * d_q) ** -0.5)


def after(at: str, first: str = "") -> InputNorm:
    """Return the norm at the end of the layer before."""
    return InputNorm(at, first=first)


def qk(at: str, q: str = "q_proj", k: str = "k_proj") -> Separate:
    """Return the two projections of the attention module at a path."""
    return Separate(f"{at}.{q}", f"{at}.{k}")


def torch_mha(at: str) -> dict[str, object]:
    """Return the fused weight and bias of a torch.nn.MultiheadAttention."""
    return {"weights": Fused(f"{at}.in_proj_weight"), "biases": (f"{at}.in_proj_bias",)}


# fmt: off
DETECTION = (
    *pair("detr", ("detr",), post=True, first=("", ""), causal=False, remarks=PLACED),
    *pair("table-transformer", ("table-transformer",), post=False, keys="encoder.layernorm", causal=False,
        remarks=PLACED),
    *pair("conditional_detr", ("conditional_detr", "dab-detr"), post=True, first=("", ""), remarks=PLACED)[:1],
    *(like(BASE, "conditional_detr", weights=qk(f"decoder.layers.{{}}.{at}", "q_content_proj", "k_content_proj"),
        block=block, norm=norm, remarks=APART, **more) for at, block, norm, more in (
        ("self_attn", "decoder.self", after("decoder.layers.{}.final_layer_norm"), {}),
        ("encoder_attn", "decoder.cross", InputNorm("decoder.layers.{}.self_attn_layer_norm"), {"scale": doubled,
        "k_norm": InputNorm("encoder.layers.{}.final_layer_norm", last=True)}))),
    *(like(BASE, "dab-detr", weights=qk(f"decoder.layers.{{}}.{at}", f"{at}_query_content_proj",
        f"{at}_key_content_proj"), block=block, norm=norm, remarks=APART, **more) for at, block, norm, more in (
        ("self_attn", "decoder.self", after("decoder.layers.{}.mlp.final_layer_norm"), {}),
        ("cross_attn", "decoder.cross", InputNorm("decoder.layers.{}.self_attn.self_attn_layer_norm"), {"scale":
        doubled, "k_norm": InputNorm("encoder.layers.{}.final_layer_norm", last=True)}))),
    *(like(BASE, "rt_detr", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "pp_doclayout_v2", "pp_doclayout_v3",
        weights=qk(f"{at}.self_attn"), block="encoder.self", norm=after(f"{at}.final_layer_norm"),
        heads=("encoder_attention_heads",)) for at in ("encoder.aifi.{}.layers.{}", "encoder.encoder.{}.layers.{}")),
    like(BASE, "rt_detr", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "pp_doclayout_v2", "pp_doclayout_v3",
        "deformable_detr", weights=qk("decoder.layers.{}.self_attn"), block="decoder.self",
        norm=after("decoder.layers.{}.final_layer_norm"), heads=("decoder_attention_heads",)),
    *(like(BASE, "conditional_detr", weights=Separate(f"decoder.layers.{{}}.{at}_qcontent_proj",
        f"decoder.layers.{{}}.{at}_kcontent_proj"), block=block, norm=norm, remarks=APART, **more)
        for at, block, norm, more in (("sa", "decoder.self", after("decoder.layers.{}.final_layer_norm"), {}),
        ("ca", "decoder.cross", InputNorm("decoder.layers.{}.self_attn_layer_norm"), {"scale": doubled,
        "k_norm": InputNorm("encoder.layers.{}.final_layer_norm", last=True)}))),
    like(BASE, "rf_detr", **torch_mha("decoder.layers.{}.self_attn"), block="decoder.self",
        norm=after("decoder.layers.{}.norm3"), heads=("decoder_self_attention_heads",)),
    like(BASE, "rf_detr", "rf_detr", "lw_detr", weights=qk("decoder.layers.{}.self_attn"), block="decoder.self",
        norm=after("decoder.layers.{}.layer_norm"), heads=("decoder_self_attention_heads",)),
    *(like(BASE, "grounding-dino", "grounding-dino", "mm-grounding-dino", weights=qk(at, "query", "key"), block=block,
        norm=norm, heads=heads, head_ratio=ratio, remarks=PLACED, **more)
        for at, block, norm, heads, ratio, more in (
        ("encoder.layers.{}.text_enhancer_layer.self_attn", "encoder.text", RAW, ("encoder_attention_heads",), 2, {}),
        ("decoder.layers.{}.self_attn", "decoder.self", after("decoder.layers.{}.final_layer_norm"),
        ("decoder_attention_heads",), None, {}),
        ("decoder.layers.{}.encoder_attn_text", "decoder.cross", InputNorm("decoder.layers.{}.self_attn_layer_norm"),
        ("decoder_attention_heads",), None, {"k_norm": InputNorm(
        "encoder.layers.{}.text_enhancer_layer.layer_norm_after", last=True)}))),
    like(BASE, "grounding-dino", "grounding-dino", "mm-grounding-dino", block="encoder.fusion", head_ratio=2,
        weights=qk("encoder.layers.{}.fusion_layer.attn", "vision_proj", "text_proj"),
        heads=("encoder_attention_heads",), norm=InputNorm("encoder.layers.{}.fusion_layer.layer_norm_vision"),
        k_norm=InputNorm("encoder.layers.{}.fusion_layer.layer_norm_text"),
        remarks=("the same logits are read along both axes: images to text, and text to images",)),
    like(BASE, "mask2former", block="decoder.cross", **torch_mha("decoder.layers.{}.cross_attn"), k_norm=RAW,
        norm=after("decoder.layers.{}.final_layer_norm"), remarks=(*PLACED, "queries see the region they predicted")),
    like(BASE, "mask2former", block="decoder.self", weights=qk("decoder.layers.{}.self_attn"),
        norm=InputNorm("decoder.layers.{}.cross_attn_layer_norm")),
    like(BASE, "oneformer", block="decoder.cross", **torch_mha("decoder.layers.{}.cross_attn.multihead_attn"),
        norm=after("decoder.layers.{}.ffn.norm"), k_norm=RAW,
        remarks=(*PLACED, "queries see the region they predicted")),
    like(BASE, "oneformer", block="decoder.self", weights=qk("decoder.layers.{}.self_attn.self_attn"),
        norm=InputNorm("decoder.layers.{}.cross_attn.norm")),
    like(BASE, "oneformer", block="queries.self", **torch_mha("query_transformer.decoder.layers.{}.self_attn"),
        norm=after("query_transformer.decoder.layers.{}.norm3")),
    like(BASE, "oneformer", block="queries.cross", **torch_mha("query_transformer.decoder.layers.{}.multihead_attn"),
        norm=InputNorm("query_transformer.decoder.layers.{}.norm1"), k_norm=RAW),
    # segment anything
    *(like(BASE, "sam", *SAM_DECODERS, weights=qk(f"transformer.layers.{{}}.{at}"), block=block, norm=norm, **more)
        for at, block, norm, more in (
        ("self_attn", "decoder.self", after("transformer.layers.{}.layer_norm3"), {}),
        ("cross_attn_token_to_image", "decoder.cross", InputNorm("transformer.layers.{}.layer_norm1"),
        {"k_norm": after("transformer.layers.{}.layer_norm4")}),
        ("cross_attn_image_to_token", "decoder.cross", after("transformer.layers.{}.layer_norm4"),
        {"k_norm": InputNorm("transformer.layers.{}.layer_norm3")}))),
    like(BASE, "sam", *SAM_DECODERS, weights=qk("transformer.final_attn_token_to_image"), block="decoder.final",
        norm=InputNorm("transformer.layers.{}.layer_norm3", last=True),
        k_norm=InputNorm("transformer.layers.{}.layer_norm4", last=True)),
    like(BASE, "hiera", "sam2_hiera_det_model", weights=Fused("blocks.{}.attn.qkv"), depths="blocks_per_stage",
        heads=("num_attention_heads_per_stage",), norm=InputNorm("blocks.{}.layer_norm1"), remarks=POOLED),
    *(like(BASE, "sam2_video", *TRACKERS, weights=qk(f"memory_attention.layers.{{}}.{at}"), block=block,
        heads=("memory_attention_num_attention_heads",), norm=InputNorm(f"memory_attention.layers.{{}}.{norm}"),
        k_norm=k_norm, rotary=RotaryRule("adjacent"), remarks=TURNED) for at, block, norm, k_norm in (
        ("self_attn", "memory.self", "layer_norm1", None), ("cross_attn_image", "memory.cross", "layer_norm2", RAW))),
    like(BASE, "sam3", "sam3_vit_model", weights=qk("layers.{}.attention"), norm=InputNorm("layers.{}.layer_norm1"),
        rotary=RotaryRule("adjacent"), remarks=TURNED),
    *(like(BASE, "sam3", *(f"sam3{text}_{kind}" for text in ("", "_lite_text")), weights=qk(at), block=block, norm=norm,
        k_norm=k_norm) for kind, at, block, norm, k_norm in (
        ("detr_encoder", "layers.{}.self_attn", "self", InputNorm("layers.{}.layer_norm1"), None),
        ("detr_encoder", "layers.{}.cross_attn", "cross", InputNorm("layers.{}.layer_norm2"), RAW),
        ("geometry_encoder", "layers.{}.self_attn", "self", InputNorm("layers.{}.layer_norm1"), None),
        ("geometry_encoder", "layers.{}.cross_attn", "cross", InputNorm("layers.{}.layer_norm2"), RAW),
        ("detr_decoder", "layers.{}.self_attn", "self", after("layers.{}.mlp_layer_norm"), None),
        ("detr_decoder", "layers.{}.text_cross_attn", "text", InputNorm("layers.{}.self_attn_layer_norm"), RAW),
        ("detr_decoder", "layers.{}.vision_cross_attn", "cross", InputNorm("layers.{}.text_cross_attn_layer_norm"),
        RAW), ("mask_decoder", "prompt_cross_attn", "cross", InputNorm("prompt_cross_attn_norm"), RAW))),
    # points that match
    like(BASE, "superglue", weights=qk("gnn.layers.{}.attention.self", "query", "key"), norm=RAW, remarks=()),
    *(like(BASE, "lightglue", weights=qk(f"transformer_layers.{{}}.{at}_attention"), block=at, norm=RAW, remarks=(),
        kv_heads=None, rotary=RotaryRule("adjacent") if at == "self" else None) for at in ("self", "cross")),
)
# fmt: on
