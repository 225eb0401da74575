"""Settings of the measuring commands: a flag wins over qkspec.toml or [tool.qkspec] of pyproject.toml."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkspec.cli.options import Device, Flags
from qkspec.engine import Engine
from qkspec.errors import UsageError
from qkspec.ranges import whole_numbers

if TYPE_CHECKING:
    from qkspec.activations import Runner
    from qkspec.analysis import Settings

MAX_SETTINGS_BYTES = 1 << 20
KEYS = (
    "s", "layers", "heads", "num_heads", "num_kv_heads", "context", "layout", "workers", "limits", "gate",
    "device", "engine", "ray_address", "cache", "offsets", "activations", "text", "embeddings",
)  # fmt: skip


def load_file(folder: Path | None = None) -> tuple[Mapping[str, Any], str]:
    """Return the settings table of the working directory and the file it stands in; ({}, "") if there is none.

    Raises:
        UsageError: the file is not readable TOML, or holds a key that is no setting.
    """
    folder = folder or Path()
    for name in ("qkspec.toml", "pyproject.toml"):
        path = folder / name
        if not path.is_file():
            continue
        table = _read(path)
        if name == "pyproject.toml":
            tools = table.get("tool")  # another program's mistake is not ours to report
            table = tools.get("qkspec", {}) if isinstance(tools, dict) else {}
            if not isinstance(table, dict):
                raise UsageError(f"{path}: [tool.qkspec] must be a table")
            if not table:
                continue
        for key in table:
            if key.replace("-", "_") not in KEYS:
                raise UsageError(f"{path}: no setting is called {key!r}; known: {', '.join(KEYS)}")
        return {key.replace("-", "_"): value for key, value in table.items()}, str(path)
    return {}, ""


def load_policy(path: Path) -> Mapping[str, Any]:
    """Return the gate settings of a policy file: its [gate] table, or the whole file if it has none.

    Raises:
        UsageError: it is not readable TOML.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such policy file; give a TOML file with the settings of a gate")
    table = _read(path)
    return _mapping(table["gate"], f"{path}: gate") if "gate" in table else table


def settings(flags: Flags, table: Mapping[str, Any], where: str) -> "Settings":
    """Build the Settings of an analysis from flags and a settings table; a flag wins. Nothing is kept for a report.

    Raises:
        UsageError: a value is not of its kind.
        InputError: a text cannot be read.
    """
    from qkspec.analysis import Settings
    from qkspec.metrics import DEFAULT_SIZES
    from qkspec.theorem import Limits

    sizes = flags.sizes or _whole_numbers(table.get("s"), f"{where}: s")
    activations = flags.activations or _text(table, "activations", where)
    runner = _runner(flags.text or _text(table, "text", where), activations)
    return Settings(
        sizes=tuple(dict.fromkeys(_positive(sizes))) if sizes else DEFAULT_SIZES,
        limits=Limits(**limits(flags, table, where)),
        layers=whole_numbers(flags.layers if flags.layers is not None else table.get("layers"), "--layers"),
        heads=whole_numbers(flags.heads if flags.heads is not None else table.get("heads"), "--heads"),
        num_heads=_whole(flags.num_heads, table, "num_heads", where),
        num_kv_heads=_whole(flags.num_kv_heads, table, "num_kv_heads", where),
        context=_whole(flags.context, table, "context", where),
        layout=_layout(flags.layout or table.get("layout")),
        workers=1 if runner else _whole(flags.workers, table, "workers", where, least=0) or 0,
        device=_one_of(Device, flags.device, table, "device", where) or Device.AUTO.value,
        engine=Engine(_one_of(Engine, flags.engine, table, "engine", where) or Engine.LOCAL),
        ray_address=flags.ray_address or _text(table, "ray_address", where),
        cache=_cache(flags, table, where),
        keep_spectra=False,
        eigenvalues=False,
        offsets=tuple(
            sorted(whole_numbers(flags.offsets if flags.offsets is not None else table.get("offsets"), "--offsets"))
        ),
        embeddings=_switch("embeddings", table, where) if flags.embeddings is None else flags.embeddings,
        activations=activations,
        runner=runner,
    )


def _runner(text: str | None, activations: str | None) -> "Runner | None":
    if text is None:
        return None
    if activations is not None:
        raise UsageError("--text and --activations both say what the real attention maps are; give one of them")
    from qkspec.running import TextRunner

    return TextRunner(text)


def _one_of(kind: type[StrEnum], flag: str | None, table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = flag if flag is not None else _text(table, key, where)
    if value is not None and value not in list(kind):
        raise UsageError(f"{where}: {key} is {value!r}: write {', '.join(kind)}")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: {key} is {value!r}: give text")
    return value


def _cache(flags: Flags, table: Mapping[str, Any], where: str) -> Path | None:
    """Return the cache's folder: a flag, else the settings file (false: none), else the platform's."""
    from qkspec.cache import default_folder

    if flags.no_cache or (flags.cache is None and table.get("cache") is False):
        return None
    if flags.cache is not None:
        return flags.cache
    given = _text(table, "cache", where)
    return default_folder() if given is None else Path(given)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise UsageError(f"{path}: over {MAX_SETTINGS_BYTES} bytes, too large for a settings file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as TOML ({error})") from error


def _layout(path: object) -> Any:
    if path is None:
        return None
    from qkspec.layouts.custom import load

    return load(Path(str(path)))


def _pairs(items: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign:
            raise UsageError(f"--limit {item!r}: write NAME=VALUE, for example freezing=0.6")
        try:
            out[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise UsageError(f"--limit {item!r}: {value!r} is not a number") from None
    return out


def limits(flags: Flags, table: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return the thresholds of the verdicts that flags and a settings table name.

    Raises:
        UsageError: one is not known, or no number.
    """
    from qkspec.theorem import Limits

    known = {field.name for field in fields(Limits)}
    values = {**_mapping(table.get("limits", {}), f"{where}: limits"), **_pairs(flags.limits or [])}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"no limit is called {name!r}; known: {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or 1e300 < abs(value) < math.inf:
            raise UsageError(f"limit {name} is {value!r}: give a number")
    return dict(values)


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{name} must be a table")
    return {str(key).replace("-", "_"): item for key, item in value.items()}


def _switch(key: str, table: Mapping[str, Any], where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{where}: {key} must be true or false")
    return value


def _whole(flag: int | None, table: Mapping[str, Any], key: str, where: str, least: int = 1) -> int | None:
    value = flag if flag is not None else table.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise UsageError(f"{where}: {key} is {value!r}: give a whole number" + " from 1 on" * least)
    return value


def _whole_numbers(value: object, name: str) -> list[int] | None:
    if value is None:
        return None
    items: list[Any] = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in items):
        raise UsageError(f"{name} is {value!r}: give whole numbers")
    return items


def _positive(sizes: Sequence[int]) -> Sequence[int]:
    for s in sizes:
        if s < 1:
            raise UsageError(f"-s {s}: SEC(d_q, s) needs s of at least 1")
    return sizes
