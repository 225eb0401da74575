"""A store under other names: what torch.compile, FSDP and DataParallel put into names is taken out, in every format."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from qkspec.checkpoints.store import Store
from qkspec.qk import Array

_LAYERS = 4  # of DataParallel or DDP around one another
_WRAPPED = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(?=\.)")


class RenamedStore(Store):
    """A store whose tensors go by new names; ``names`` maps each new one to the one in the file."""

    def __init__(self, store: Store, names: Mapping[str, str]) -> None:
        self.format, self._store, self._names = store.format, store, names

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._store.shape(self._names[name])

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._store.dtype(self._names[name])

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        return self._store.read(self._names[name], rows)

    def close(self) -> None:
        """Release what is open."""
        self._store.close()

    @property
    def bytes_read(self) -> int | None:
        """Return the bytes read so far."""
        return self._store.bytes_read


def without_wrappers(store: Store) -> Store:
    """Return a store under names without wrappers' prefixes; the same store when it has none."""
    names = strip_wrappers({name: name for name in store.names()})
    return store if all(new == old for new, old in names.items()) else RenamedStore(store, names)


def strip_wrappers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what torch.compile, FSDP, activation checkpointing, Lightning Fabric and DataParallel add to names.

    Names stay as they are when two of them would become one.
    """
    names = {name: _WRAPPED.sub(r"\1", name).replace("..", ".").removeprefix(".") for name in tensors}
    for _ in range(_LAYERS):
        if not names or not all(name.startswith("module.") for name in names.values()):
            break
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    if len(set(names.values())) != len(names):
        return dict(tensors)
    return {names[old]: tensor for old, tensor in tensors.items()}
