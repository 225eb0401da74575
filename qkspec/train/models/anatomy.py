"""What a probe needs to know of a block, whatever the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from qkspec.errors import UsageError


class Attention(Protocol):
    """An attention module that can show its logits; one without a softmax has ``maps`` instead."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the masked logits (batch, heads, tokens, tokens) of x (batch, tokens, d)."""


@dataclass(frozen=True)
class Anatomy:
    """One block of a model.

    Args:
        name: the attention module's path in the checkpoint.
        block: the module whose first argument is the block's input x.
        module: the attention module, called with the attention's input; it has ``logits``, or ``maps``.
        heads: attention heads.
        matrices: q, k, v, o, fc1, fc2, each (outputs, inputs); o W_v and W_2 W_1 are then plain products.
        vectors: gamma1, beta1, gamma2, beta2; the betas are missing with RMSNorm.
        causal: whether a token sees only itself and those before it.
        softmax: False for linear attention, which has maps but no logits.
    """

    name: str
    block: nn.Module
    module: nn.Module
    heads: int
    matrices: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    causal: bool
    softmax: bool = True


def vectors(first: nn.Module, second: nn.Module) -> dict[str, Tensor]:
    """Return the gains and biases of a block's two norms under the names of P, equation 1."""
    found = {}
    for i, norm in enumerate((first, second), start=1):
        for ours, theirs in (("gamma", "weight"), ("beta", "bias")):
            value = getattr(norm, theirs, None)
            if isinstance(value, Tensor):
                found[f"{ours}{i}"] = value
    return found


def choose(text: str, parts: Sequence[Anatomy]) -> dict[int, tuple[int, ...]]:
    """Return block ▸ heads of a choice: "all", blocks ("0,5") or heads of blocks ("5.0,5.3"); "" is none.

    UsageError for anything else, or for a block or head that the model does not have.
    """
    if text == "all":
        return {i: tuple(range(part.heads)) for i, part in enumerate(parts)}
    found: dict[int, tuple[int, ...]] = {}
    for word in text.replace(" ", "").split(",") if text else ():
        block, dot, head = word.partition(".")
        if not block.isdecimal() or (dot and not head.isdecimal()):
            raise UsageError(f"--maps {text!r} is no choice of heads: write all, blocks (0,5) or their heads (5.0,5.3)")
        if int(block) >= len(parts):
            raise UsageError(f"--maps {text!r}: the model has no block {block}, only 0 to {len(parts) - 1}")
        heads = range(parts[int(block)].heads)
        if dot and int(head) not in heads:
            raise UsageError(f"--maps {text!r}: block {block} has no head {head}, only 0 to {heads[-1]}")
        more = (int(head),) if dot else tuple(heads)
        found[int(block)] = tuple(dict.fromkeys(found.get(int(block), ()) + more))
    return found
