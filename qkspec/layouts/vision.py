"""Rows of the table: models of images, and both halves of models that join images and text."""

from dataclasses import replace

from qkspec.layouts.layout import Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

# fmt: off  (a row is read across, not down)
VIT = Layout(
    "vit", ("vit", "deit", "vit_msn", "ijepa", "dpt", "videomae_", "audio-spectrogram-transformer", "yolos", "vit_hybrid", "data2vec-vision"),
    Separate("encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.attention.key"), full=True, kv_heads=(), head_dim=(),
    norm=InputNorm("encoder.layer.{}.layernorm_before"), by_name=True,
)
CLIP = Layout(
    "clip", ("clip_vision_model", "chinese_clip_vision_model", "siglip_vision_model"),
    Separate("encoder.layers.{}.self_attn.q_proj", "encoder.layers.{}.self_attn.k_proj"), full=True, kv_heads=(), head_dim=(),
    norm=InputNorm("encoder.layers.{}.layer_norm1"),
)
SWIN = Layout(
    "swin", ("swin", "donut-swin", "maskformer-swin"),
    Separate("encoder.layers.{}.blocks.{}.attention.self.query", "encoder.layers.{}.blocks.{}.attention.self.key"), full=True, kv_heads=(),
    head_dim=(), heads=("num_heads",), norm=InputNorm("encoder.layers.{}.blocks.{}.layernorm_before"),
    remarks=("a bias by relative position is added; attention stays within windows",),
)


def like(row: Layout, name: str, *model_types: str, **facts: object) -> Layout:
    """Return a row with another name and whatever else differs."""
    return replace(row, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


VISION = (
    VIT,
    CLIP,
    SWIN,
)
# fmt: on
__all__ = ["VISION", "Fused", "QKNormAt", "RotaryRule"]
