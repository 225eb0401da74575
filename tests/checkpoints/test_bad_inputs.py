"""What strangers and broken saves put on a disk: every case ends quickly in one sentence that names the file.

A case is a name and a function that writes something below a folder and returns the path to open. None may raise
anything but our own errors, take long, warn, print, hang, run code, or leave the folder changed.
"""

import io
import json
import os
import pickle  # noqa: TID251 - to write what must never be loaded
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from qkspec.checkpoints.sequence import find_runs
from qkspec.errors import InputError

Case = Callable[[Path], Path]
F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def safetensors(header: Any, data: bytes = bytes(16), *, length: int | None = None) -> Case:
    """Write a safetensors file with this header (bytes, or a value for JSON)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()

    def write(folder: Path) -> Path:
        path = folder / "bad.safetensors"
        path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
        return path

    return write


def raw(data: bytes, name: str = "bad.pt") -> Case:
    """Write these bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def tensor(**changes: Any) -> Case:
    """Write a safetensors header with one changed entry."""
    return safetensors({"a": {**F32, **changes}})


HEADERS: dict[str, Case] = {
    "nothing": raw(b"", "bad.safetensors"),
    "three bytes": raw(b"abc", "bad.safetensors"),
    "length only": raw(bytes(8), "bad.safetensors"),
    "length of zero": safetensors(b"", length=0),
    "length beyond the file": safetensors({"a": F32}, length=1 << 20),
    "length of 2^63": safetensors({"a": F32}, length=1 << 63),
    "length of 2^64 - 1": safetensors({"a": F32}, length=(1 << 64) - 1),
    "length of 100 MB": safetensors({"a": F32}, length=100_000_000),
    "length one short": safetensors({"a": F32}, length=len(json.dumps({"a": F32})) - 1),
    "length one long": safetensors({"a": F32}, length=len(json.dumps({"a": F32})) + 1),
    "not JSON": safetensors(b"{this is no JSON}"),
    "a list": safetensors(b'[{"a": 1}]      '),
    "text before": safetensors(b' {"a": 1}'),
    "no UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "UTF-16": safetensors(json.dumps({"a": F32}).encode("utf-16")),
    "deep lists": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep objects": safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "many empty lists": safetensors(b'{"a":[' + b"[]," * 1_500_000 + b"[]]}"),
    "a number of 5,000 digits": safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'
    ),
    "NaN in the shape": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "infinity in the offsets": safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,Infinity]}}'),
    "a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "a key twice": safetensors(b'{"a":{"dtype":"F32","dtype":"F64","shape":[4],"data_offsets":[0,16]}}'),
    "no dtype": safetensors({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "more keys": safetensors({"a": {**F32, "quant": "x"}}),
    "entry is a number": safetensors({"a": 5}),
    "entry is null": safetensors({"a": None}),
    "entry is text": safetensors({"a": "F32"}),
    "metadata is a list": safetensors({"__metadata__": [1], "a": F32}),
    "metadata of numbers": safetensors({"__metadata__": {"x": 1}, "a": F32}),
    "metadata nested": safetensors({"__metadata__": {"x": {"y": "z"}}, "a": F32}),
    "unknown dtype": tensor(dtype="F31"),
    "hostile dtype": tensor(dtype="\x1b[31m\n::error::" * 100),
    "dtype is a number": tensor(dtype=32),
    "dtype is a list": tensor(dtype=["F32"]),
    "negative shape": tensor(shape=[-2, -2]),
    "shape of floats": tensor(shape=[2.0, 2.0]),
    "shape of booleans": tensor(shape=[True, True]),
    "shape of text": tensor(shape="22"),
    "shape null": tensor(shape=None),
    "shape too large": tensor(shape=[1 << 40, 1 << 40]),
    "shape that overflows 64 bits to fit": tensor(shape=[1 << 33, 1 << 33, 4]),
    "shape with 60 axes": tensor(shape=[1] * 60),
    "shape does not fit": tensor(shape=[2, 3]),
    "offsets swapped": tensor(data_offsets=[16, 0]),
    "offsets negative": tensor(data_offsets=[-16, 0]),
    "offsets three": tensor(data_offsets=[0, 8, 16]),
    "offsets of text": tensor(data_offsets=["0", "16"]),
    "offsets of booleans": tensor(data_offsets=[False, True]),
    "offsets beyond the file": tensor(data_offsets=[16, 32]),
    "offsets at 2^62": tensor(data_offsets=[1 << 62, (1 << 62) + 16]),
    "a gap before": safetensors({"a": {**F32, "data_offsets": [4, 20]}}, bytes(20)),
    "a gap between": safetensors({"a": F32, "b": {**F32, "data_offsets": [20, 36]}}, bytes(36)),
    "an overlap": safetensors({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, bytes(24)),
    "the same bytes twice": safetensors({"a": F32, "b": F32}),
    "bytes left over": safetensors({"a": F32}, bytes(17)),
    "bytes missing": safetensors({"a": F32}, bytes(15)),
    "integers only": safetensors({"a": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}),
    "four-bit floats": safetensors({"a": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}),
    "complex": safetensors({"a": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}),
    "a hostile name": safetensors({"\x1b]0;x\x07\n::error::\u202e<script>": {**F32, "data_offsets": [0, 17]}}),
    "half a surrogate as a name": safetensors(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,15]}}'),
}


def folder_of(files: dict[str, bytes | str | Any], name: str = "model-folder") -> Case:
    """Write a folder with these files; a value that is neither bytes nor text becomes JSON."""

    def write(folder: Path) -> Path:
        inner = folder / name
        inner.mkdir()
        for file, content in files.items():
            data = (
                content
                if isinstance(content, bytes)
                else (content if isinstance(content, str) else json.dumps(content)).encode()
            )
            (inner / file).write_bytes(data)
        return inner

    return write


GOOD = save({"h.0.attn.q": torch.ones(2, 2)})
INDEX = "model.safetensors.index.json"


def index(content: Any) -> Case:
    """Write an index beside one good shard."""
    return folder_of({INDEX: content, "part.safetensors": GOOD})


INDEXES: dict[str, Case] = {
    "empty": index(b""),
    "no JSON": index("{"),
    "a list": index([1, 2]),
    "null": index(None),
    "a number": index(5),
    "NaN": index("NaN"),
    "no weight_map": index({"metadata": {}}),
    "weight_map empty": index({"weight_map": {}}),
    "weight_map a list": index({"weight_map": ["a"]}),
    "weight_map text": index({"weight_map": "part.safetensors"}),
    "weight_map nested": index({"weight_map": {"a": {"b": "part.safetensors"}}}),
    "a shard above": index({"weight_map": {"a": "../part.safetensors"}}),
    "an absolute shard": index({"weight_map": {"a": "/etc/passwd"}}),
    "a shard below": index({"weight_map": {"a": "x/part.safetensors"}}),
    "a shard with a backslash": index({"weight_map": {"a": "..\\part.safetensors"}}),
    "a shard with NUL": index({"weight_map": {"a": "part\0.safetensors"}}),
    "a URL": index({"weight_map": {"a": "https://example.com/x.safetensors"}}),
    "a shard that is a number": index({"weight_map": {"a": 5}}),
    "a shard that is not there": index({"weight_map": {"a": "other.safetensors"}}),
    "itself": index({"weight_map": {"a": INDEX}}),
    "a tensor that is not in its shard": index({"weight_map": {"a": "part.safetensors"}}),
    "deep": index('{"weight_map":' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}"),
    "too large": index(" " * (17 << 20)),
    "5,000 shards": index({"weight_map": {f"a{i}": f"s{i}.safetensors" for i in range(5000)}}),
    "twice the byte order mark": index(b"\xef\xbb\xbf\xef\xbb\xbf{}"),
    "latin-1": index(b'{"weight_map": {"\xe4": "part.safetensors"}}'),
}


def config(content: Any) -> Case:
    """Write a config beside good weights."""
    return folder_of({"config.json": content, "model.safetensors": GOOD})


CONFIGS: dict[str, Case] = {
    "empty": config(b""),
    "no JSON": config("{'a': 1}"),
    "a list": config([]),
    "text": config('"gpt2"'),
    "null": config("null"),
    "NaN": config('{"n_head": NaN}'),
    "infinity": config('{"n_head": -Infinity}'),
    "deep": config('{"a":' * 100_000 + "1" + "}" * 100_000),
    "no UTF-8": config(b'{"a": "\xff"}'),
    "UTF-16": config('{"a": 1}'.encode("utf-16")),
    "too large": config('{"a": "' + "x" * (9 << 20) + '"}'),
    "a number of 5,000 digits": config('{"n_head": ' + "9" * 5000 + "}"),
    "half of it": config('{"n_head": 12, "n_'),
    "zeros": config(bytes(100)),
}


def archive(
    records: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, edit: Callable[[bytearray], None] | None = None
) -> bytes:
    """Return a zip file of these records."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for name, data in records.items():
            out.writestr(name, data)
    data = bytearray(stream.getvalue())
    if edit:
        edit(data)
    return bytes(data)


def saved(value: Any, *, zipped: bool = True) -> bytes:
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def program(code: bytes, **records: bytes) -> Case:
    """Write a torch file whose pickle is this program."""
    return raw(
        archive(
            {
                "x/data.pkl": code,
                "x/version": b"3\n",
                "x/data/0": bytes(64),
                **{f"x/{k}": v for k, v in records.items()},
            }
        )
    )


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def call(function: Any, *args: Any) -> Case:
    """Write a torch file that calls a function when it is unpickled."""
    return program(pickle.dumps({"state_dict": Call(function, *args)}, 2))


def one_tensor(
    storage: bytes = b"FloatStorage",
    key: bytes = b"0",
    count: int = 16,
    offset: int = 0,
    shape: bytes = b"K\x04K\x04\x86",
    stride: bytes = b"K\x04K\x01\x86",
) -> Case:
    """Write a torch file with one tensor {"a": ...} built by hand."""
    text = b"X" + struct.pack("<I", len(key)) + key
    number = b"\x8a\x09" + count.to_bytes(9, "little", signed=True)
    start = b"\x8a\x09" + offset.to_bytes(9, "little", signed=True)
    code = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        + storage
        + b"\n"
        + text
        + b"X\x03\x00\x00\x00cpu"
        + number
        + b"tQ"
        + start
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )
    return program(code)


def clobber(at: int, data: bytes) -> Callable[[bytearray], None]:
    """Return an edit that overwrites bytes; a negative position counts from the end."""

    def edit(file: bytearray) -> None:
        where = at if at >= 0 else len(file) + at
        file[where : where + len(data)] = data

    return edit


def twice() -> bytes:
    """Return a zip file with one name twice."""
    data = bytearray(archive({"x/data.pkl": b"}.", "x/data/0": bytes(4), "x/data/1": bytes(4)}))
    return bytes(data.replace(b"x/data/1", b"x/data/0"))


OK = pickle.dumps({"a": 1}, 2)
RECORDS = {"x/data.pkl": OK, "x/data/0": bytes(64)}
STATE = saved({"a": torch.ones(40, 40), "b": torch.ones(3)})
LEGACY = saved({"a": torch.ones(40, 40), "b": torch.ones(3)}, zipped=False)

ARCHIVES: dict[str, Case] = {
    "a zip header alone": raw(b"PK\x03\x04"),
    "an end record alone": raw(b"PK\x03\x04" + b"PK\x05\x06" + bytes(18)),
    "half a file": raw(STATE[: len(STATE) // 2]),
    "all but a byte": raw(STATE[:-1]),
    "zeros at the end": raw(STATE[:-200] + bytes(200)),
    "not torch's": raw(archive({"readme.txt": b"hello"})),
    "two top folders": raw(archive({**RECORDS, "y/data.pkl": OK})),
    "no pickle": raw(archive({"x/data/0": bytes(4)})),
    "no storage": raw(archive({"x/data.pkl": pickle.dumps({"a": 1}, 2)})),
    "deflated": raw(archive(RECORDS, method=zipfile.ZIP_DEFLATED)),
    "a deflated bomb": raw(archive({**RECORDS, "x/data.pkl": bytes(50_000_000)}, method=zipfile.ZIP_DEFLATED)),
    "bzip2": raw(archive(RECORDS, method=zipfile.ZIP_BZIP2)),
    "a name twice": raw(twice()),
    "a directory of 2^32 entries": raw(archive(RECORDS, edit=clobber(-12, b"\xff\xff"))),
    "a directory of 4 GB": raw(archive(RECORDS, edit=clobber(-10, b"\xfe\xff\xff\xff"))),
    "a directory at 4 GB": raw(archive(RECORDS, edit=clobber(-6, b"\xfe\xff\xff\xff"))),
    "a directory at 0": raw(archive(RECORDS, edit=clobber(-6, bytes(4)))),
    "a comment of 65,535": raw(archive(RECORDS, edit=clobber(-2, b"\xff\xff"))),
    "a zip64 locator to nowhere": raw(
        archive(RECORDS)[:-22] + b"PK\x06\x07" + bytes(4) + b"\xff" * 8 + bytes(4) + archive(RECORDS)[-22:]
    ),
    "a pickle of 33 MB": raw(archive({"x/data.pkl": b"]" * (33 << 20)})),
    "big-endian": raw(archive({**RECORDS, "x/byteorder": b"big"})),
    "TorchScript": raw(archive({**RECORDS, "x/constants.pkl": b")."})),
    "a Word document": raw(archive({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"})),
    "a NumPy archive": raw(archive({"a.npy": b"\x93NUMPY\x01\x00"})),
    "a wheel": raw(archive({"pkg/__init__.py": b"", "pkg-1.dist-info/METADATA": b""})),
}

TENSORS: dict[str, Case] = {
    "more elements than stored": one_tensor(count=1 << 40),
    "a storage of -1": one_tensor(count=-1),
    "a storage of 2^62": one_tensor(count=1 << 62),
    "a shape outside its storage": one_tensor(shape=b"K\x10K\x10\x86"),
    "a shape of 2^40": one_tensor(shape=b"\x8a\x06\x00\x00\x00\x00\x00\x01K\x04\x86", stride=b"K\x00K\x00\x86"),
    "stride 0 claims 65,536 squared": one_tensor(
        shape=b"J\x00\x00\x01\x00J\x00\x00\x01\x00\x86", stride=b"K\x00K\x00\x86"
    ),
    "a negative stride": one_tensor(stride=b"J\xff\xff\xff\xffK\x01\x86"),
    "a negative offset": one_tensor(offset=-4),
    "an offset at the end": one_tensor(offset=16),
    "shape and stride of two lengths": one_tensor(stride=b"K\x01\x85"),
    "a shape of text": one_tensor(shape=b"X\x01\x00\x00\x004K\x04\x86"),
    "a shape of booleans": one_tensor(shape=b"\x88\x88\x86"),
    "a shape that is a list": one_tensor(shape=b"]"),
    "20 axes": one_tensor(shape=b"(" + b"K\x01" * 20 + b"t", stride=b"(" + b"K\x01" * 20 + b"t"),
    "a storage that is not there": one_tensor(key=b"7"),
    "a storage elsewhere": one_tensor(key=b"../../etc/passwd"),
    "a storage type of its own": one_tensor(storage=b"os"),
    "a quantised storage": one_tensor(storage=b"QInt8Storage"),
    "integers": one_tensor(storage=b"IntStorage"),
    "a meta tensor": raw(saved({"a": torch.ones(2, device="meta")})),
    "a sparse tensor": raw(saved({"a": torch.eye(3).to_sparse()})),
    "nothing but the optimizer's moments": raw(saved({"optimizer": {"state": {}}, "epoch": 3})),
    "a bare tensor": raw(saved(torch.ones(2))),
    "two models": raw(saved({"left": {"a": torch.ones(1)}, "right": {"a": torch.ones(1)}})),
}

PROGRAMS: dict[str, Case] = {
    "os.system": call(os.system, "touch RAN"),
    "eval": call(eval, "open('RAN', 'w')"),
    "exec": call(exec, "open('RAN', 'w')"),
    "open": call(open, "RAN", "w"),
    "subprocess": call(subprocess.Popen, ["touch", "RAN"]),
    "getattr": call(getattr, 5, "real"),
    "import": call(__import__, "antigravity"),
    "torch.load": call(torch.load, "RAN"),  # noqa: TID251 - named, not called
    "a nested pickle": call(pickle.loads, pickle.dumps(Call(os.system, "touch RAN"))),
    "a call on a call": program(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstRR."),
    "a call of text": program(b"\x80\x02X\x01\x00\x00\x00a)R."),
    "INST": program(b"(X\x02\x00\x00\x00lsios\nsystem\n."),
    "OBJ": program(b"(cos\nsystem\nX\x02\x00\x00\x00lso."),
    "an extension code": program(b"\x80\x02\x82\x01."),
    "a text persistent id": program(b"Pmodule\n."),
    "an out-of-band buffer": program(b"\x80\x05\x97."),
    "nothing": program(b""),
    "only the end": program(b"."),
    "no end": program(b"\x80\x02}"),
    "protocol 200": program(b"\x80\xc8}."),
    "unknown opcode": program(b"\xf0\xf1."),
    "memo that was never set": program(b"h\x07."),
    "a mark below the stack": program(b"t."),
    "text of 4 GB": program(b"X\xff\xff\xff\xffabc."),
    "bytes of 2^63": program(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc."),
    "a frame of 2^63": program(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."),
    "a decimal of 100,000 digits": program(b"L" + b"9" * 100_000 + b"L\n."),
    "a dict with a list as key": program(b"\x80\x02}]Ns."),
    "itself inside itself": program(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a million nested lists": program(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."),
    "doubling tuples": program(b"\x80\x02)" + b"q\x00h\x00\x86" * 1000 + b"."),
    "three million nulls": program(b"\x80\x02(" + b"N" * 3_000_000 + b"t."),
}

OLD: dict[str, Case] = {
    "the magic number alone": raw(LEGACY[:15]),
    "half a file": raw(LEGACY[: len(LEGACY) // 2]),
    "all but a byte": raw(LEGACY[:-1]),
    "a storage's length changed": raw(LEGACY.replace(struct.pack("<q", 1600), struct.pack("<q", 1601))),
    "a storage's length huge": raw(LEGACY.replace(struct.pack("<q", 1600), struct.pack("<q", 1 << 60))),
    "a call": raw(LEGACY[:15] + pickle.dumps(Call(os.system, "touch RAN"), 2)),
    "a call in the system record": raw(
        LEGACY[:15] + pickle.dumps(1001, 2) + pickle.dumps(Call(os.system, "touch RAN"), 2)
    ),
    "big-endian": raw(LEGACY[:15] + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2)),
    "keys that are numbers": raw(LEGACY[:15] + b"".join(pickle.dumps(v, 2) for v in (1001, {}, {"a": 1}, [1, 2]))),
    "keys without tensors": raw(LEGACY[:15] + b"".join(pickle.dumps(v, 2) for v in (1001, {}, {"a": 1}, ["1"]))),
}


def special(make: Callable[[Path], object]) -> Case:
    """Create something that is no regular file."""

    def write(folder: Path) -> Path:
        make(folder / "odd.safetensors")
        return folder / "odd.safetensors"

    return write


def unix_socket(path: Path) -> None:
    """Leave a socket on the disk."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


FILES: dict[str, Case] = {
    "a FIFO": special(os.mkfifo),
    "a socket": special(unix_socket),
    "a device": special(lambda path: path.symlink_to("/dev/zero")),
    "a terminal": special(lambda path: path.symlink_to("/dev/tty")),
    "a link to itself": special(lambda path: path.symlink_to(path)),
    "a link to nothing": special(lambda path: path.symlink_to("nowhere")),
    "an empty folder": special(Path.mkdir),
    "/proc": special(lambda path: path.symlink_to("/proc/self/status")),
    "zeros": raw(bytes(4096)),
    "text": raw(b"these are no weights\n" * 20),
    "one byte": raw(b"P"),
    "a Git LFS pointer": raw(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "model.safetensors"
    ),
    "GGUF": raw(b"GGUF\x03\x00\x00\x00" + bytes(100), "model.gguf"),
    "GGUF in disguise": raw(b"GGUF\x03\x00\x00\x00" + bytes(100), "model.safetensors"),
    "GGML": raw(b"lmgg" + bytes(100), "ggml.bin"),
    "HDF5": raw(b"\x89HDF\r\n\x1a\n" + bytes(100), "tf_model.h5"),
    "NumPy": raw(b"\x93NUMPY\x01\x00" + bytes(100), "a.npy"),
    "gzip": raw(b"\x1f\x8b\x08" + bytes(100), "model.pt"),
    "zstandard": raw(b"\x28\xb5\x2f\xfd" + bytes(100), "model.pt"),
    "a web page": raw(b"<!DOCTYPE html><html><title>404</title>", "model.safetensors"),
    "XML": raw(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "model.safetensors"),
    "a bare pickle": raw(pickle.dumps({"a": 1}), "model.pkl"),
    "tar": raw(bytes(257).replace(b"\0", b"a") + b"ustar\x0000" + bytes(300), "model.tar"),
    "ONNX": raw(b"\x08\x07\x12\x07pytorch\x1a\x05" + bytes(50), "model.onnx"),
    "a PNG": raw(b"\x89PNG\r\n\x1a\n" + bytes(50), "model.bin"),
    "a name with escapes": raw(b"", "\x1b[31mred\n::error::.pt"),
}

FOLDERS: dict[str, Case] = {
    "nothing": folder_of({}),
    "only a config": folder_of({"config.json": {"model_type": "gpt2"}}),
    "only an optimizer": folder_of({"optimizer.pt": STATE}, "checkpoint-5"),
    "a step without weights": folder_of({"trainer_state.json": {"global_step": 5}}, "checkpoint-5"),
    "a shard of two": folder_of({"model-00001-of-00002.safetensors": GOOD}),
    "a shard of 999,999": folder_of({"model-00001-of-999999.safetensors": GOOD}),
    "a shard of none": folder_of({"model-00001-of-00000.safetensors": GOOD}),
    "an adapter": folder_of({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": GOOD}),
    "an adapter's file": lambda folder: (
        folder_of({"adapter_model.safetensors": GOOD})(folder) / "adapter_model.safetensors"
    ),
    "LoRA factors": folder_of({"model.safetensors": save({"h.0.attn.q.lora_A.weight": torch.ones(2, 2)})}),
    "GPTQ": folder_of({"model.safetensors": save({"h.0.attn.q_proj.qweight": torch.ones(2, 2, dtype=torch.int32)})}),
    "fp8 without its scale": folder_of(
        {
            "model.safetensors": save({"h.0.attn.q.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}),
            "config.json": {"quantization_config": {"quant_method": "fp8"}},
        }
    ),
    "a scale of the wrong shape": folder_of(
        {
            "model.safetensors": save(
                {"q.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "q.weight_scale": torch.ones(7, 5)}
            )
        }
    ),
    "distributed data without metadata": folder_of({"__0_0.distcp": b"x"}, "step-5"),
    "metadata that is no pickle": folder_of({".metadata": b"hello", "__0_0.distcp": b"x"}),
    "metadata that is empty": folder_of({".metadata": b""}),
    "metadata that calls": folder_of({".metadata": pickle.dumps(Call(os.system, "touch RAN"))}),
    "metadata of another kind": folder_of({".metadata": pickle.dumps({"a": 1})}),
    "metadata with storages": folder_of({".metadata": b"\x80\x02X\x01\x00\x00\x00aQ."}),
    "metadata too large": folder_of({".metadata": b"]" * (33 << 20)}),
    "ZeRO stage 3": folder_of({"zero_pp_rank_0_mp_rank_00_model_states.pt": STATE}, "global_step5"),
    "tensor parallel": folder_of(
        {"mp_rank_00_model_states.pt": STATE, "mp_rank_01_model_states.pt": STATE}, "global_step5"
    ),
    "pipeline parallel": folder_of({"layer_00-model_00-model_states.pt": STATE}, "global_step5"),
    "Meta's parts": folder_of({"consolidated.00.pth": STATE, "consolidated.01.pth": STATE}),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "header": HEADERS, "index": INDEXES, "config": CONFIGS, "archive": ARCHIVES, "tensor": TENSORS,
        "pickle": PROGRAMS, "old": OLD,
        "file": FILES, "folder": FOLDERS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


def open_and_read(path: Path) -> None:
    """Do what analyze does, for every tensor."""
    for run in find_runs([str(path)]):
        for source in run.sources:
            store = source.open().store
            try:
                for name in store.names():
                    store.shape(name), store.dtype(name), store.read(name)
            finally:
                store.close()


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("bomb")])
def test_a_bad_input_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = CASES[name](tmp_path)
    before, start = listing(tmp_path), time.monotonic()
    with pytest.raises(InputError) as caught:
        open_and_read(path)
    assert time.monotonic() - start < 20
    message = str(caught.value)
    named = path.name if path.name.isprintable() else path.parent.name
    assert named in message or str(path) in message, message
    assert "\n" not in message.replace(str(path), ""), message
    assert len(message) < 500 + len(str(path))
    assert listing(tmp_path) == before
    assert not (tmp_path / "RAN").exists()
    assert capfd.readouterr() == ("", "")


def test_the_good_ones_beside_them_are_read(tmp_path: Path) -> None:
    for step in (1, 3):
        (tmp_path / "run" / f"step-{step}").mkdir(parents=True)
        save_file({"q": torch.ones(2, 2)}, tmp_path / "run" / f"step-{step}" / "model.safetensors")
    (tmp_path / "run" / "step-2").mkdir()
    (tmp_path / "run" / "step-2" / "model.safetensors").write_bytes(GOOD[:20])
    (run,) = find_runs([str(tmp_path / "run")])
    outcomes = []
    for source in run.sources:
        try:
            outcomes.append((source.step, len(source.open().store.names())))
        except InputError:
            outcomes.append((source.step, 0))
    assert outcomes == [(1, 1), (2, 0), (3, 1)]


def entries(count: int) -> bytes:
    """Return a header of empty tensors, as dense as the format allows."""
    return b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % n for n in range(count)) + b"}"


BOMBS: dict[str, Case] = {
    "bomb: a header of 290,000 tensors": safetensors(entries(290_000)),
    "bomb: metadata of a million short strings": safetensors(
        b'{"__metadata__":{' + b",".join(b'"%x":""' % n for n in range(1_000_000)) + b"}}"
    ),
    "bomb: a config of lists": config("[" * 500_000 + "]" * 500_000),
    "bomb: a config of short strings": config("{" + ",".join(f'"{n:x}":""' for n in range(600_000)) + "}" + " " * 10),
    "bomb: an index of short strings": index("{" + ",".join(f'"{n:x}":""' for n in range(1_300_000)) + "}"),
    "bomb: dicts and memo": program(b"\x80\x04(" + b"}\x94" * 990_000),
    "bomb: memo only": program(b"\x80\x04}" + b"\x94" * 1_990_000),
    "bomb: short text": program(b"\x80\x04(" + b"\x8c\x02ab" * 1_900_000),
    "bomb: one list in itself": program(b"\x80\x04]\x94" + b"h\x00a" * 990_000),
    "bomb: a directory of 200,000 records": raw(archive({f"x/{n}": b"" for n in range(60_000)})),
}
CASES |= BOMBS
HEAVY = [
    *BOMBS,
    *("header: deep lists", "header: many empty lists", "archive: a deflated bomb", "archive: a pickle of 33 MB"),
    *("pickle: a million nested lists", "pickle: three million nulls", "tensor: stride 0 claims 65,536 squared"),
]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", HEAVY)
def test_memory_stays_bounded(name: str, tmp_path: Path) -> None:
    path = CASES[name](tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from qkspec.checkpoints.sequence import find_runs\nfrom qkspec.errors import InputError\n"
        "def peak():\n    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "base = peak()\n"
        "try:\n    store = find_runs([sys.argv[1]])[0].sources[0].open().store\n"
        "    [store.read(name) for name in store.names()]\n"
        "except InputError:\n    pass\nprint((peak() - base) // 1024)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    print(f"{name}: +{result.stdout.strip()} MB")
    assert int(result.stdout) < 300


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150
    print(f"{len(CASES)} bad inputs")
