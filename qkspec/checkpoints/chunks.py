"""What the ``.metadata`` of a distributed checkpoint says: which box of which tensor lies where.

It is a pickle that torch's own reader unpickles without any restriction; here it is read as data (pickles.py). A
thousand ranks write hundreds of megabytes of it, so its records become columns of numbers while it is read.
"""

import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, cast

import numpy as np

from qkspec.checkpoints.files import Blob
from qkspec.checkpoints.pickles import PLAIN, Instance, Reader, Symbol, keep
from qkspec.checkpoints.safetensors import MAX_DIMS
from qkspec.checkpoints.union import is_bare
from qkspec.checkpoints.wrappers import WEIGHT_KEYS, is_decoy
from qkspec.errors import CheckpointError

# A chunk takes about 145 bytes of the file; what stays of it are its numbers, 40 bytes for the box and 40 for the
# place. 80 layers in 1,000 parts have 720,000 chunks in 102 MB, three times as many with their optimizer.
MAX_METADATA = 512 << 20  # bytes
MAX_NUMBERS = 256 << 20  # bytes
MAX_NAMES = 4096  # characters of a tensor's name and its file's together
_MAX_STEPS = 12_000_000  # of the pickle, beside those that build chunks

Boxes = np.ndarray[Any, np.dtype[np.int64]]
Columns = tuple[int, "array[int]"]  # how many numbers a row has, and all rows
_HOME = "torch.distributed.checkpoint.metadata"
_ENUMERATIONS = (f"{_HOME}._MEM_FORMAT_ENCODING", "torch.distributed.checkpoint.planner.WriteItemType")
_HANDLERS = {**PLAIN, **{path: keep(path) for path in _ENUMERATIONS}}
_NOWHERE: Columns = (3, array("q"))


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
    """A tensor in boxes: (boxes, 2, dims), where each starts and its sizes."""

    dtype: str
    shape: tuple[int, ...]
    boxes: Boxes


class Metadata:
    """The model's tensors in a distributed checkpoint; the optimizer's are left out.

    Args:
        blob: the file ``.metadata``.

    Raises:
        CheckpointError: it is damaged, too large, or no metadata of a distributed checkpoint.
    """

    def __init__(self, blob: Blob) -> None:
        self._path, self._left = blob.path, MAX_NUMBERS
        self._files: dict[str, int] = {}
        self._places: dict[str, Columns] = {}
        self._stored: dict[str, str] = {}  # a tensor's name in the model ▸ its name here
        if blob.size > MAX_METADATA:
            self._refuse(f"is {blob.size} bytes, more than {MAX_METADATA}; {_GATHER}")
        root = Reader(
            blob.path,
            _HANDLERS,
            packers={
                "MetadataIndex": lambda state: (state["fqn"], state.get("offset")),
                "_StorageInfo": self._storage,
                "ChunkStorageMetadata": lambda state: (state["offsets"], state["sizes"]),
                "TensorStorageMetadata": self._sharded,
                "SavePlan": lambda _: None,  # Megatron-core keeps each rank's for its next save
                "WriteItem": lambda _: None,
            },
            sinks={"MetadataIndex": self._place},
            limit=_MAX_STEPS,
        ).load(blob.read(0, blob.size))
        try:
            fields = _state(root, "Metadata")
            self.tensors = self._model(fields["state_dict_metadata"], fields.get("planner_data"))
            astray = fields["storage_data"] or not all(map(is_bare, self._files))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{blob.path}: {_NO_METADATA}") from error
        if astray:
            self._refuse(_NO_METADATA)

    def chunks(self, name: str) -> list[Chunk]:
        """Return the boxes of a tensor that hold anything, and where they lie."""
        width, rows = self._places.get(self._stored[name], _NOWHERE)
        files, numbers = list(self._files), iter(rows)
        places = {row[3:]: row[:3] for row in zip(*[numbers] * width, strict=True)}
        found = []
        for start, size in cast(Iterable[tuple[list[int], list[int]]], self.tensors[name].boxes.tolist()):
            if not prod(size):
                continue
            if (place := places.get(tuple(start))) is None:
                self._refuse(f"does not say where a piece of tensor {name!r} lies; it is damaged")
            found.append(Chunk(tuple(start), tuple(size), files[place[0]], place[1], place[2]))
        return found

    def files(self) -> set[str]:
        """Return the files that hold the model's tensors."""
        files = list(self._files)
        columns = (self._places.get(stored, _NOWHERE) for stored in self._stored.values())
        return {files[number] for number in {number for width, rows in columns for number in rows[::width]}}

    def _model(self, listed: Mapping[str, Any], paths: object) -> dict[str, Sharded]:
        for stored, value in listed.items():
            name = _model_name(stored, paths)
            if name is not None and isinstance(value, Instance) and value.cls.name == "TensorStorageMetadata":
                self._stored[name] = stored
        return {name: listed[stored].state for name, stored in self._stored.items()}

    def _sharded(self, state: Mapping[str, Any]) -> Sharded:
        shape, chunks, properties = state["size"], state["chunks"], state["properties"].state
        dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
        if not isinstance(dtype, Symbol) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
            raise ValueError
        self._charge(2 * len(shape) * len(chunks))
        pairs = [_state(chunk, "ChunkStorageMetadata") for chunk in chunks]
        boxes = np.array(pairs) if pairs and shape else np.zeros((len(pairs), 2, len(shape)), np.int64)
        whole = np.array(shape) if shape else np.zeros(0, np.int64)
        if boxes.dtype != np.int64 or boxes.shape[1:] != (2, len(shape)) or whole.dtype != np.int64:
            raise ValueError
        if (boxes < 0).any() or (boxes >= _MAX_COUNT).any() or (boxes.sum(1) > whole).any():
            raise ValueError
        return Sharded(dtype.name, shape, boxes)

    def _storage(self, state: Mapping[str, Any]) -> tuple[str, int, int]:
        if state.get("transform_descriptors"):
            self._refuse("says that its files are compressed or encrypted; load and save it without transforms")
        return state["relative_path"], state["offset"], state["length"]

    def _place(self, pairs: list[Any]) -> None:
        """Take alternating MetadataIndex and _StorageInfo."""
        for index, info in zip(pairs[::2], pairs[1::2], strict=True):
            name, start = _state(index, "MetadataIndex")
            file, offset, length = _state(info, "_StorageInfo")
            if not isinstance(name, str) or not isinstance(file, str) or len(name) + len(file) > MAX_NAMES:
                raise ValueError
            row = (self._files.setdefault(file, len(self._files)), offset, length, *(start or ()))
            width, rows = self._places.get(name) or self._places.setdefault(name, (len(row), array("q")))
            if len(row) != width or min(row) < 0:
                raise ValueError
            self._charge(width)
            rows.extend(row)

    def _charge(self, numbers: int) -> None:
        self._left -= 8 * numbers
        if self._left < 0:
            self._refuse(f"lists more chunks than {MAX_NUMBERS} bytes hold; {_GATHER}")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._path}: {what}")


_NO_METADATA = "is not the metadata of a distributed checkpoint; it is damaged"
_GATHER = "gather it with torch's dcp_to_torch_save first"
_MAX_COUNT = 1 << 60
_CHAINED = re.compile(r"^chained_\d+\.")  # Megatron-core, where experts have an optimizer of their own


def _model_name(name: str, paths: object) -> str | None:
    """Return a tensor's name inside the model; None when it belongs to the optimizer or elsewhere in the trainer."""
    path = paths.get(name) if isinstance(paths, dict) else None
    parts = [str(part) for part in path] if isinstance(path, tuple) and path else _CHAINED.sub("", name).split(".")
    if is_decoy(parts[0]):
        return None
    if isinstance(path, tuple) and len(parts) > 1 and parts[0] in WEIGHT_KEYS:
        return ".".join(parts[1:])
    return name


def _state(value: Any, cls: str) -> Any:
    if not isinstance(value, Instance) or value.cls.name != cls:
        raise TypeError
    return value.state
