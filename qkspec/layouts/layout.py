"""A layout is a row of data: where a family of models keeps its query and key weights, and what else shapes its logits.

A pattern is a dotted tensor name with ``{}`` for each number that varies (the layer; a stage and a block in pyramids),
without whatever stands in front (``model.``, ``transformer.``, ``_orig_mod.``) and without ``.weight`` at its end.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qkspec.errors import LayoutError

Config = Mapping[str, Any]
ScaleRule = Callable[[Config, int, int], float]
"""A factor on the logits from (config, d_q, layer)."""

HEADS = (
    *("{side}_attention_heads", "{side}_num_attention_heads", "num_{side}_attention_heads", "{side}_num_heads"),
    *("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", "nhead"),
)
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "n_kv_head", "num_query_groups")
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels", "d_kv", "attention_key_size")


def inverse_root(config: Config, d_q: int, layer: int) -> float:  # noqa: ARG001 - the signature of every ScaleRule
    """Return 1/√d_q, the scale of scaled dot-product attention."""
    return float(d_q**-0.5)


@dataclass(frozen=True)
class Separate:
    """Queries and keys in tensors of their own.

    Args:
        q, k: patterns of the two weights.
        q_parts, k_parts: what the tensor holds in order: "q", or "qg" (queries and gates); "k", or "kv".
        q_units, k_units: equal runs of rows that each hold their share of those parts; None: one a head.
        heads_first: stored as (heads, d, d_q), as TransformerLens does.
        groups: config key of the groups of a grouped 1x1 convolution, whose matrix is block-diagonal.
        q_a, q_norm: pattern of the first factor of a q that is a product, and of the RMS norm between the two.
        experts: q is stored as (experts, rows, d): every expert has queries of its own for each key head.
        v_width: how many times as wide as a key head a value head is, where values share a tensor (LeViT).
    """

    q: str
    k: str
    q_parts: str = "q"
    k_parts: str = "k"
    q_units: int | None = 1
    k_units: int | None = 1
    heads_first: bool = False
    groups: tuple[str, str] | None = None
    q_a: str = ""
    q_norm: str = ""
    experts: bool = False
    v_width: int = 1


@dataclass(frozen=True)
class Fused:
    """Queries, keys and values in one tensor: its rows fall into equal runs, each with its share of every part.

    Args:
        qkv: pattern of the weight.
        units: number of runs; None: one a key head.
        parts: order of the parts within a run ("qvk" in CodeGen).
        v_width: as in Separate.
    """

    qkv: str
    units: int | None = 1
    parts: str = "qkv"
    v_width: int = 1


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: W_q = q_b q_a; W_k stacks k rows of kv_b kv_a over rotary rows all heads share.

    Args:
        q_a, q_b: patterns of the factors of W_q; where a model has none, q is the whole.
        q: pattern of an unfactored W_q.
        kv_a: (r + rope, d): the latent's rows, then the shared rotary rows.
        kv_b: (heads * (nope + v), r): per head its key rows, then its value rows.
        q_norm, kv_norm: the RMS norms between the factors, "" where there is none.
        scaled: latents of r entries are multiplied by √(d / r) behind their norms (LongCat).
        joined: q_b is handed the latent behind its norm and, after it, the latent itself; gates as wide as a value
            follow each head's queries. head_dim then names the width of a head without its rotary rows.
    """

    q: str
    q_a: str
    q_b: str
    kv_a: str
    kv_b: str
    q_norm: str = ""
    kv_norm: str = ""
    scaled: bool = False
    joined: bool = False


Weights = Separate | Fused | Latent


@dataclass(frozen=True)
class InputNorm:
    """Where the normalisation of an attention input is stored.

    Args:
        at: pattern of the norm; None: a norm without weights. "" with kind "none": the input is not normalised.
        kind: "layer", "rms", "none", or "auto": "layer" where it has a bias in the checkpoint, else "rms".
        offset: added to the stored gain (Gemma stores gain - 1).
        first: post-LN: the norm that feeds layer 0 ("" where none does), while ``at`` is that of the layer before.
        last: the norm of the last layer of another stack, which feeds keys of cross-attention.
        instead: pattern of the norm where ``at`` has no tensors (ModernBERT's first layer has none).
    """

    at: str | None = None
    kind: Literal["layer", "rms", "auto", "none"] = "layer"
    offset: float = 0.0
    first: str | None = None
    last: bool = False
    instead: str | None = None


RAW = InputNorm("", "none")
"""The attention input is the residual stream itself."""


@dataclass(frozen=True)
class QKNormAt:
    """Where the normalisation of queries and keys is stored; it applies where its tensors are in the checkpoint.

    Args:
        q, k: patterns; ``[head]`` stands for a head's number where each head has its own tensor. None: no weights.
        kind, per_head: as in QKNorm; "auto" as in InputNorm.
        offset: added to the stored gain.
        flag: config key that switches a norm without weights on.
        temperature: pattern of a learned factor per head, stored as its logarithm (cosine attention).
    """

    q: str | None
    k: str | None
    kind: Literal["rms", "layer", "l2", "auto"] = "rms"
    per_head: bool = True
    offset: float = 0.0
    flag: str | None = None
    temperature: str | None = None


@dataclass(frozen=True)
class RotaryRule:
    """How a family rotates queries and keys; the base and the share that rotates come from its config.

    Args:
        pairing: as in Rotary.
        share: part of d_q that rotates where the config is silent.
        theta: base where the config is silent.
        end: whether the last coordinates rotate (latent attention) and not the first.
        flag: config (key, value) that must hold for the model to rotate at all.
        only: the layer type that rotates, where a model with a sliding window leaves the others alone.
    """

    pairing: Literal["halves", "adjacent"] = "halves"
    share: float = 1.0
    theta: float = 10_000.0
    end: bool = False
    flag: tuple[str, object] | None = None
    only: str | None = None


@dataclass(frozen=True)
class Layout:
    """One row of the table.

    Args:
        name: the family, as reports show it.
        model_types: values of the config's ``model_type`` that this row reads.
        weights: where q and k are, and how they are cut.
        block: "self", "encoder.self", "decoder.cross", ...
        inputs_first: the weight is stored (d, rows), as Conv1D does.
        heads, kv_heads, head_dim: config keys, first found wins; a number where the family fixes it. "{side}" in a key
            is "encoder" or "decoder", as the path says. kv_heads = () says that every query head has its own key head,
            None that shapes tell.
        head_ratio: config key, or number, by which the stated count of heads is divided (ConvBERT).
        depths: config key that lists the blocks of each stage, where blocks are numbered through and heads are listed
            by stage (Hiera in SAM 2).
        heads_at: pattern of a tensor beside the weights, and its axis whose length is the count of heads.
        head_width: the width of a head where nothing tells their count and the code that wrote the file fixes it, or
            the config key that tells it.
        when: config facts that must hold for this row ("multi_query": True), a missing key reading as None; a tuple
            holds every value that will do.
        scale: factor on the logits.
        norm, k_norm: normalisation of the queries' and keys' input (k_norm None: the same); norm None: not known.
        full: the heads together are exactly as wide as the input, which tells a transposed weight from a plain one.
        qk_norm, rotary: or None.
        biases: names of a fused weight's bias, or of q's and k's, where they are not the weight's with ``.bias``.
        gain: pattern of a learned factor on each coordinate of a query, stored before a softplus (TimesFM).
        batch_norm: patterns of the batch norms behind a fused weight, or behind q's and k's (LeViT); folded into both.
        softcap, clamp, context: config keys.
        causal: whether a token sees only those before it.
        softmax: False for linear attention.
        linear: pattern of a tensor that only those modules have that use linear attention, where a model mixes both.
        by_name: whether the names alone prove the layout, so that it also reads files without a model_type.
        proof: the name of a tensor without which names do not prove the layout.
        unlisted: whether it reads this pair of names anywhere, where no other row does.
        remarks: what a reader of the logits must know.
        unknown: what the weights cannot tell about the logits.
    """

    name: str
    model_types: tuple[str, ...]
    weights: Weights
    block: str = "self"
    inputs_first: bool = False
    heads: tuple[str, ...] | int = HEADS
    kv_heads: tuple[str, ...] | int | None = KV_HEADS
    head_dim: tuple[str, ...] = HEAD_DIM
    head_ratio: str | int | None = None
    depths: str = ""
    heads_at: tuple[str, int] | None = None
    head_width: int | str | None = None
    when: Mapping[str, object] = field(default_factory=dict)
    scale: ScaleRule = inverse_root
    norm: InputNorm | None = None
    k_norm: InputNorm | None = None
    full: bool = False
    qk_norm: QKNormAt | None = None
    rotary: RotaryRule | None = None
    biases: tuple[str | None, ...] | None = None
    gain: str | None = None
    batch_norm: tuple[str, ...] = ()
    softcap: str | None = None
    clamp: str | None = None
    context: tuple[str, ...] = ()
    causal: bool = False
    softmax: bool = True
    linear: str | None = None
    by_name: bool = False
    proof: str = ""
    unlisted: bool = False
    remarks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns():
            plain = pattern.replace("{}", "0")
            if not plain or pattern.count("{}") > 2 or re.search(r"[{}]|^\.|\.$|\.weight$|\.\.", plain):
                raise LayoutError(
                    f"layout {self.name}: {pattern!r} is no pattern; write a tensor's name with {{}} for its layer"
                )
        if len({pattern.count("{}") for pattern in self.patterns()}) != 1:
            raise LayoutError(f"layout {self.name}: its patterns {self.patterns()} differ in their number of {{}}")
        for need, parts in self._parts():
            if need not in parts or len(set(parts)) != len(parts) or set(parts) - set("qkvg"):
                raise LayoutError(
                    f"layout {self.name}: parts {parts!r} must hold {need!r} and order q, k, v and g (gates), each once"
                )

    def _parts(self) -> tuple[tuple[str, str], ...]:
        match self.weights:
            case Separate(q_parts=q_parts, k_parts=k_parts):
                return (("q", q_parts), ("k", k_parts))
            case Fused(parts=parts):
                return (("q", parts), ("k", parts))
            case Latent():
                return ()

    def patterns(self) -> tuple[str, ...]:
        """Return the patterns of the weights; the first is the one that a checkpoint is searched for."""
        match self.weights:
            case Separate(q=q, k=k, q_a=q_a):
                return (q, k, q_a) if q_a else (q, k)
            case Fused(qkv=qkv):
                return (qkv,)
            case Latent(q=q, q_a=q_a, q_b=q_b, kv_a=kv_a, kv_b=kv_b):
                return (kv_b, kv_a, q, q_a, q_b)


def fill(pattern: str, numbers: tuple[int, ...]) -> str:
    """Return a pattern with its ``{}`` replaced by numbers; a pattern with fewer takes the first ones.

    Raises:
        LayoutError: the pattern has more ``{}`` than there are numbers.
    """
    first, *rest = pattern.split("{}")
    if len(rest) > len(numbers):
        raise LayoutError(f"the pattern {pattern!r} has more {{}} than the pattern of the weights")
    return first + "".join(f"{number}{piece}" for number, piece in zip(numbers, rest, strict=False))


def expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a tensor name: whatever prefix, the pattern, and ``.weight`` or nothing."""
    body = re.escape(pattern).replace(r"\{\}", r"(\d{1,9})")
    return re.compile(rf"(?P<prefix>(?:.*\.)?){body}(?P<suffix>\.weight)?", re.DOTALL)
