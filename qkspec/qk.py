"""What one attention module is, once its weights are cut into heads: everything that shapes its logits.

Shapes are written in one alphabet: heads, kv_heads (key heads, which divide heads), d_q (width of a head), d (width of
the queries' input), d' (width of the keys' input; d' = d except in cross-attention), tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qkspec.errors import LayoutError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64] | NDArray[np.float32]
else:  # headers are read without NumPy, which takes as long to import as they do to read
    Array = Any


@dataclass(frozen=True)
class Norm:
    """The normalisation in front of a projection.

    Args:
        kind: "layer" centres and scales, "rms" only scales.
        gain: (d,) the factor as it is applied (1 + weight where a model stores the offset); None is all ones.
        bias: (d,) or None.
    """

    kind: Literal["layer", "rms"]
    gain: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True)
class QKNorm:
    """A normalisation of queries and keys after their projection; the logits are then no longer x' M y.

    Args:
        kind: "rms", "layer", or "l2" (unit vectors: cosine attention).
        per_head: over d_q for each head; False: over all heads together, before the split.
        q_gain: (heads, d_q), or None for ones; q_bias likewise.
        k_gain: (kv_heads, d_q), or None for ones; k_bias likewise.
        temperature: (heads,) learned factor on each head's logits (cosine attention), replacing the scale.
    """

    kind: Literal["rms", "layer", "l2"]
    per_head: bool = True
    q_gain: Array | None = None
    k_gain: Array | None = None
    q_bias: Array | None = None
    k_bias: Array | None = None
    temperature: Array | None = None


@dataclass(frozen=True)
class Factored:
    """The two factors of a projection with an RMS norm of the latent between them (multi-head latent attention).

    Args:
        up: (heads, d_q, r) the second factor, cut into heads.
        down: (r, d) the first.
        gain: (n,) of the norm, which is over the first n ≤ r coordinates; the others pass it by.
    """

    up: Array
    down: Array
    gain: Array


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of the queries and keys.

    Args:
        dims: how many of a head's d_q coordinates rotate (even).
        theta: base of the frequencies theta^(-2i/dims).
        pairing: "halves" rotates (i, i + dims/2) together, "adjacent" rotates (2i, 2i + 1).
        start: the first coordinate that rotates.
    """

    dims: int
    theta: float = 10_000.0
    pairing: Literal["halves", "adjacent"] = "halves"
    start: int = 0


@dataclass(frozen=True)
class QKLayer:
    """The query and key side of one attention module.

    Args:
        name: path of the attention module in the checkpoint ("model.layers.0.self_attn").
        layer: the layer's own number.
        block: "self", "encoder.self", "decoder.cross", "vision.self", ...
        q: (heads, d_q, d) query projections as the checkpoint stores them, decoded to float32 or float64 without loss.
        k: (kv_heads, d_q, d') key projections; query head h uses key head h // (heads // kv_heads).
        scale: factor on q'k before the softmax (1/√d_q in most models).
        stored: the weights' dtype in the file ("float32", "bfloat16", ...), which sets the rounding floor.
        q_bias: (heads, d_q) or None; k_bias: (kv_heads, d_q) or None.
        q_input: normalisation of the queries' input; None when there is none or it is not known (see unknown).
        k_input: the same for the keys' input.
        q_factors, k_factors: the factors of q and k where a norm stands between them, which q and k leave out.
        qk_norm, rotary, softcap (tanh cap on logits), clamp (bound on |q|, |k| after projection): or None.
        causal: whether a token sees only itself and those before it.
        softmax: False for linear attention, to which Theorem 1 does not apply.
        context: tokens in a full attention row, where the config says it.
        remarks: what adds to the logits outside W_q'W_k, or anything a reader must know ("ALiBi is added").
        unknown: facts of the logits that could not be learned ("input norm"); logit metrics are then left empty.
    """

    name: str
    layer: int
    block: str
    q: Array
    k: Array
    scale: float
    stored: str
    q_bias: Array | None = None
    k_bias: Array | None = None
    q_input: Norm | None = None
    k_input: Norm | None = None
    q_factors: Factored | None = None
    k_factors: Factored | None = None
    qk_norm: QKNorm | None = None
    rotary: Rotary | None = None
    softcap: float | None = None
    clamp: float | None = None
    causal: bool = False
    softmax: bool = True
    context: int | None = None
    remarks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.q.ndim != 3 or self.k.ndim != 3 or 0 in self.q.shape or 0 in self.k.shape:
            raise LayoutError(f"{self.name}: q {self.q.shape} and k {self.k.shape} are not (heads, d_q, d)")
        if self.heads % self.kv_heads:
            raise LayoutError(f"{self.name}: {self.kv_heads} key heads do not divide {self.heads} query heads")
        if self.q.shape[1] != self.k.shape[1]:
            raise LayoutError(f"{self.name}: query heads are {self.q.shape[1]} wide, key heads {self.k.shape[1]}")
        for norm, weight in ((self.q_input, self.q), (self.k_input, self.k)):
            for part in (None, None) if norm is None else (norm.gain, norm.bias):
                if part is not None and part.shape != weight.shape[2:]:
                    width = weight.shape[2]
                    raise LayoutError(f"{self.name}: its input norm has {part.size} entries for a width of {width}")

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.q.shape[0])

    @property
    def kv_heads(self) -> int:
        """Number of key heads."""
        return int(self.k.shape[0])

    @property
    def d_q(self) -> int:
        """Width of a head."""
        return int(self.q.shape[1])

    @property
    def d_model(self) -> int:
        """Width of the queries' input."""
        return int(self.q.shape[2])
