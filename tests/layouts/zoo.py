"""The architectures of the conformance suite, one line each."""

from __future__ import annotations

from layouts.tiny import GONE, Case

CASES = (
    Case("gpt2"),
    Case("gpt2 inverse layer scaling", {"scale_attn_by_inverse_layer_idx": True}),
    Case("gpt_neox"),
    Case("llama"),
    Case("bert"),
    Case("vit"),
)
__all__ = ["CASES", "GONE"]
