"""A model in training as a checkpoint: its names, its config, and what of it lies on other ranks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from qkspec.checkpoints.memory import from_state_dict
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import UsageError


def checkpoint_of(model: nn.Module, config: Mapping[str, Any], step: int) -> Checkpoint:
    """Return the model's weights at a step, under the names that a saved checkpoint has. No tensor is copied."""
    return from_state_dict(model.state_dict(), config, name=f"step-{step:06d}", step=step)


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return the config that a model carries (transformers, nanoGPT), {} where it carries none."""
    return as_plain(getattr(unwrapped(model), "config", None))


def as_plain(config: Any) -> dict[str, Any]:
    """Return a config as plain data: a mapping, an object with ``to_dict()``, a dataclass or a namespace."""
    if config is None or isinstance(config, type | nn.Module):
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    if callable(getattr(config, "to_dict", None)):
        return dict(config.to_dict())
    if dataclasses.is_dataclass(config):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dict(vars(config)) if hasattr(config, "__dict__") else {}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, DistributedDataParallel and DataParallel."""
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def network(model: nn.Module) -> nn.Module:
    """Return the one attribute of a module that holds all of its weights, else the module itself.

    Checkpoints of Lightning are read without the name of that attribute.
    """
    heads = {name.partition(".")[0] for name in model.state_dict()}
    inner = getattr(model, heads.pop(), None) if len(heads) == 1 else None
    if not isinstance(inner, nn.Module) or any(name.partition(".")[0].isdigit() for name in inner.state_dict()):
        return model
    return inner


def check_whole(model: nn.Module) -> None:
    """Raise UsageError for weights cut up in a way that hides their shapes (FSDP1, DeepSpeed ZeRO-3)."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UsageError(
            "FullyShardedDataParallel hides the shapes of weights; shard with fully_shard, or measure saved checkpoints"
        )
    if any(hasattr(weight, "ds_id") and weight.numel() == 0 for weight in model.parameters()):
        raise UsageError("ZeRO-3 leaves empty weights on each rank; measure saved checkpoints, or train with ZeRO-2")
