"""A nested state of tensors and plain values, as one safetensors file: no pickle is written and none is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qkspec.errors import CheckpointError
from qkspec.train import stream

_KEY = "qkspec_state"


def dump(state: object, path: Path | None) -> None:
    """Write a state of dicts, lists, tuples, tensors, numbers, text and None; TypeError for anything else.

    Where tensors are divided among processes, each of them calls this; those that do not write have no path.
    """
    tensors: dict[str, Tensor] = {}
    tree = _fold(state, tensors)
    stream.write(path, tensors, {_KEY: json.dumps(tree)})


def load(path: Path, place: Callable[[tuple[Any, ...], Tensor], Tensor] = lambda _, tensor: tensor) -> Any:
    """Return what ``dump`` wrote, on the CPU, bit for bit; CheckpointError when the file is not whole or not ours.

    Args:
        path: of the file.
        place: what to keep of a tensor, told the keys that lead to it; each is read and placed before the next.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return _unfold(json.loads(metadata[_KEY]), lambda name, at: place(at, file.get_tensor(name)))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a training state that qkspec wrote; resume from another checkpoint"
        ) from error


def _fold(node: object, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach()
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[_fold(k, tensors), _fold(v, tensors)] for k, v in node.items()]}
    if isinstance(node, (list, tuple)):
        return {type(node).__name__: [_fold(child, tensors) for child in node]}
    if node is None or isinstance(node, (bool, int, float, str)):
        return {"value": node}
    raise TypeError(f"a training state cannot hold {type(node).__name__}")


def _unfold(node: dict[str, Any], read: Callable[[str, tuple[Any, ...]], Tensor], at: tuple[Any, ...] = ()) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return read(content, at)
    if kind == "dict":
        return {(key := _unfold(k, read)): _unfold(v, read, (*at, key)) for k, v in content}
    if kind in ("list", "tuple"):
        children = [_unfold(child, read, (*at, i)) for i, child in enumerate(content)]
        return tuple(children) if kind == "tuple" else children
    return content
