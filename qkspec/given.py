"""Attention maps of inputs that are not isotropic: embedded tokens, recorded activations, a run of the model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qkspec import activations, embeddings
from qkspec.attention import F32, MAP_TOKENS, logits, softmax
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import QkspecError
from qkspec.qk import QKLayer

if TYPE_CHECKING:
    from qkspec.measuring import Settings


def kinds(settings: "Settings") -> tuple[str, ...]:
    """Return the kinds of maps that settings ask for beside the predicted ones."""
    return tuple(
        dict.fromkeys(
            [
                *(["embedded"] if settings.embeddings else []),
                *(["measured"] if settings.activations is not None else []),
                *([settings.runner.kind] if settings.runner is not None else []),
            ]
        )
    )


def maps(checkpoint: Checkpoint, layer: QKLayer, settings: "Settings") -> Iterator[tuple[str, F32]]:
    """Yield (kind, maps (heads, t, t)) of one module, as ``of_inputs`` makes them; a kind that it lacks is left out."""
    if settings.embeddings:
        x = embeddings.inputs(checkpoint, layer, seed=settings.seed)
        if x is not None:
            yield "embedded", of_inputs(layer, x[0])
    try:
        if settings.activations is not None:
            own, keys = activations.of_module(activations.loaded(settings.activations), layer, checkpoint.name)
            if own is not None:
                yield "measured", of_inputs(layer, own[0], None if keys is None else keys[0])
        if settings.runner is not None:
            yield settings.runner.kind, settings.runner.maps(checkpoint, layer)
    except QkspecError:
        return


def of_inputs(layer: QKLayer, x: F32, y: F32 | None = None) -> F32:
    """Return a module's maps of one sequence, cut to its first 64 tokens and keys: (heads, t, t).

    Args:
        layer: the module.
        x: (tokens, d) what its query projection is given, behind the input norm.
        y: (tokens, d') likewise for the keys; None in self-attention.
    """
    whole = softmax(logits(layer, x, x if y is None else y), causal=layer.causal)
    side = min(MAP_TOKENS, *whole.shape[1:])
    return whole[:, :side, :side]
