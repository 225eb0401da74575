"""Megatron-core's distributed checkpoints, in which all layers of a block are one tensor with an axis for the layer.

``sharded_state_dict`` of a TransformerBlock whose layers are alike names their weights without a number
(``decoder.layers.self_attention.linear_qkv.weight``, shape [layers, rows, d]); here they get one again.
"""

import re
from collections.abc import Collection

from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError
from qkspec.qk import Array

_STACKED = re.compile(r"(.*\bdecoder\.layers)\.((?:self_attention|input_layernorm)\..+)")
_WITNESS = re.compile(r".*\bdecoder\.layers\.self_attention\.linear_qkv\.weight")
_MAX_NAMES = 100_000  # names are made here, so what a header claims must not decide how many


class StackedStore(Store):
    """A store whose stacked tensors are seen layer by layer; only the rows of a layer are read for it."""

    def __init__(self, store: Store, layers: int) -> None:
        self.format, self._store = store.format, store
        self._places: dict[str, tuple[str, int | None]] = {}
        held = frozenset(store.names())
        for name in held:
            match = _STACKED.fullmatch(name)
            if match is None or store.shape(name)[:1] != (layers,):
                self._places[name] = (name, None)
                continue
            for layer in range(layers):
                numbered = f"{match[1]}.{layer}.{match[2]}"
                if numbered in held:
                    raise CheckpointError(f"tensor {numbered[:80]!r} is there by itself and stacked; save it again")
                self._places[numbered] = (name, layer)

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without the axis of layers."""
        stored, layer = self._places[name]
        return self._store.shape(stored)[layer is not None :]

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._store.dtype(self._places[name][0])

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        stored, layer = self._places[name]
        if layer is None:
            return self._store.read(stored, rows)
        whole: Array = self._store.read(stored, slice(layer, layer + 1))[0]
        return whole if rows is None else whole[rows]

    def close(self) -> None:
        """Release what is open."""
        self._store.close()

    @property
    def bytes_read(self) -> int | None:
        """Return the bytes read so far."""
        return self._store.bytes_read


def unstacked(store: Store) -> Store:
    """Return a store whose layers have names of their own; the same store when none are stacked."""
    for name in store.names():
        if _WITNESS.fullmatch(name) and len(shape := store.shape(name)) == 3:
            stacked = sum(_STACKED.fullmatch(other) is not None for other in store.names())
            return StackedStore(store, shape[0]) if stacked * shape[0] <= _MAX_NAMES else store
    return store
