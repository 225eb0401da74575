"""A user's own row of the table, from a TOML file: data that is checked, so no code is run.

name = "mine"
heads = "n_head"                 # a key of config.json, or a number
kv_heads = 8
[weights]
q = "blocks.{}.attn.wq"          # {} stands for the layer; prefix and .weight are left out
k = "blocks.{}.attn.wk"
[norm]
at = "blocks.{}.ln"
kind = "rms"
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from qkspec.errors import LayoutError
from qkspec.layouts.facts import fixed
from qkspec.layouts.layout import Fused, InputNorm, Latent, Layout, QKNormAt, RotaryRule, Separate

LIMIT = 1 << 20  # bytes; a layout is a page of text
PLAIN: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "block", "head_dim", "head_ratio", "softcap", "clamp", "context"), str),
    **dict.fromkeys(("inputs_first", "full", "causal", "softmax"), bool),
    **dict.fromkeys(("heads", "kv_heads"), (str, int)),
    **dict.fromkeys(("remarks", "unknown"), list),
    "scale": (int, float),
}
TABLES = {"norm": InputNorm, "k_norm": InputNorm, "qk_norm": QKNormAt, "rotary": RotaryRule}
CHOICES = {"kind": ("layer", "rms", "auto", "none", "l2"), "pairing": ("halves", "adjacent")}


def load(path: str | os.PathLike[str]) -> Layout:
    """Return the layout that a TOML file describes.

    Raises:
        LayoutError: the file cannot be read, is no TOML, or says what is no layout; the message names the key.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LIMIT:
            raise LayoutError(f"{path}: larger than a layout file can be ({LIMIT} bytes)")
        text = file.read_text("utf-8")
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror or error}; pass an existing layout file to --layout") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path}: not UTF-8 text, so no layout file") from error
    try:
        return parse(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LayoutError(f"{path}: not valid TOML ({error})") from error
    except RecursionError as error:
        raise LayoutError(f"{path}: nested too deeply for a layout file") from error
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


def parse(data: Mapping[str, Any]) -> Layout:
    """Return the layout of parsed TOML.

    Raises:
        LayoutError: a key is unknown, missing, or has a value of the wrong kind.
    """
    unknown = set(data) - set(PLAIN) - set(TABLES) - {"weights"}
    if unknown:
        raise LayoutError(
            f"no such key: {', '.join(sorted(unknown))} (known: {', '.join([*PLAIN, 'weights', *TABLES])})"
        )
    plain: dict[str, Any] = {key: _checked(key, data[key], PLAIN[key]) for key in PLAIN if key in data}
    for key in ("heads", "kv_heads", "head_dim", "context"):
        if isinstance(plain.get(key), str):
            plain[key] = (plain[key],)
    for key in ("remarks", "unknown"):
        if key in plain:
            plain[key] = tuple(_checked(key, line, str) for line in plain[key])
    if "scale" in plain:
        plain["scale"] = fixed(float(plain["scale"]))
    tables = {key: _table(key, data[key], kind) for key, kind in TABLES.items() if key in data}
    return Layout(
        name=plain.pop("name", "custom"), model_types=(), weights=_weights(data.get("weights")), **plain, **tables
    )


def _weights(data: object) -> Separate | Fused | Latent:
    if not isinstance(data, Mapping):
        raise LayoutError("[weights] is missing: give q and k, or qkv, or the five factors of latent attention")
    kind: type[Separate | Fused | Latent] = Fused if "qkv" in data else Latent if "kv_b" in data else Separate
    values = dict(data)
    for key in ("units", "q_units", "k_units"):
        if values.get(key) == "head":
            values[key] = None
    made = _table("weights", values, kind)
    assert isinstance(made, Separate | Fused | Latent)
    return made


def _table(name: str, data: object, kind: type) -> Any:
    if not isinstance(data, Mapping):
        raise LayoutError(f"[{name}] must be a table")
    known = {item.name: item for item in fields(kind)}
    wrong = set(data) - set(known)
    if wrong:
        raise LayoutError(f"[{name}] has no key {', '.join(sorted(wrong))} (known: {', '.join(known)})")
    values = {key: _field(name, key, value, str(known[key].type)) for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        required = [key for key, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
        raise LayoutError(f"[{name}] needs {', '.join(required)}") from error


def _field(table: str, key: str, value: object, kind: str) -> object:
    """Return a value if it is of the kind that a dataclass's field declares."""
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise LayoutError(f"[{table}] {key} is {value!r}: one of {', '.join(CHOICES[key])}")
        return value
    if isinstance(value, list):
        value = tuple(value)
    wanted: tuple[type, ...] = (str,)
    if "bool" in kind:
        wanted = (bool,)
    elif "float" in kind:
        wanted = (int, float)
    elif "int" in kind:
        wanted = (int, type(None))
    elif "tuple" in kind:
        wanted = (tuple,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise LayoutError(f"[{table}] {key} is {value!r}, which is not {' or '.join(one.__name__ for one in wanted)}")
    if isinstance(value, int) and not isinstance(value, bool) and "units" in key and value < 1:
        raise LayoutError(f'[{table}] {key} is {value}: at least 1, or "head"')
    return value


def _checked(key: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise LayoutError(f"{key} is {value!r}, which is not {' or '.join(one.__name__ for one in kinds)}")
    return value
