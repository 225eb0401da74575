"""What a config says about the logits beyond the weights: scale, rotation, caps, context."""

import math
from typing import Any

from qkspec.errors import LayoutError
from qkspec.layouts.heads import look_up
from qkspec.layouts.layout import Config, Layout, ScaleRule, inverse_root
from qkspec.qk import Rotary

CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "block_size",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "context_length",
)


def number(config: Config, *keys: str) -> float | None:
    """Return the first finite number under the dotted keys, or None."""
    value = look_up(config, keys)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def fixed(value: float) -> ScaleRule:
    """Return a scale that is the same number in every model of a family (1 in T5)."""

    def scale(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
        return value

    return scale


def from_key(key: str, power: float = 1.0) -> ScaleRule:
    """Return a scale that the config states: ``value ** power``; 1/√d_q where it states none."""

    def scale(config: Config, d_q: int, layer: int) -> float:
        value = number(config, key)
        return inverse_root(config, d_q, layer) if value is None or value <= 0 else value**power

    return scale


def times_key(key: str, power: float = 1.0) -> ScaleRule:
    """Return 1/√d_q times a config value (Falcon-H1's key multiplier)."""

    def scale(config: Config, d_q: int, layer: int) -> float:
        value = number(config, key)
        return inverse_root(config, d_q, layer) * (1.0 if value is None else value**power)

    return scale


def beam_scale(config: Config, d_q: int, layer: int) -> float:
    """Return 1/√d_q, in layers without rotation times the factor (1 + n/2048)^0.1 of the first token, n = 1."""
    turns = _listed(config, "layer_types", layer) == "sliding_attention"
    return inverse_root(config, d_q, layer) * (1.0 if turns else (1 + 1 / 2048) ** 0.1)


def half_width(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
    """Return Zamba's √(2 / d_q): its queries read the residual stream and the embedding side by side."""
    return float((d_q / 2) ** -0.5)


def gpt2_scale(config: Config, d_q: int, layer: int) -> float:
    """Return GPT-2's scale: 1/√d_q unless switched off, over (layer + 1) with inverse layer scaling."""
    scale = 1.0 if config.get("scale_attn_weights") is False else inverse_root(config, d_q, layer)
    return scale / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale


def disentangled_scale(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
    """Return DeBERTa's 1/√(n d_q) with n = 1 + the kinds of position terms."""
    kinds = config.get("pos_att_type") or ()
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds if isinstance(kinds, list) else ()
    terms = 1 + sum(kind in kinds for kind in ("c2p", "p2c")) if config.get("relative_attention") else 1
    return float((terms * d_q) ** -0.5)


def rope_parameters(config: Config, layer: int) -> dict[str, Any]:
    """Return the rotary settings that apply to a layer, whether they stand per layer type, together, or at the top."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, dict):
            stated = _listed(config, "layer_types", layer)
            kind = stated if isinstance(stated, str) else None
            # DeepSeek-V4 names them after what a layer's keys are, not after the layer's type
            rotates = kind if kind in value else "main" if kind == "sliding_attention" else "compress"
            nested = value.get(rotates) if kind is not None else None
            found |= nested if isinstance(nested, dict) else value
    return found


def rotary(row: Layout, config: Config, d_q: int, layer: int) -> Rotary | None:
    """Return how a module rotates its heads, or None where it does not."""
    rule = row.rotary
    if rule is None or (rule.flag is not None and look_up(config, (rule.flag[0],)) != rule.flag[1]):
        return None
    if (
        rule.only is not None
        and config.get("sliding_window") is not None
        and _listed(config, "layer_types", layer) != rule.only
    ):
        return None
    if 0 in (_listed(config, "no_rope_layers", layer), _listed(config, "layer_rope_theta", layer)):
        return None
    per_kind, kind = config.get("rope_parameters"), _listed(config, "layer_types", layer)
    if isinstance(per_kind, dict) and isinstance(kind, str) and per_kind.get(kind, 0) is None:
        return None  # Cohere Compass
    settings = rope_parameters(config, layer)
    theta = (
        number(settings, "rope_theta")
        or number(config, "rope_theta", "rotary_emb_base", "rotary_base", "rope_base")
        or rule.theta
    )
    if theta <= 0:
        raise LayoutError(f"config.json: the base of its rotary frequencies is {theta:g}; it must be positive")
    dims = number(config, "rotary_dim", "qk_rope_head_dim")
    if dims is None:
        share = number(settings, "partial_rotary_factor") or number(
            config, "partial_rotary_factor", "rotary_pct", "rotary_percent", "rope_pct"
        )
        dims = int(d_q * min(rule.share if share is None else share, 1.0))
    even = min(int(dims), d_q) // 2 * 2
    if even < 2:
        return None
    return Rotary(even, theta, rule.pairing, d_q - even if rule.end else 0)


def _listed(config: Config, key: str, layer: int) -> object | None:
    """Return a layer's entry in a list of the config, or None where there is none."""
    values = config.get(key)
    return values[layer] if isinstance(values, list) and layer < len(values) else None


def borrows_keys(config: Config, numbers: tuple[int, ...]) -> bool:
    """Return whether a layer takes its keys from a layer before it (Gemma 3n and 4, Mistral Large 4)."""
    layers, shared = number(config, "num_hidden_layers"), number(config, "num_kv_shared_layers")
    if len(numbers) != 1:
        return False
    source = _listed(config, "kv_source_layers", numbers[0])
    return source not in (None, numbers[0]) or 0 < (layers or 0) - numbers[0] <= (shared or 0)


def logit_scale(row: Layout, config: Config, d_q: int, layer: int) -> float:
    """Return what q'k is multiplied by before the softmax, YaRN's factor included.

    Raises:
        LayoutError: the settings give no finite number.
    """
    try:
        scale = row.scale(config, d_q, layer) * yarn_factor(config, layer)
    except ArithmeticError:
        scale = math.inf
    if not math.isfinite(scale):
        raise LayoutError("config.json: its settings give the logits no finite scale")
    return scale


def yarn_factor(config: Config, layer: int) -> float:
    """Return the factor that a YaRN or LongRoPE model puts on its logits through cosine and sine: attention_factor²."""
    settings = rope_parameters(config, layer)
    kind = settings.get("rope_type", settings.get("type"))
    if kind not in ("yarn", "longrope", "su"):
        return 1.0
    stated = number(settings, "attention_factor")
    if stated is not None:
        return stated**2
    factor = number(settings, "factor") or 1.0
    if kind != "yarn":
        return long_factor(config, settings) ** 2
    mscale, all_dim = number(settings, "mscale"), number(settings, "mscale_all_dim")
    if mscale and all_dim:
        return (_mscale(factor, mscale) / _mscale(factor, all_dim)) ** 2
    return _mscale(factor, 1.0) ** 2


def long_factor(config: Config, settings: dict[str, Any]) -> float:
    """Return LongRoPE's factor on cosine and sine, √(1 + ln(extension) / ln(original context))."""
    original = number(settings, "original_max_position_embeddings") or number(
        config, "original_max_position_embeddings"
    )
    longest = number(config, "max_position_embeddings")
    if not original or not longest or original < 2:
        return 1.0
    extension = number(settings, "factor") or longest / original
    return 1.0 if extension <= 1 else math.sqrt(1 + math.log(extension) / math.log(original))


def latent_scale(config: Config, d_q: int, layer: int) -> float:
    """Return DeepSeek's 1/√d_q, times YaRN's mscale² where ``mscale_all_dim`` asks for it."""
    settings = rope_parameters(config, layer)
    all_dim, factor = number(settings, "mscale_all_dim"), number(settings, "factor")
    scale = inverse_root(config, d_q, layer)
    return scale * _mscale(factor, all_dim) ** 2 if all_dim and factor else scale


def deepseek_scale(config: Config, d_q: int, layer: int) -> float:
    """Return the scale of DeepSeek's own code, whose settings have defaults: a context stretched forty times."""
    longest, trained = number(config, "max_seq_len") or 16384, number(config, "original_seq_len") or 4096
    factor, weight = number(config, "rope_factor") or 40.0, number(config, "mscale") or 1.0
    return inverse_root(config, d_q, layer) * (_mscale(factor, weight) ** 2 if longest > trained else 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def causal(row: Layout, config: Config) -> bool:
    """Return whether a token sees only those before it; some configs make an encoder a decoder, or the reverse."""
    if config.get("use_bidirectional_attention") in (True, "all"):
        return False
    return row.causal or (config.get("is_decoder") is True and not row.block.endswith("cross"))


def context(row: Layout, config: Config) -> int | None:
    """Return the tokens in a full attention row: the longest context, or an image's patches and class token."""
    value = number(config, *(row.context or CONTEXT))
    if value is None:
        value = patches(config)
    return int(value) if value is not None and 0 < value < 1 << 40 else None


def patches(config: Config) -> float | None:
    """Return the tokens of one image: patches and a class token."""
    size, patch = config.get("image_size"), config.get("patch_size")
    size = size[0] if isinstance(size, list) and size else size
    patch = patch[0] if isinstance(patch, list) and patch else patch
    if not isinstance(size, int) or not isinstance(patch, int) or not 1 <= patch <= size < 1 << 20:
        return None
    return float((size // patch) ** 2 + 1)


def remarks(row: Layout, config: Config, layer: int) -> tuple[str, ...]:
    """Return what a reader of the logits must know that only the config tells."""
    kind = rope_parameters(config, layer).get("rope_type", rope_parameters(config, layer).get("type"))
    if row.rotary is None or kind in (None, "default", "none"):
        return ()
    return (f"rotary frequencies are rescaled ({kind}), which σ at an offset does not follow",)
