"""A directory of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate): ranks' chunks, read as tensors.

``.metadata`` tells which box of each tensor lies where in which ``.distcp`` file (chunks.py); each box is a small
``torch.save`` file of its own. Only the boxes that hold the wanted rows are read.
"""

from collections.abc import Collection, Sequence
from contextlib import closing
from math import prod
from typing import NoReturn, cast

import numpy as np

from qkspec.checkpoints.chunks import Chunk, Metadata, Sharded
from qkspec.checkpoints.dtypes import BITS
from qkspec.checkpoints.files import Blob, Folder, Window
from qkspec.checkpoints.safetensors import check_float, row_range
from qkspec.checkpoints.store import Store
from qkspec.checkpoints.torchfile import Tensor, TorchFile
from qkspec.errors import CheckpointError
from qkspec.qk import Array

_MAX_OPEN = 128  # files of a rank each; many systems allow a process 256


class DcpStore(Store):
    """The model's tensors in a distributed checkpoint; the optimizer's are left out."""

    format = "dcp"

    def __init__(self, folder: Folder, metadata: str) -> None:
        self._folder, self._path = folder, folder.join(metadata)
        self._blobs: dict[str, Blob] = {}
        self._sizes: dict[str, int] = {}
        with closing(folder.blob(metadata)) as blob:
            self._read = blob.size
            self._metadata = Metadata(blob)
        self._tensors = self._metadata.tensors
        if not self._tensors:
            _refuse(self._path, "lists no tensors of a model; give the directory that holds the model's state")
        if missing := folder.missing(self._metadata.files()):
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
        chunks = self._metadata.chunks(name)
        if sum(prod(chunk.shape) for chunk in chunks) != prod(tensor.shape):
            _refuse(self._path, f"the chunks of tensor {name!r} do not make up its shape {list(tensor.shape)}")
        if not tensor.shape:
            return self._chunk(name, tensor, chunks[0], None)
        self._check(name, tensor, chunks)
        first, last = row_range(self._path, name, tensor.shape, rows or slice(None))
        # What no chunk covers stays NaN: a hole must never pass for weights.
        wide = np.float64 if tensor.dtype == "float64" else np.float32
        whole = cast(Array, np.full((last - first, *tensor.shape[1:]), np.nan, dtype=wide))
        for chunk in chunks:
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

    def _check(self, name: str, tensor: Sharded, chunks: Sequence[Chunk]) -> None:
        """Refuse pieces that are larger than their place in their file, before memory is taken for them."""
        bits = BITS[tensor.dtype]
        for chunk in chunks:
            if chunk.file not in self._sizes:
                self._sizes[chunk.file] = self._blob(chunk.file).size
            if chunk.offset + chunk.length > self._sizes[chunk.file]:
                Window(self._blob(chunk.file), chunk.offset, chunk.length)  # says what is wrong
            if 8 * chunk.length < prod(chunk.shape) * bits:
                _refuse(self._path, f"places a piece of tensor {name!r} in {chunk.file}, which has no room for it")

    def _chunk(self, name: str, tensor: Sharded, chunk: Chunk, rows: slice | None) -> Array:
        file = TorchFile(Window(self._blob(chunk.file), chunk.offset, chunk.length))
        if not isinstance(file.root, Tensor) or (file.root.shape, file.root.dtype) != (chunk.shape, tensor.dtype):
            _refuse(file.blob.path, f"does not hold the piece of tensor {name!r} that .metadata places there")
        return file.read(name, file.root, rows)

    def _blob(self, name: str) -> Blob:
        if name not in self._blobs:
            if len(self._blobs) >= _MAX_OPEN:
                oldest = self._blobs.pop(next(iter(self._blobs)))
                self._read += oldest.bytes_read
                oldest.close()
            self._blobs[name] = self._folder.blob(name)
        return self._blobs[name]


def _refuse(path: str, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: {what}")
