"""One safetensors file: the header checked in full, then only the byte ranges that are asked for.

The format: 8 bytes with the header's length (little-endian), a JSON object {name: {dtype, shape, data_offsets}}, then
the data, which the tensors cover without gap or overlap. The reference reader keeps the last of two equal names, maps
the file into memory (a file that shrinks is then a bus error) and spends a gigabyte on a legal header of a million
empty tensors; hence this one.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NoReturn, cast

from qkspec.checkpoints.dtypes import BITS, FLOATS, SAFETENSORS, decode
from qkspec.checkpoints.files import Blob, LocalBlob
from qkspec.checkpoints.jsonfile import parse_object
from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError
from qkspec.qk import Array

MAX_HEADER = 16 << 20  # bytes; the format allows 100 MB, the largest header seen on the Hugging Face hub is under 5
MAX_DIMS = 16
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: ``start`` and ``stop`` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsStore(Store):
    """The tensors of one safetensors file."""

    format = "safetensors"

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self._entries, self.metadata = read_header(blob)

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._entries[name].dtype

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        entry = self._entries[name]
        check_float(self.blob.path, name, entry.dtype)
        shape, start, stop = entry.shape, entry.start, entry.stop
        if rows is not None:
            first, last = row_range(self.blob.path, name, shape, rows)
            stride = prod(shape[1:]) * BITS[entry.dtype] // 8
            start, stop, shape = entry.start + first * stride, entry.start + last * stride, (last - first, *shape[1:])
        return _read_values(self.blob, start, stop, entry.dtype).reshape(shape)

    def close(self) -> None:
        """Release what is open."""
        self.blob.close()

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far."""
        return self.blob.bytes_read


def _read_values(blob: Blob, start: int, stop: int, dtype: str) -> Array:
    """Read and decode a stretch, on disk in pieces that stay in the processor's cache: half the time of one."""
    if not isinstance(blob, LocalBlob) or stop - start <= _PIECE:
        return decode(blob.read(start, stop - start), dtype)
    import numpy as np

    if dtype in ("float32", "float64"):
        plain = np.empty((stop - start) * 8 // BITS[dtype], "<f4" if dtype == "float32" else "<f8")
        blob.read_into(start, plain.view(np.uint8).data)
        return cast(Array, plain.astype(dtype, copy=False))
    values = np.empty((stop - start) * 8 // BITS[dtype], np.float32)
    done = 0
    for at in range(start, stop, _PIECE):
        piece = decode(blob.read(at, min(_PIECE, stop - at)), dtype)
        values[done : done + piece.size] = piece
        done += piece.size
    return cast(Array, values)


def check_float(path: str, name: str, dtype: str) -> None:
    """Raise CheckpointError unless tensors of this dtype hold floating-point weights that can be decoded."""
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored as {dtype}, not as floating-point weights; "
            "if the model is quantised, convert it back to bfloat16 first"
        )


def row_range(path: str, name: str, shape: tuple[int, ...], rows: slice) -> tuple[int, int]:
    """Return the first row and the one after the last; CheckpointError unless ``shape`` has such contiguous rows."""
    if not shape:
        raise CheckpointError(f"{path}: tensor {name!r} is a single number and has no rows")
    first, last, by = rows.indices(shape[0])
    if by != 1 or (rows.stop is not None and rows.stop > shape[0]):
        raise CheckpointError(f"{path}: tensor {name!r} of shape {list(shape)} has no rows {rows.start} to {rows.stop}")
    return first, max(first, last)


def read_header(blob: Blob) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors in file order, and the ``__metadata__`` strings.

    Raises:
        CheckpointError: the header is too long, no JSON, repeats a name, or does not cover the file exactly.
    """
    if blob.size < 10:
        _refuse(blob, f"is {blob.size} bytes, too short for a safetensors file")
    length = int.from_bytes(blob.read(0, 8), "little")
    if length > MAX_HEADER:
        _refuse(blob, f"claims a header of {length} bytes, more than the {MAX_HEADER} that are read")
    if length + 8 > blob.size:
        _refuse(blob, f"claims a header of {length} bytes in a file of {blob.size}")
    head = bytes(blob.read(8, length))
    if head[:1] != b"{":
        _refuse(blob, "its header is no JSON object")
    raw = parse_object(head, blob.path, _pairs)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        _refuse(blob, "its __metadata__ is no object of strings")
    entries = {name: _entry(blob, name, item, 8 + length) for name, item in raw.items()}
    _check_cover(blob, entries, 8 + length)
    return entries, metadata


def _pairs(pairs: list[tuple[str, Any]]) -> object:
    # An entry becomes a tuple at once: a third of a dict's memory, and headers hold up to a hundred thousand.
    value = dict(pairs)
    if len(value) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name[:60]!r} stands in it twice")
    if value.keys() == {"dtype", "shape", "data_offsets"}:
        return value["dtype"], value["shape"], value["data_offsets"]
    return value


def _entry(blob: Blob, name: str, item: object, data: int) -> Entry:
    if not isinstance(item, tuple):
        _refuse(blob, f"its header says something other than dtype, shape and data_offsets of {name!r}")
    code, shape, offsets = item
    if not isinstance(code, str) or code not in SAFETENSORS:
        _refuse(blob, f"tensor {name!r} has the unknown dtype {str(code)[:40]!r}; a newer qkspec may read it")
    if not _counts(shape) or len(shape) > MAX_DIMS or not _counts(offsets) or len(offsets) != 2:
        _refuse(blob, f"the shape or the offsets of tensor {name!r} are not lists of whole numbers")
    dtype = SAFETENSORS[code]
    start, stop = offsets
    if (size := prod(shape) * BITS[dtype]) != 8 * (stop - start):
        _refuse(blob, f"tensor {name!r} needs {size / 8:.6g} bytes and has {stop - start:.6g}")
    return Entry(dtype, tuple(shape), data + start, data + stop)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _check_cover(blob: Blob, entries: Mapping[str, Entry], data: int) -> None:
    """Check that the tensors follow each other without a gap from the header's end to the file's end."""
    spans = sorted((entry.start, entry.stop, name) for name, entry in entries.items())
    if spans and spans[0][0] != data:
        _refuse(blob, f"tensor {spans[0][2]!r} does not start where the header ends")
    for (_, stop, before), (start, _, name) in pairwise(spans):
        if start != stop:
            _refuse(blob, f"tensors {before!r} and {name!r} leave a gap or overlap")
    end = spans[-1][1] if spans else data
    if end != blob.size:
        _refuse(blob, f"its header describes {end} bytes and the file has {blob.size}")


def _refuse(blob: Blob, what: str) -> NoReturn:
    raise CheckpointError(f"{blob.path}: {what}; it is damaged or incomplete, copy or save it again")
