"""One checkpoint in several files: shards with or without an index, presented as one store."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import closing

from qkspec.checkpoints.files import Folder
from qkspec.checkpoints.jsonfile import read_object
from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError
from qkspec.qk import Array

MAX_INDEX = 16 << 20  # bytes; the index of DeepSeek-V3 (91,991 tensors) has 8.9 million
MAX_SHARDS = 4096
_SHARD = re.compile(r"-(\d{3,6})-of-(\d{3,6})(?=\.[^.]+$)")


class UnionStore(Store):
    """Tensors spread over files; a file is opened when one of its tensors is first asked for.

    Args:
        form: the container of the files.
        path: the index, for messages.
        places: the file that holds each tensor.
        open_shard: opens a file by its bare name.
    """

    def __init__(self, form: str, path: str, places: Mapping[str, str], open_shard: Callable[[str], Store]) -> None:
        self.format, self._path, self._places, self._open_shard = form, path, places, open_shard
        self._stores: dict[str, Store] = {}

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._store(name).shape(name)

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._store(name).dtype(name)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        return self._store(name).read(name, rows)

    def close(self) -> None:
        """Release what is open."""
        for store in self._stores.values():
            store.close()

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far."""
        return sum(store.bytes_read or 0 for store in self._stores.values())

    def _store(self, name: str) -> Store:
        shard = self._places[name]
        if shard not in self._stores:
            self._stores[shard] = self._open_shard(shard)
        store = self._stores[shard]
        if name not in store.names():
            raise CheckpointError(
                f"{self._path}: places tensor {name!r} in {shard!r}, which does not hold it; save it again"
            )
        return store


def read_index(folder: Folder, name: str) -> dict[str, str]:
    """Return the ``weight_map`` of an index file: the shard that holds each tensor.

    The shards' names are judged as text: a bare file name beside the index. (A rule against links would refuse
    every model in a Hugging Face cache.)

    Raises:
        CheckpointError: the index is damaged, names a file elsewhere, or one of its shards is not there.
    """
    with closing(folder.blob(name)) as blob:
        places = read_object(blob, MAX_INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{blob.path}: has no weight_map, so it is no index of shards; give the checkpoint's folder"
        )
    shards = set()
    for tensor, shard in places.items():
        if not isinstance(shard, str) or not is_bare(shard):
            raise CheckpointError(
                f"{blob.path}: places tensor {tensor[:80]!r} in {str(shard)[:80]!r}, which is no plain file name; "
                "shards must lie beside their index"
            )
        shards.add(shard)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{blob.path}: names {len(shards)} shards, more than the {MAX_SHARDS} that are read")
    check_present(folder, shards, blob.path)
    return places


def is_bare(name: str) -> bool:
    """Say whether a name from inside a file is a plain name in its own folder, on any operating system."""
    return 0 < len(name) < 256 and name not in (".", "..") and not set(name) & set("/\\:\0\n\r")


def check_present(folder: Folder, shards: Collection[str], path: str) -> None:
    """Raise CheckpointError, naming the first, when some of ``shards`` are not in the folder."""
    missing = folder.missing(shards)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} shards are not there ({missing[0]!r} is the first); "
            "the copy or the save is not complete"
        )


def complete_set(names: Collection[str], folder: Folder) -> tuple[str, ...]:
    """Return, in order, shards ``...-00001-of-00003...`` that have no index; CheckpointError unless all are there."""
    first = next((match for name in sorted(names) if (match := _SHARD.search(name))), None)
    if first is None:
        return ()
    head, tail, total = first.string[: first.start()], first.string[first.end() :], int(first[2])
    if not 1 <= total <= MAX_SHARDS:
        raise CheckpointError(f"{folder.join(first.string)}: counts {total} shards; {MAX_SHARDS} at most are read")
    width = len(first[1]), len(first[2])
    wanted = tuple(f"{head}-{n:0{width[0]}}-of-{total:0{width[1]}}{tail}" for n in range(1, total + 1))
    check_present(folder, wanted, folder.join(first.string))
    return wanted


def is_shard(name: str) -> bool:
    """Say whether a file's name marks it as one of several."""
    return _SHARD.search(name) is not None


def unite(form: str, folder: Folder, shards: Collection[str], open_shard: Callable[[str], Store]) -> UnionStore:
    """Open shards that have no index; CheckpointError when two of them hold one tensor."""
    stores = {shard: open_shard(shard) for shard in shards}
    places = {name: shard for shard, store in stores.items() for name in store.names()}
    if len(places) != sum(len(store.names()) for store in stores.values()):
        raise CheckpointError(f"{folder.path}: two of its shards hold the same tensor; they are not of one checkpoint")
    return UnionStore(form, folder.path, places, stores.__getitem__)
