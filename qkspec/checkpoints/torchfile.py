"""A file of ``torch.save`` (.pt, .pth, .bin, .ckpt): its pickle read as data, its tensors as byte ranges.

Neither torch nor its unpickler is used: see pickles.py for why. What is opened is a few kilobytes of structure; a
tensor's bytes are read when they are asked for. Both containers are read, the zip file of torch 1.6 and later and the
older row of pickles.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, cast

import numpy as np

from qkspec.checkpoints.dtypes import BITS, decode
from qkspec.checkpoints.files import Blob, Window
from qkspec.checkpoints.pickles import MAX_PICKLE, PLAIN, Handlers, Reader, Symbol
from qkspec.checkpoints.safetensors import MAX_DIMS, check_float, row_range
from qkspec.checkpoints.store import Store
from qkspec.checkpoints.torchzip import LEGACY, ZIP, Archive
from qkspec.errors import CheckpointError
from qkspec.qk import Array

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``count`` numbers of one dtype, saved under ``key``."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; ``offset`` and ``stride`` count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def reach(self) -> int:
        """The elements of ``dtype`` from the storage's start that the view touches."""
        if 0 in self.shape:
            return self.offset
        return self.offset + 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor that is not plain strided numbers: what it is, and what to do."""

    why: str


class TorchFile:
    """What one ``torch.save`` call wrote: ``root`` is its value, with Tensor in place of tensors.

    Args:
        blob: the file.
        limit: bytes that its pickle may have.
        handlers: what stands in for the calls that it may make; torch's own by default.
    """

    def __init__(self, blob: Blob, limit: int = MAX_PICKLE, handlers: Handlers | None = None) -> None:
        self.blob, self._limit, self._handlers = blob, limit, handlers or HANDLERS
        self._windows: dict[str, Window] = {}
        self._archive: Archive | None = None
        if bytes(blob.read(0, min(4, blob.size))) == ZIP:
            self.root = self._open_zip()
        else:
            self.root = self._open_legacy()

    def _open_zip(self) -> Any:
        self._archive = archive = Archive(self.blob)
        if "constants.pkl" in archive.records or any(name.startswith("code/") for name in archive.records):
            _refuse(
                self.blob, "is a TorchScript program; save the model's state_dict with torch.save or as safetensors"
            )
        if archive.text("byteorder") == "big":
            _refuse(self.blob, "was written on a big-endian machine; save it again as safetensors")
        window = archive.window("data.pkl")
        if window.size > self._limit:
            _refuse(self.blob, f"its pickle is {window.size} bytes, more than {self._limit}; save only the weights")
        return Reader(self.blob.path, self._handlers, _storage).load(window.read(0, window.size))

    def _open_legacy(self) -> Any:
        data = self.blob.read(0, min(self._limit, self.blob.size))
        counts: dict[str, Storage] = {}

        def persistent(identifier: Any) -> Any:
            value = _storage(identifier)
            if isinstance(value, Storage):
                counts[value.key] = value
            return value

        reader = Reader(self.blob.path, self._handlers, persistent)
        reader.load(data, len(LEGACY))  # the protocol's version
        system = reader.load(data, reader.end)
        if isinstance(system, dict) and system.get("little_endian") is False:
            _refuse(self.blob, "was written on a big-endian machine; save it again as safetensors")
        root, keys = reader.load(data, reader.end), reader.load(data, reader.end)
        at = reader.end
        for key in keys if isinstance(keys, list) else ():
            storage = counts.get(key) if isinstance(key, str) else None
            if storage is None:
                _refuse(self.blob, "its list of storages does not match its tensors; it is damaged, save it again")
            size = storage.count * BITS[storage.dtype] // 8
            if int.from_bytes(self.blob.read(at, 8), "little") != storage.count:
                _refuse(self.blob, f"storage {key!r} is not as long as its tensors say; it is damaged, save it again")
            self._windows[key] = Window(self.blob, at + 8, size)
            at += 8 + size
        return root

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise CheckpointError unless the tensor lies inside its storage, and the storage inside the file."""
        path = self.blob.path
        bits = BITS[tensor.dtype]
        if 8 * self._size(tensor.storage.key) < tensor.storage.count * BITS[tensor.storage.dtype]:
            _refuse(self.blob, f"the data of tensor {name!r} is shorter than the file says; copy or save it again")
        if tensor.reach * bits > tensor.storage.count * BITS[tensor.storage.dtype]:
            _refuse(
                self.blob, f"tensor {name!r} of shape {list(tensor.shape)} reaches outside its storage; save it again"
            )
        if prod(tensor.shape) > tensor.storage.count * BITS[tensor.storage.dtype] // bits:
            raise CheckpointError(
                f"{path}: tensor {name!r} of shape {list(tensor.shape)} repeats its "
                f"{tensor.storage.count} stored numbers; "
                "save a contiguous copy"
            )

    def read(self, name: str, tensor: Tensor, rows: slice | None = None) -> Array:
        """Return a tensor's values, as Store.read does."""
        check_float(self.blob.path, name, tensor.dtype)
        self.check(name, tensor)
        if rows is not None:
            first, last = row_range(self.blob.path, name, tensor.shape, rows)
            offset = tensor.offset + first * tensor.stride[0]
            shape = (last - first, *tensor.shape[1:])
            tensor = Tensor(tensor.storage, tensor.dtype, offset, shape, tensor.stride)
        if 0 in tensor.shape:
            return decode(bytearray(), tensor.dtype).reshape(tensor.shape)
        size = BITS[tensor.dtype] // 8
        data = self._window(tensor.storage.key).read(tensor.offset * size, (tensor.reach - tensor.offset) * size)
        flat = decode(data, tensor.dtype)
        strides = tuple(step * flat.itemsize for step in tensor.stride)
        view = cast(Array, np.lib.stride_tricks.as_strided(flat, tensor.shape, strides))
        return view if view.flags.c_contiguous else view.copy()

    def _size(self, key: str) -> int:
        """Return the bytes that a storage has in the file, from the directory alone."""
        if self._archive is not None and f"data/{key}" in self._archive.records:
            return self._archive.records[f"data/{key}"].size
        return self._window(key).size

    def _window(self, key: str) -> Window:
        if key not in self._windows:
            if self._archive is None:
                _refuse(self.blob, f"has no storage {key[:80]!r}; it is damaged, save it again")
            self._windows[key] = self._archive.window(f"data/{key}")
        return self._windows[key]


class TorchStore(Store):
    """The tensors of one state dict inside a torch file."""

    format = "torch"

    def __init__(self, file: TorchFile, tensors: Mapping[str, Tensor | Unreadable]) -> None:
        self.file, self._tensors = file, dict(tensors)
        for name, tensor in self._tensors.items():
            if isinstance(tensor, Tensor):
                file.check(name, tensor)

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._plain(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._plain(name).dtype

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        return self.file.read(name, self._plain(name), rows)

    def close(self) -> None:
        """Release what is open."""
        self.file.blob.close()

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far."""
        return self.file.blob.bytes_read

    def _plain(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if isinstance(tensor, Unreadable):
            raise CheckpointError(f"{self.file.blob.path}: tensor {name!r} is {tensor.why}")
        return tensor


def _storage(identifier: Any) -> Any:
    if isinstance(identifier, tuple) and identifier and identifier[0] == "module":  # a whole model of torch before 1.6
        return identifier[1]
    _, cls, key, _, count, *view = identifier
    if not isinstance(cls, Symbol) or cls.name not in _STORAGE_DTYPES or not isinstance(key, str):
        raise ValueError
    if type(count) is not int or not 0 <= count < 1 << 60:
        raise ValueError
    if view and view[0] is not None:
        return Unreadable("a view into a shared storage of a very old torch; load it there and save a contiguous copy")
    return Storage(key, _STORAGE_DTYPES[cls.name], count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor | Unreadable:
    if isinstance(storage, Unreadable):
        return storage
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise TypeError
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or len(shape) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 1 << 60 for n in numbers)
    ):
        raise ValueError
    return Tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    tensor = _tensor(storage, offset, shape, stride)
    if isinstance(tensor, Unreadable):
        return tensor
    if not isinstance(dtype, Symbol) or dtype.module != "torch" or dtype.name not in BITS:
        return Unreadable("of a dtype that qkspec does not know; save it as bfloat16 or float32")
    return Tensor(tensor.storage, dtype.name, offset, shape, stride)


def _unreadable(why: str) -> Any:
    return lambda *_: Unreadable(why)


HANDLERS: Handlers = {
    **PLAIN,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _kind, args, _state: _subclass(function, args),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable(
        "on the meta device and was saved without its numbers; save it from the CPU"
    ),
    "torch._utils._rebuild_sparse_tensor": _unreadable("sparse; save it with .to_dense()"),
    "torch._utils._rebuild_sparse_csr_tensor": _unreadable("sparse; save it with .to_dense()"),
    "torch._utils._rebuild_nested_tensor": _unreadable("a nested tensor; save its parts"),
    "torch._utils._rebuild_qtensor": _unreadable("quantised; save it with .dequantize()"),
    "torch._utils._rebuild_device_tensor_from_numpy": _unreadable("an array of another device; save it from the CPU"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch._utils._rebuild_wrapper_subclass": _unreadable(
        "one rank's shard (a DTensor) or another wrapped tensor; "
        "save the full state dict (full_tensor(), or dcp_to_torch_save)"
    ),
    "torch.nn.parameter.Parameter": lambda data, *_: data,
}


def _subclass(function: Any, args: Any) -> Any:
    handler = HANDLERS.get(function.path) if isinstance(function, Symbol) else None
    if handler is None or not isinstance(args, tuple):
        return Unreadable("of a tensor subclass; save a plain copy (tensor.as_subclass(torch.Tensor))")
    return handler(*args)


def _refuse(blob: Blob, what: str) -> NoReturn:
    raise CheckpointError(f"{blob.path}: {what}")
