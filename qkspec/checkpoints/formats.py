"""Which container is this, and which files of a folder belong to it: the table of formats, and how each is opened."""

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from qkspec.checkpoints import deepspeed
from qkspec.checkpoints.config import find_step
from qkspec.checkpoints.files import Blob, Folder
from qkspec.checkpoints.names import is_temporary, is_trainer_state
from qkspec.checkpoints.safetensors import SafetensorsStore
from qkspec.checkpoints.store import Store
from qkspec.checkpoints.torchzip import LEGACY, ZIP
from qkspec.checkpoints.union import UnionStore, complete_set, is_shard, read_index, unite
from qkspec.errors import CheckpointError


@dataclass(frozen=True)
class Opened:
    """A checkpoint's tensors, with the config and step that its own files hold (not those beside it)."""

    store: Store
    config: Mapping[str, Any]
    architecture: bool = False
    step: int | None = None


@dataclass(frozen=True)
class Format:
    """A container.

    Args:
        name: as Store.format and messages say it.
        find: the files of a folder that make one checkpoint, () when the folder holds none of this format.
        open: those files as a store.
        files: the files of a folder that are a checkpoint each.
    """

    name: str
    find: Callable[[Folder], tuple[str, ...]]
    open: Callable[[Folder, tuple[str, ...]], Opened]
    files: Callable[[Folder], tuple[str, ...]] = lambda _: ()


@dataclass(frozen=True)
class Place:
    """Where one checkpoint lies: some files of a folder, in one format."""

    folder: Folder
    files: tuple[str, ...]
    format: Format


def find_place(folder: Folder) -> Place | None:
    """Return the checkpoint that a folder is, or None when it is none (it may hold several)."""
    for form in FORMATS:
        if files := form.find(folder):
            return Place(folder, files, form)
    return None


def open_place(place: Place) -> Opened:
    """Open a checkpoint: headers only.

    Raises:
        CheckpointError: it is damaged, or of no format that is read, with what to do where the format is known.
    """
    return place.format.open(place.folder, place.files)


def peek_step(folder: Folder, name: str) -> int | None:
    """Return the step that the trainer's state in a torch file names; None also when it cannot be read."""
    if not name.lower().endswith(_BINARIES):
        return None
    from qkspec.checkpoints.torchfile import TorchFile
    from qkspec.checkpoints.wrappers import children

    try:
        with closing(folder.blob(name)) as blob:
            return find_step(children(TorchFile(blob, _MAX_PEEK).root) or {})
    except CheckpointError:
        return None


def weight_files(folder: Folder) -> tuple[str, ...]:
    """Return the files of a folder that can be a checkpoint each, by name."""
    return tuple(name for form in FORMATS for name in form.files(folder))


def _candidates(suffixes: tuple[str, ...], folder: Folder) -> tuple[str, ...]:
    """Return the files with these suffixes that are no trainer state, no adapter and not half written."""
    return tuple(
        name
        for name, is_folder in sorted(folder.entries().items())
        if not is_folder
        and name.lower().endswith(suffixes)
        and not name.startswith((".", "adapter_"))
        and not is_trainer_state(name)
        and not is_temporary(name)
        and not is_shard(name)
    )


def _find(suffixes: tuple[str, ...], usual: tuple[str, ...], folder: Folder) -> tuple[str, ...]:
    """Return the index, the usual single file, a set of shards, or the only file of a format in a folder."""
    entries = folder.entries()
    indexes = sorted(name for name in entries if name.endswith(tuple(f"{suffix}.index.json" for suffix in suffixes)))
    preferred = [name for name in indexes if name.startswith(tuple(stem.partition(".")[0] + "." for stem in usual))]
    if preferred or indexes:
        return ((preferred or indexes)[0],)
    for name in usual:
        if entries.get(name) is False:
            return (name,)
    shards = [name for name in entries if name.endswith(suffixes) and is_shard(name) and not is_trainer_state(name)]
    if shards:
        return complete_set(shards, folder)
    files = _candidates(suffixes, folder)
    return files if len(files) == 1 else ()


def _open_files(folder: Folder, files: tuple[str, ...]) -> Opened:
    """Open a file, an index or a set of shards."""

    def open_shard(name: str) -> Store:
        return _open_file(folder, name).store

    form = "safetensors" if ".safetensors" in files[0] else "torch"
    if files[0].endswith(".index.json"):
        return Opened(UnionStore(form, folder.join(files[0]), read_index(folder, files[0]), open_shard), {})
    if len(files) > 1:
        return Opened(unite(form, folder, files, open_shard), {})
    return _open_file(folder, files[0])


def _open_file(folder: Folder, name: str) -> Opened:
    """Open one file as what it contains, whatever its suffix says."""
    blob = folder.blob(name)
    try:
        return Opened(SafetensorsStore(blob), {}) if _is_safetensors(blob) else _open_torch(blob)
    except BaseException:
        blob.close()
        raise


def _open_torch(blob: Blob) -> Opened:
    from qkspec.checkpoints.torchfile import TorchFile, TorchStore
    from qkspec.checkpoints.wrappers import find_state

    file = TorchFile(blob)
    state = find_state(file.root, blob.path)
    return Opened(TorchStore(file, state.tensors), state.config, state.architecture, state.step)


def _find_dcp(folder: Folder) -> tuple[str, ...]:
    """Return (".metadata",) when a folder is a distributed checkpoint, () when it is none.

    Raises:
        CheckpointError: it has the ranks' files without the metadata, which is written last.
    """
    entries = folder.entries()
    if entries.get(METADATA) is False:
        return (METADATA,)
    if any(name.endswith(".distcp") for name in entries):
        raise CheckpointError(
            f"{folder.path}: has .distcp files without {METADATA}: the save is not complete; use an earlier step"
        )
    return ()


def _open_dcp(folder: Folder, files: tuple[str, ...]) -> Opened:
    from qkspec.checkpoints.dcp import DcpStore

    store = DcpStore(folder, files[0])
    if folder.entries().get(COMMON) is not False:
        return Opened(store, {})
    from qkspec.checkpoints.megatron import read_common

    config, step = read_common(folder)
    return Opened(store, config, bool(config), step)


# How files begin that people point us at, what they are, and what to do instead.
_KNOWN = (
    (
        rb"GGUF",
        "is a GGUF file, whose weights are quantised for llama.cpp",
        "give the safetensors model it was made from",
    ),
    (rb"(ggml|lmgg|tjgg)", "is a GGML file of an old llama.cpp", "give the safetensors model it was made from"),
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"),
    (rb"\x89HDF", "is an HDF5 file (Keras or TensorFlow)", "load it in its library and save safetensors"),
    (rb"\x93NUMPY", "is a NumPy array", "save a dict of named arrays with safetensors.numpy.save_file"),
    (rb"(\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh)", "is a compressed file", "unpack it first"),
    (
        rb".{257}ustar",
        "is a tar archive (torch before 0.1.10 wrote such files)",
        "unpack it, or load and save it again",
    ),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page, so the download went wrong", "download the file itself"),
    (
        rb"\x80[\x02-\x05]",
        "is a bare pickle, which torch.save does not write",
        "save it with torch.save or as safetensors",
    ),
    (rb"[\x08\x12].{0,8}(pytorch|tf2onnx|onnx)", "is an ONNX model", "give the checkpoint it was exported from"),
)


def _is_safetensors(blob: Blob) -> bool:
    """Tell the two containers apart by their first bytes; CheckpointError when it is neither."""
    head = bytes(blob.read(0, min(blob.size, 512)))
    if not head:
        _refuse(blob, "is empty", "the save or the copy did not finish")
    if head.startswith((ZIP, LEGACY)):
        return False
    if len(head) > 8 and head[8:9] == b"{":
        return True
    for pattern, what, then in _KNOWN:
        if re.match(pattern, head, re.I | re.S):
            _refuse(blob, what, then)
    if not head.strip(b"\0"):
        _refuse(blob, "begins with zeros", "the save or the copy did not finish")
    return _refuse(blob, "is neither safetensors nor a file of torch.save", "give a checkpoint file or its folder")


def _refuse(blob: Blob, what: str, then: str) -> NoReturn:
    raise CheckpointError(f"{blob.path}: {what}; {then}")


_MAX_PEEK = 1 << 20  # bytes of pickle, a tenth of a second: more is not read twice for the sake of a step
METADATA = ".metadata"  # of a distributed checkpoint
COMMON = "common.pt"  # beside it, of Megatron-core: the run's arguments
_BINARIES = (".bin", ".pt", ".pth", ".ckpt", ".th", ".pt.tar", ".pth.tar")
SAFETENSORS = Format(
    "safetensors",
    partial(_find, (".safetensors",), ("model.safetensors", "diffusion_pytorch_model.safetensors")),
    _open_files,
    partial(_candidates, (".safetensors",)),
)
TORCH = Format(
    "torch",
    partial(_find, _BINARIES, ("pytorch_model.bin",)),
    _open_files,
    partial(_candidates, _BINARIES),
)
DEEPSPEED = Format("torch", deepspeed.find, _open_files)
DCP = Format("dcp", _find_dcp, _open_dcp)

# In order of preference: where a folder holds one model in several containers, the first of these is read.
FORMATS = (SAFETENSORS, DCP, DEEPSPEED, TORCH)
