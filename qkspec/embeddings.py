"""Tokens that a checkpoint itself knows: rows of its embeddings, in place of x ~ N(0, I), for the map that it predicts.

What reaches the first attention layer is an embedding plus a position (in BERT also the type of a first sentence), and
the residual stream carries it on: measured maps of small GPTs were predicted with r = 0.93 so, against 0.87
isotropically, and their rank with 0.91 against 0.04. For deep layers it is an approximation, and nothing is known where
a checkpoint has no such tensors.
"""

import re
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from qkspec.attention import normalised
from qkspec.checkpoints.store import Checkpoint, Store
from qkspec.errors import CheckpointError
from qkspec.qk import QKLayer

F32 = NDArray[np.float32]

SEQUENCES, TOKENS = 4, 64

_TOKENS = re.compile(
    r"(?:^|\.)(?:wte|embed_tokens|word_embeddings|embed_in|tok_embeddings|token_embedding|word_embedding)(?:\.weight)?$"
)
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|position_embeddings|embed_positions)(?:\.weight)?$")
_TYPES = re.compile(r"(?:^|\.)token_type_embeddings(?:\.weight)?$")
_LEARNED = re.compile(
    r"(?:^|\.)(?:wpe|pos_embed|positional_embedding|(?:embed_)?positions?(?:_embeddings?)?)(?:\.weight)?$"
)


def inputs(checkpoint: Checkpoint, layer: QKLayer, *, seed: int = 0) -> F32 | None:
    """Return what a module would be given if its input were embeddings of random tokens, behind its input norm.

    Args:
        checkpoint: with the tensors of its embeddings.
        layer: the module.
        seed: of the tokens.

    Returns:
        (4, T', d) with T' at most 64; None where there are no token embeddings of the module's width, in
        cross-attention, and where the input norm is not known.
    """
    d = layer.q.shape[2]
    if layer.k.shape[2] != d or layer.block.endswith("cross") or "input norm" in layer.unknown:
        return None
    store = checkpoint.store
    name = _find(store, _TOKENS, d)
    if name is None:
        return None
    length = min(TOKENS, layer.context or TOKENS)
    chosen = np.random.default_rng((seed, d, store.shape(name)[0])).integers(
        0, store.shape(name)[0], (SEQUENCES, length)
    )
    whole = store.read(name)
    x = np.asarray(whole[chosen.ravel()], dtype=np.float32).reshape(SEQUENCES, length, d)
    place = _find(store, _POSITIONS, d)
    if place is not None and store.shape(place)[0] >= length:
        x = x + np.asarray(store.read(place, slice(0, length)), dtype=np.float32)
    kind = _find(store, _TYPES, d)
    if kind is not None:
        x = x + np.asarray(store.read(kind, slice(0, 1)), dtype=np.float32)
    return np.stack([normalised(sequence, layer.q_input) for sequence in x])


def positions(checkpoint: Checkpoint, layer: QKLayer) -> int | None:
    """Return how many tokens a module's input can have, from the table of learned positions; None where there is none.

    Of several (a text and an image tower) the one that shares most of the module's path is meant.
    """
    store, path = checkpoint.store, layer.name.split(".")
    found: dict[int, int] = {}
    for name in store.names():
        if not _LEARNED.search(name):
            continue
        try:
            shape = store.shape(name)
        except CheckpointError:  # of a shard that holds nothing of this module
            continue
        if len(shape) in (2, 3) and shape[-1] == layer.d_model and (1, *shape)[-3] == 1:
            shared = sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(name.split("."), path, strict=False))
            )
            found.setdefault(shared, shape[-2])
    return found[max(found)] if found and found[max(found)] > 1 else None


def _find(store: Store, pattern: re.Pattern[str], d: int) -> str | None:
    found = [name for name in store.names() if pattern.search(name) and len(store.shape(name)) == 2]
    return next((name for name in found if store.shape(name)[1] == d), None)
