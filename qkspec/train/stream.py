"""Safetensors written and read one tensor at a time: weights divided among processes are never whole all at once."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qkspec.checkpoints.dtypes import SAFETENSORS
from qkspec.train.world import whole

_CODES = {name: code for code, name in SAFETENSORS.items()}


def write(
    path: Path | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write tensors; where some are divided, every process of the run calls this with its parts, in the same order.

    Args:
        path: of the file, or None in a process that only gives its parts.
        tensors: whole, or divided among the processes.
        metadata: for the file's header.
        dtype: what floating tensors become; None leaves them as they are.
    """
    kinds = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # each starts at a multiple of its size
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * kinds[name].itemsize
        code = _CODES[str(kinds[name]).removeprefix("torch.")]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    if path is None:
        for name in order:
            whole(tensors[name])
        return
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            values = whole(tensors[name].detach()).to("cpu", kinds[name]).contiguous()
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)


def read(path: Path, place: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors by name, each placed before the next is read."""
    with safe_open(path, framework="pt") as file:
        return {name: place(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
