"""Results on disk: what was measured of a checkpoint, found again by its content, and singular values out of memory.

A cache entry is one file: a magic number, the BLAKE2b of what follows, the length of a JSON header, the header, and
the columns as they lie in memory. It is written beside its place and renamed. One that is damaged, of another version
or cut short is no entry: the checkpoint is measured again.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from time import time
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from qkspec import __version__
from qkspec.checkpoints.sequence import Source
from qkspec.judging import CheckpointFacts
from qkspec.measuring import Measured, Settings
from qkspec.readings import TEXT, Column, Readings

F64 = NDArray[np.float64]

NUMERICS = 3  # one more whenever a number that qkspec computes changes by more than rounding
MAX_BYTES = 1 << 30  # of all entries together; the ones not used for longest go first
_MAGIC = b"qkspec\x01\n"
_MAX_ENTRY = 1 << 28
_IN_MEMORY = 1 << 24  # bytes of singular values before they go to a file
_ABANDONED = 24 * 3600.0  # seconds after which a temporary file belongs to a run that was killed
_NOT_NUMBERS = {"limits", "workers", "engine", "ray_address", "cache", "keep_spectra", "activations", "runner"}


def default_folder() -> Path:
    """Return the platform's folder for what can be computed again."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "qkspec"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qkspec"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "qkspec" / "Cache"
    return Path.home() / ".cache" / "qkspec"


class Cache:
    """Results of earlier analyses. A folder that cannot be read or written is an empty cache, never an error.

    Args:
        folder: made when the first entry is written.
        limit: bytes of all entries together.
    """

    def __init__(self, folder: Path, limit: int = MAX_BYTES) -> None:
        self._folder, self._limit, self._wrote = folder, limit, False

    def get(self, source: Source, stamp: str, settings: Settings) -> Measured | None:
        """Return what was measured of a checkpoint with this fingerprint under these settings, or None."""
        key = _key(source, stamp, settings)
        if key is None:
            return None
        path = self._path(key)
        try:
            if path.stat().st_size > _MAX_ENTRY:
                return None
            found = _decode(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found

    def put(self, source: Source, stamp: str, settings: Settings, measured: Measured) -> None:
        """Keep a result, if the disk lets us."""
        key = _key(source, stamp, settings)
        if key is None:
            return
        path = self._path(key)
        temporary = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
                temporary = Path(file.name)
                file.write(_encode(measured))
            temporary.replace(path)
            temporary, self._wrote = None, True
        except OSError:
            return
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def prune(self) -> None:
        """Delete the entries not used for longest while there are too many bytes, and what killed runs left behind."""
        if not self._wrote:
            return
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("??/*"):
            try:
                status = path.stat()
                if path.suffix == ".tmp" and time() - status.st_mtime > _ABANDONED:
                    path.unlink()
            except OSError:
                continue
            if path.suffix == ".entry":
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.entry"


class Spool:
    """Singular values of many checkpoints: in memory while they are few, then in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the report
        self._end = 0
        finalize(self, self._file.close)

    def add(self, spectra: Mapping[str, F64]) -> "Spooled":
        """Write module to (heads, d_q) values, and return the mapping that reads them back."""
        places: dict[str, tuple[int, tuple[int, ...]]] = {}
        for module, sigma in spectra.items():
            places[module] = (self._end, sigma.shape)
            self._file.seek(self._end)
            self._end += self._file.write(np.ascontiguousarray(sigma, dtype="<f8").tobytes())
        return Spooled(self, places)

    def read(self, start: int, shape: tuple[int, ...]) -> F64:
        """Return the values that were written at ``start``."""
        self._file.seek(start)
        return np.frombuffer(self._file.read(8 * int(np.prod(shape))), "<f8").reshape(shape).astype(np.float64)


class Spooled(Mapping[str, F64]):
    """Some of a spool's values by module, read when they are asked for."""

    def __init__(self, spool: Spool, places: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        self._spool, self._places = spool, places

    def __getitem__(self, module: str) -> F64:
        return self._spool.read(*self._places[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Joined(Mapping[str, F64]):
    """The values of several mappings under "<name of the mapping>/<key>", read when they are asked for."""

    def __init__(self, parts: Mapping[str, Mapping[str, F64]]) -> None:
        self._places = {f"{name}/{module}": (part, module) for name, part in parts.items() for module in part}

    def __getitem__(self, key: str) -> F64:
        part, module = self._places[key]
        return part[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _key(source: Source, stamp: str, settings: Settings) -> str | None:
    """Return 40 hexadecimal digits for a checkpoint's content and all that decides its numbers; None if it is open."""
    if settings.activations is not None or settings.runner is not None:
        return None
    chosen: dict[str, str] = {}
    for item in fields(settings):
        if item.name not in _NOT_NUMBERS:
            value = getattr(settings, item.name)
            chosen[item.name] = repr(sorted(value) if isinstance(value, frozenset) else value)
    if any(" at 0x" in value for value in chosen.values()):  # a user's own function: its name is not its content
        return None
    what = [NUMERICS, __version__, np.__version__, stamp, source.name, source.path, source.step, chosen]
    return blake2b(json.dumps(what).encode(), digest_size=20).hexdigest()


def _encode(measured: Measured) -> bytes:
    columns = measured.readings.columns
    arrays: list[NDArray[Any]] = [measured.applicable.astype(np.uint8)]
    texts: dict[str, list[str]] = {}
    for name in columns:
        if name in TEXT:
            texts[name] = list(dict.fromkeys(columns[name].tolist()))
            places = {value: i for i, value in enumerate(texts[name])}
            arrays.append(np.array([places[value] for value in columns[name].tolist()], dtype="<i8"))
        else:
            arrays.append(columns[name].astype(columns[name].dtype.newbyteorder("<")))
    spectra = dict(measured.spectra)
    arrays += [np.ascontiguousarray(sigma, dtype="<f8") for sigma in spectra.values()]
    header = {
        "facts": asdict(measured.facts),
        "skipped": dict(measured.skipped),
        "rows": len(measured.readings),
        "columns": [[name, "i8" if name in TEXT else columns[name].dtype.str[1:]] for name in columns],
        "texts": texts,
        "spectra": [[module, *sigma.shape] for module, sigma in spectra.items()],
    }
    head = json.dumps(header).encode()
    body = b"".join([len(head).to_bytes(8, "little"), head, *(array.tobytes() for array in arrays)])
    return _MAGIC + blake2b(body, digest_size=16).digest() + body


def _decode(data: bytes) -> Measured:
    """Return an entry; ValueError, KeyError or TypeError if it is none."""
    body = memoryview(data)[24:]
    if data[:8] != _MAGIC or blake2b(body, digest_size=16).digest() != data[8:24]:
        raise ValueError("no entry, or a damaged one")
    end = 8 + int.from_bytes(body[:8], "little")
    header: dict[str, Any] = json.loads(bytes(body[8:end]))
    rows = header["rows"]

    def take(kind: str, *shape: int) -> Any:
        nonlocal end
        start, end = end, end + int(np.prod(shape)) * int(kind[1:])
        return np.frombuffer(body[start:end], "<" + kind).reshape(shape).astype(kind)

    applicable = take("u1", rows).astype(bool)
    columns: dict[str, Column] = {}
    for name, kind in header["columns"]:
        column = take(kind, rows)
        columns[name] = np.array(header["texts"][name], dtype=object)[column] if name in TEXT else column
    spectra = {module: take("f8", *shape) for module, *shape in header["spectra"]}
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in header["facts"].items()
    }
    return Measured(CheckpointFacts(**facts), Readings(columns), applicable, spectra, header["skipped"])
