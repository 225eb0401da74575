"""A store under other names: what torch.compile, FSDP and DataParallel put into names is taken out, in every format."""

from collections.abc import Collection, Mapping

from qkspec.checkpoints.store import Store
from qkspec.checkpoints.wrappers import strip_wrappers
from qkspec.qk import Array


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
