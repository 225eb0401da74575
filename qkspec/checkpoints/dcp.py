"""A directory of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate): ranks' chunks, read as tensors.

``.metadata`` is a pickle that torch's own reader unpickles without any restriction; here it is read as data
(pickles.py). It tells, for each tensor, which box of it lies where in which ``.distcp`` file; each box is a small
``torch.save`` file of its own. Only the boxes that hold the wanted rows are read.
"""

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any, NoReturn, cast

import numpy as np

from qkspec.checkpoints.dtypes import BITS
from qkspec.checkpoints.files import Blob, Folder, Window
from qkspec.checkpoints.pickles import MAX_PICKLE, PLAIN, Instance, Reader, Symbol, keep
from qkspec.checkpoints.safetensors import MAX_DIMS, check_float, row_range
from qkspec.checkpoints.store import Store
from qkspec.checkpoints.torchfile import Tensor, TorchFile
from qkspec.checkpoints.union import is_bare
from qkspec.checkpoints.wrappers import WEIGHT_KEYS, is_decoy
from qkspec.errors import CheckpointError
from qkspec.qk import Array

_HOME = "torch.distributed.checkpoint.metadata"
_HANDLERS = {**PLAIN, f"{_HOME}._MEM_FORMAT_ENCODING": keep(f"{_HOME}._MEM_FORMAT_ENCODING")}
# A chunk takes about 70 steps of the pickle, 80 µs, 20 values and 1.5 KB, so that 120,000 are read: 80 layers in 160
# parts without their optimizer, or in 55 with it. In 1,000 parts they have 720,000, in 102 MB of metadata.
_MAX_STEPS = 12_000_000
_PACKERS = {
    "MetadataIndex": lambda state: (state["fqn"], state.get("offset")),
    "_StorageInfo": lambda state: (
        *(state[key] for key in ("relative_path", "offset", "length")),
        state.get("transform_descriptors"),
    ),
    "ChunkStorageMetadata": lambda state: (state["offsets"], state["sizes"]),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One box of a tensor: where it starts, its size along each axis, and the bytes that hold it."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Sharded:
    """A tensor in chunks."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class DcpStore(Store):
    """The model's tensors in a distributed checkpoint; the optimizer's are left out."""

    format = "dcp"

    def __init__(self, folder: Folder, metadata: str) -> None:
        self._folder, self._path = folder, folder.join(metadata)
        self._blobs: dict[str, Blob] = {}
        with closing(folder.blob(metadata)) as blob:
            self._read = blob.size
            self._tensors = _read_metadata(blob)
        if not self._tensors:
            _refuse(self._path, "lists no tensors of a model; give the directory that holds the model's state")
        files = {chunk.file for tensor in self._tensors.values() for chunk in tensor.chunks}
        if missing := folder.missing(files):
            _refuse(self._path, f"refers to {missing[0]!r}, which is not there; the save or the copy is not complete")

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._tensors[name].dtype

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        tensor = self._tensors[name]
        check_float(self._path, name, tensor.dtype)
        if sum(prod(chunk.shape) for chunk in tensor.chunks) != prod(tensor.shape):
            _refuse(self._path, f"the chunks of tensor {name!r} do not make up its shape {list(tensor.shape)}")
        if not tensor.shape:
            return self._chunk(name, tensor, tensor.chunks[0], None)
        first, last = row_range(self._path, name, tensor.shape, rows or slice(None))
        # What no chunk covers stays NaN: a hole must never pass for weights.
        wide = np.float64 if tensor.dtype == "float64" else np.float32
        whole = cast(Array, np.full((last - first, *tensor.shape[1:]), np.nan, dtype=wide))
        for chunk in tensor.chunks:
            low, high = max(first, chunk.start[0]), min(last, chunk.start[0] + chunk.shape[0])
            if low < high:
                part = self._chunk(name, tensor, chunk, slice(low - chunk.start[0], high - chunk.start[0]))
                columns = (slice(a, a + n) for a, n in zip(chunk.start[1:], chunk.shape[1:], strict=True))
                whole[(slice(low - first, high - first), *columns)] = part
        return whole

    def close(self) -> None:
        """Release what is open."""
        for blob in self._blobs.values():
            blob.close()

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far."""
        return self._read + sum(blob.bytes_read for blob in self._blobs.values())

    def _chunk(self, name: str, tensor: Sharded, chunk: Chunk, rows: slice | None) -> Array:
        if chunk.file not in self._blobs:
            self._blobs[chunk.file] = self._folder.blob(chunk.file)
        file = TorchFile(Window(self._blobs[chunk.file], chunk.offset, chunk.length))
        if not isinstance(file.root, Tensor) or (file.root.shape, file.root.dtype) != (chunk.shape, tensor.dtype):
            _refuse(file.blob.path, f"does not hold the piece of tensor {name!r} that .metadata places there")
        return file.read(name, file.root, rows)


def _read_metadata(blob: Blob) -> dict[str, Sharded]:
    """Return the model's tensors by name; CheckpointError unless ``blob`` is a distributed checkpoint's metadata."""
    if blob.size > MAX_PICKLE:
        _refuse(
            blob.path, f"is {blob.size} bytes, more than {MAX_PICKLE}; gather it with torch's dcp_to_torch_save first"
        )
    root = Reader(blob.path, _HANDLERS, packers=_PACKERS, limit=_MAX_STEPS).load(BytesIO(blob.read(0, blob.size)))
    try:
        fields = _fields(root, "Metadata")
        places = _places(fields["storage_data"])
        paths = fields.get("planner_data")
        tensors = {}
        for name, value in fields["state_dict_metadata"].items():
            short = _model_name(name, paths)
            if short is not None and isinstance(value, Instance) and value.cls.name == "TensorStorageMetadata":
                tensors[short] = _sharded(name, value, places)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{blob.path}: is not the metadata of a distributed checkpoint; it is damaged") from error
    return tensors


def _places(storage: Mapping[Any, Instance]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """Return file, offset and length of every chunk, by tensor and the chunk's start."""
    places = {}
    for key, value in storage.items():
        name, start = _state(key.args[0], "MetadataIndex")
        file, offset, length, transformed = _state(value, "_StorageInfo")
        if transformed or not is_bare(file) or not _counts((offset, length)):
            raise ValueError
        places[name, tuple(start or ())] = file, offset, length
    return places


def _sharded(name: str, value: Instance, places: Mapping[Any, tuple[str, int, int]]) -> Sharded:
    fields = _fields(value, "TensorStorageMetadata")
    shape = tuple(fields["size"])
    properties = fields["properties"].state
    dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
    if not isinstance(dtype, Symbol) or dtype.name not in BITS or len(shape) > MAX_DIMS or not _counts(shape):
        raise ValueError
    chunks = []
    for chunk in fields["chunks"]:
        start, size = map(tuple, _state(chunk, "ChunkStorageMetadata"))
        if not len(start) == len(size) == len(shape) or not _counts(start + size):
            raise ValueError
        if any(a + n > whole for a, n, whole in zip(start, size, shape, strict=True)):
            raise ValueError
        if prod(size):
            chunks.append(Chunk(start, size, *places[name, start]))
    return Sharded(dtype.name, shape, tuple(chunks))


def _model_name(name: str, paths: object) -> str | None:
    """Return a tensor's name inside the model; None when it belongs to the optimizer or elsewhere in the trainer."""
    path = paths.get(name) if isinstance(paths, dict) else None
    parts = [str(part) for part in path] if isinstance(path, tuple) and path else name.split(".")
    if is_decoy(parts[0]):
        return None
    if isinstance(path, tuple) and len(parts) > 1 and parts[0] in WEIGHT_KEYS:
        return ".".join(parts[1:])
    return name


def _fields(value: Any, cls: str) -> dict[str, Any]:
    state = _state(value, cls)
    if not isinstance(state, dict):
        raise TypeError
    return state


def _state(value: Any, cls: str) -> Any:
    if not isinstance(value, Instance) or value.cls.name != cls:
        raise TypeError
    return value.state


def _counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 60 for number in numbers)


def _refuse(path: str, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: {what}")
