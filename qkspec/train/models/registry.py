"""The models that ``qkspec train`` knows: one line each, imported when asked for."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import NamedTuple

from qkspec.errors import UsageError


class Kind(NamedTuple):
    """A model that can be trained.

    ``module`` offers ``build(config)``, ``config_json(config)``, ``attention_weight(name, config)`` and
    ``anatomy(model)``; ``data`` is what it takes ("tokens" or "images").
    """

    name: str
    module: str
    data: str


MODELS: tuple[Kind, ...] = (
    Kind("gpt", "qkspec.train.models.gpt", "tokens"),
    Kind("vit", "qkspec.train.models.vit", "images"),
    Kind("swin", "qkspec.train.models.swin", "images"),
    Kind("flatten-swin", "qkspec.train.models.swin", "images"),
)

BY_NAME: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in MODELS})


def kind(name: str) -> Kind:
    """Return the row of a model; UsageError when there is none."""
    if name not in BY_NAME:
        raise UsageError(f"--model {name!r} is not one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def module(name: str) -> ModuleType:
    """Return the module that builds a model."""
    return import_module(kind(name).module)
