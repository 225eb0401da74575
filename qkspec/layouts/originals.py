"""Rows of the table: what libraries other than transformers write. Their names alone prove the layout."""

from qkspec.layouts.layout import Fused, InputNorm, Layout, RotaryRule, Separate

# fmt: off  (a row is read across, not down)
ORIGINALS = (
    Layout("nanogpt", ("nanogpt",), Fused("h.{}.attn.c_attn"), full=True, kv_heads=(), head_dim=(),
           norm=InputNorm("h.{}.ln_1"), causal=True, by_name=True),
    Layout("timm", (), Fused("blocks.{}.attn.qkv"), full=True, kv_heads=(), norm=InputNorm("blocks.{}.norm1"), by_name=True),
    Layout("meta_llama", ("meta_llama",), Separate("layers.{}.attention.wq", "layers.{}.attention.wk"), norm=InputNorm("layers.{}.attention_norm", "rms"),
           rotary=RotaryRule("adjacent"), causal=True, by_name=True),
)
# fmt: on
