"""What training codes put around a state dict: which of the dicts in a file holds the weights, its config and its step.

Every code has its own wrapper (nanoGPT's ``model``, Lightning's ``state_dict``, DeepSpeed's ``module``), often with
the optimizer's moments beside the weights, whose names and shapes look the same. The keys below are tried in order; a
file in which none of them decides is refused, since reading the moments as weights would give numbers that look
healthy.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qkspec.checkpoints.config import find_step
from qkspec.checkpoints.pickles import Instance, Symbol
from qkspec.checkpoints.renamed import strip_wrappers
from qkspec.checkpoints.torchfile import Tensor, Unreadable
from qkspec.errors import CheckpointError

WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
CONFIG_KEYS = ("model_args", "dims", "model_config", "hyper_parameters", "hparams", "config", "cfg", "args")
ARCHITECTURE_KEYS = ("model_args", "dims", "model_config")  # these describe the weights beside them and nothing else
_DECOY = re.compile(
    r"optim|(^|_)ema|averag|teacher|scheduler|moment|grad|scaler|(^|_)rng|loss|criterion|discriminator", re.I
)
_MAX_DEPTH = 12
_MAX_VALUES = 10_000


@dataclass(frozen=True)
class State:
    """One state dict, with the config and step found beside it.

    Args:
        tensors: by name.
        config: plain data; {} when the file has none.
        architecture: whether ``config`` describes exactly these weights (nanoGPT's model_args), so that it
            outweighs a config.json beside the file.
        step: training step, or None.
        key: the key under which the weights lay, "" at the top.
    """

    tensors: Mapping[str, Tensor | Unreadable]
    config: Mapping[str, Any]
    architecture: bool
    step: int | None
    key: str


def find_state(root: Any, path: str) -> State:
    """Return the weights in what ``torch.save`` wrote.

    Raises:
        CheckpointError: there are no tensors, or several dicts that could be the weights.
    """
    if isinstance(root, Tensor | Unreadable):
        raise CheckpointError(
            f"{path}: holds a single tensor, not a state dict; give the file that holds the whole model"
        )
    top = children(root)
    if top is None:
        kind = root.cls.path if isinstance(root, Instance) else type(root).__name__
        raise CheckpointError(f"{path}: holds {kind[:120]!r} where a state dict was expected; save model.state_dict()")
    key, tensors = _choose(root, top, path)
    config, config_key = _first_config(top)
    if key == "state_dict" and "pytorch-lightning_version" in top:
        tensors = _without_attribute(tensors)
    return State(tensors, config, config_key in ARCHITECTURE_KEYS, find_step(top), key)


def children(value: Any) -> Mapping[Any, Any] | None:
    """Return a dict's items, or those that a pickled module holds by name; None for anything else."""
    if isinstance(value, Instance):
        state = value.state
        if isinstance(state, dict) and isinstance(state.get("_modules"), dict):
            parts = (state.get("_parameters"), state.get("_buffers"), state["_modules"])
            return {name: item for part in parts if isinstance(part, dict) for name, item in part.items()}
        return state if isinstance(state, dict) else None
    return value if isinstance(value, dict) else None


def is_decoy(key: str) -> bool:
    """Say whether a key is one under which trainers keep tensors that are not the model's weights."""
    return _DECOY.search(key) is not None


def plain(value: Any) -> Any:
    """Return a value of a pickle as JSON-like data: namespaces become dicts, classes their names, tensors None.

    What is nested more than 12 deep or beyond the first 10,000 values is None: shared parts could multiply without end.
    """
    left = [_MAX_VALUES]

    def convert(value: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > _MAX_DEPTH:
            return None
        if isinstance(value, str | int | float):
            return value
        if isinstance(value, Symbol):
            return value.path
        if isinstance(value, Instance) and not isinstance(value.state, dict):
            value = value.args
        if isinstance(value, list | tuple):
            return [convert(item, depth + 1) for item in value[:_MAX_VALUES]]
        items = value.state if isinstance(value, Instance) else value
        if isinstance(items, dict):
            pairs = islice(items.items(), _MAX_VALUES)
            return {key: convert(item, depth + 1) for key, item in pairs if isinstance(key, str)}
        return None

    return convert(value, 0)


def _choose(root: Any, top: Mapping[Any, Any], path: str) -> tuple[str, dict[str, Tensor | Unreadable]]:
    if isinstance(root, Instance) and (tensors := _tensors(root)):  # a whole module: its children's names are names
        return "", tensors
    for key in WEIGHT_KEYS:
        if children(top.get(key)) is not None and (tensors := _tensors(top[key])):
            return key, tensors
    if any(isinstance(value, Tensor | Unreadable) for value in top.values()):
        return "", _tensors({k: v for k, v in top.items() if children(v) is None or not _DECOY.search(str(k))})
    seen: set[int] = set()  # what lies under two keys is one set, and walked once
    found = {str(key): tensors for key, value in top.items() if (tensors := dict(_walk(value, "", 0, seen)))}
    likely = {key: tensors for key, tensors in found.items() if not _DECOY.search(key)} or found
    if not likely:
        raise CheckpointError(f"{path}: holds no tensors; give the file that holds the model's weights")
    if len(likely) == 1:
        return next(iter(likely.items()))
    keys = ", ".join(sorted(map(repr, likely))[:6])
    raise CheckpointError(f"{path}: holds several sets of tensors ({keys}); save the one to measure on its own")


def _tensors(value: Any) -> dict[str, Tensor | Unreadable]:
    return dict(_walk(value, "", 0, set()))


def _walk(value: Any, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor | Unreadable]]:
    """Yield the tensors in nested dicts and modules, names joined by dots; each dict once, so that a loop ends."""
    items = children(value)
    if items is None or depth > _MAX_DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in items.items():
        if not isinstance(key, str | int):
            continue
        if isinstance(item, Tensor | Unreadable):
            yield f"{prefix}{key}", item
        else:
            yield from _walk(item, f"{prefix}{key}.", depth + 1, seen)


def _first_config(top: Mapping[Any, Any]) -> tuple[Mapping[str, Any], str]:
    for key in CONFIG_KEYS:
        items = children(top.get(key))
        if items and isinstance(config := plain(top[key]), dict):
            return config, key
    return {}, ""


def _without_attribute(tensors: dict[str, Any]) -> dict[str, Any]:
    """Remove the name of the attribute under which a LightningModule holds its model, where all names share one."""
    tensors = strip_wrappers(tensors)
    heads = {name.partition(".")[0] for name in tensors}
    rest = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    if len(heads) != 1 or any(not name or name.partition(".")[0].isdigit() for name in rest):
        return tensors
    return rest
