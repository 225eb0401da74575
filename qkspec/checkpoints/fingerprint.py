"""Two identities of a checkpoint's files: one that a cache can trust here, and one that travels with a report.

``fingerprint`` rests on what the operating system keeps of a file: size, modification and change time in nanoseconds,
inode and device. A program cannot write to a file without moving its change time, so a change in place is noticed
even when size and modification time were restored. Sampled bytes are mixed in for file systems with coarse clocks.
For a URL it rests on what the server says (entity tag, version, hash or time, and size).

``digest`` rests on content alone: names, sizes, the first and last 64 KiB of every file (which hold the headers and
directories of all formats) and 4 KiB at 16 evenly spaced places. Equal content gives an equal digest anywhere. It
tells checkpoints of a run apart; it is no proof against someone who alters bytes between the samples.
"""

from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b

from qkspec.checkpoints.config import CONFIGS, STATES
from qkspec.checkpoints.files import Blob, Folder, LocalBlob
from qkspec.checkpoints.formats import COMMON, Place
from qkspec.checkpoints.union import read_index

_EDGE, _SAMPLE, _SAMPLES = 1 << 16, 1 << 12, 16


def fingerprint(place: Place, folder: Folder) -> str:
    """Return 32 hexadecimal digits that change when a file of the checkpoint does, or raise CheckpointError.

    Args:
        place: the files that hold the weights.
        folder: where config and trainer state may lie, when not in ``place.folder``.
    """
    state = blake2b(digest_size=16)
    for holder, name in (*_weights(place), *_beside(place.folder), *_beside(folder)):
        with closing(holder.blob(name)) as blob:
            state.update(repr((blob.path, blob.stamp())).encode("utf-8", "surrogateescape"))
            if isinstance(blob, LocalBlob):
                _mix(state, blob)
    return state.hexdigest()


def size(place: Place) -> int:
    """Return the bytes of the files that hold the weights, or raise CheckpointError."""
    total = 0
    for holder, name in _weights(place):
        with closing(holder.blob(name)) as blob:
            total += blob.size
    return total


def digest(place: Place, folder: Folder) -> str:
    """Return "blake2b-sampled:" and 32 digits for files on disk, "blake2b-stamps:" and 32 digits for a URL."""
    state, kind = blake2b(digest_size=16), "blake2b-sampled"
    beside = () if place.folder.path == folder.path else _beside(folder)
    for holder, name in sorted((*_weights(place), *_beside(place.folder), *beside), key=lambda item: item[1]):
        with closing(holder.blob(name)) as blob:
            state.update(repr((name, blob.size)).encode("utf-8", "surrogateescape"))
            if isinstance(blob, LocalBlob):
                _mix(state, blob)
            else:
                kind = "blake2b-stamps"
                state.update(blob.stamp().encode())
    return f"{kind}:{state.hexdigest()}"


def _weights(place: Place) -> Iterator[tuple[Folder, str]]:
    for name in place.files:
        yield place.folder, name
        if name.endswith(".index.json"):
            yield from ((place.folder, shard) for shard in sorted(set(read_index(place.folder, name).values())))
    if place.format.name == "dcp":
        yield from ((place.folder, name) for name in sorted(place.folder.entries()) if name.endswith(".distcp"))


def _beside(folder: Folder) -> Iterator[tuple[Folder, str]]:
    entries = folder.entries()
    yield from ((folder, name) for name in (*CONFIGS, *STATES, COMMON) if entries.get(name) is False)


def _mix(state: "blake2b", blob: Blob) -> None:
    """Mix in a file's edges and samples."""
    state.update(blob.read(0, min(_EDGE, blob.size)))
    if blob.size > _EDGE:
        last = min(_EDGE, blob.size - _EDGE)
        state.update(blob.read(blob.size - last, last))
    if blob.size > 2 * _EDGE + _SAMPLES * _SAMPLE:
        step = (blob.size - _SAMPLE) // (_SAMPLES + 1)
        for index in range(1, _SAMPLES + 1):
            state.update(blob.read(index * step, _SAMPLE))
