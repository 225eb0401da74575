"""A saved report directory back to a Report: the same readings to the last bit, judged by the same limits."""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from qkspec.analysis import SCHEMA, CheckpointFacts, Report, assemble
from qkspec.baseline import Bands
from qkspec.errors import InputError, UsageError
from qkspec.maps import Maps
from qkspec.readings import KEYS, Readings
from qkspec.reports import csvfile
from qkspec.reports import losses as loss_file
from qkspec.reports import maps as map_file
from qkspec.reports.formats import Format
from qkspec.reports.jsonfile import KIND
from qkspec.reports.spectra import SavedSpectra
from qkspec.theorem import Limits

MAX_JSON = 256 << 20  # bytes; 100,000 sources, remarks and skipped files with long names stay below
MAX_WIDTH = 1 << 20  # of a head, d_q: what a random head of its shape shows is drawn when a report is judged


def is_report(path: Path) -> bool:
    """Whether a directory is a report that qkspec wrote."""
    try:
        return _read_json(path).get("kind") == KIND
    except InputError:
        return False


def load(
    path: Path | str,
    *,
    limits: Mapping[str, float] | None = None,
    layers: Collection[int] = (),
    heads: Collection[int] = (),
) -> Report:
    """Read a report directory back.

    Args:
        path: the directory.
        limits: thresholds in place of those it was judged by.
        layers: only these, where there are any; spectra and maps are left out then.
        heads: likewise.

    Raises:
        InputError: it is no report directory, of another schema, or damaged, or none of its heads is wanted.
    """
    path = Path(path)
    document = _read_json(path)
    if document.get("kind") != KIND:
        raise InputError(f"{path}: its report.json was not written by qkspec; give a directory that analyze -o wrote")
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path}: a report of schema {str(document.get('schema'))[:20]}, this qkspec reads {SCHEMA}; "
            "use the version that wrote it, or analyze again"
        )
    try:
        whole = _assemble(path, document, limits or {})
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, UsageError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{path}: report.json is damaged ({reason}); analyze again") from error
    return _only(whole, path, layers, heads) if layers or heads else whole


def digest(path: Path) -> dict[str, int | str]:
    """Return a file's size and SHA-256, as report.json keeps them."""
    sha, size = sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha.hexdigest()}


def _only(report: Report, path: Path, layers: Collection[int], heads: Collection[int]) -> Report:
    """Return a report of some heads alone, judged on their own."""
    readings = report.readings
    kept = np.ones(len(readings), dtype=bool)
    for name, wanted in (("layer", layers), ("head", heads)):
        kept &= np.isin(readings[name].astype(np.int64), list(wanted)) | (not wanted)
    if not kept.any():
        raise InputError(f"{path}: the report holds no head that --layers and --heads leave")
    part = assemble(
        readings.where(kept),
        report.applicable[kept],
        report.limits,
        checkpoints=report.checkpoints,
        skipped=report.skipped,
        spectra={},
        losses={name: story.loss for name, story in report.stories.items() if story.loss is not None},
    )
    maps = Maps(note="maps of some heads alone are not kept; analyze the checkpoints again")
    return replace(part, provenance=report.provenance, maps=maps, bands=report.bands)


def _assemble(path: Path, document: Mapping[str, Any], limits: Mapping[str, float]) -> Report:
    files = document["files"]
    _verify(path, Format.CSV.file, files)
    metrics = [name for name in document["metrics"] if isinstance(name, str) and name not in KEYS]
    readings, applicable = csvfile.read(path / Format.CSV.file, metrics)
    _check(path, readings, int(document["rows"]))
    spectra: Mapping[str, Any] = {}
    if Format.SPECTRA.file in files:
        _verify(path, Format.SPECTRA.file, files)
        spectra = SavedSpectra(path / Format.SPECTRA.file, readings)
    maps = Maps(note="this report was written without its maps; analyze the checkpoints again")
    if Format.MAPS.file in files:
        _verify(path, Format.MAPS.file, files)
        maps = map_file.read(path / Format.MAPS.file, readings)
    losses = None
    if Format.LOSSES.file in files:
        _verify(path, Format.LOSSES.file, files)
        sources = {str(run["name"]): str((run["loss"] or {}).get("source", "")) for run in document["runs"]}
        losses = loss_file.read(path / Format.LOSSES.file, sources)
    report = assemble(
        readings,
        applicable,
        Limits(**{**document["limits"], **limits}),
        checkpoints=tuple(_facts(entry) for entry in document["sources"]),
        skipped={str(name): str(why) for name, why in document["skipped"].items()},
        spectra=spectra,
        losses=losses,
    )
    provenance = {str(name): str(value) for name, value in document["provenance"].items()}
    bands = Bands.from_plain(document["baseline"]) if document.get("baseline") is not None else None
    return replace(report, provenance=provenance, maps=maps, bands=bands)


def _verify(path: Path, name: str, files: Mapping[str, Any]) -> None:
    """Refuse a file that is not the one which was written with report.json."""
    try:
        same = digest(path / name) == files[name]
    except OSError as error:
        raise InputError(f"{path / name}: cannot be read ({error.strerror}); analyze again") from error
    if not same:
        raise InputError(f"{path / name}: is not the file that was written with report.json; analyze again")


def _check(path: Path, readings: Readings, rows: int) -> None:
    if not len(readings) or len(readings) != rows:
        raise InputError(f"{path}: heads.csv has {len(readings)} rows where report.json says {rows}; analyze again")
    if readings["d_q"].max() > MAX_WIDTH or readings["d_q"].min() < 1 or readings["d_model"].min() < 1:
        raise InputError(f"{path}: heads.csv names a head width outside 1 to {MAX_WIDTH}; analyze again")
    names = [readings[name] for name in ("run", "checkpoint", "module")]
    keys = np.array(["\0".join(key) for key in zip(*names, strict=True)], dtype=object)
    if len(set(zip(keys.tolist(), readings["head"].tolist(), strict=True))) < rows:
        raise InputError(f"{path}: heads.csv names a head twice; analyze again")


def _facts(entry: Mapping[str, Any]) -> CheckpointFacts:
    known = {field.name for field in fields(CheckpointFacts)}
    values: dict[str, Any] = {name: value for name, value in entry.items() if name in known}
    if not isinstance(values.get("step"), int | None):
        raise ValueError("a step is no whole number")  # noqa: TRY004 - what is damaged, not what was passed
    return CheckpointFacts(**{**values, "remarks": tuple(str(remark) for remark in values.get("remarks", ()))})


def _read_json(path: Path) -> dict[str, Any]:
    file = path / Format.JSON.file
    try:
        if file.stat().st_size > MAX_JSON:
            raise InputError(
                f"{file}: over {MAX_JSON} bytes, no report of qkspec's; give a directory that analyze -o wrote"
            )
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); give a report directory that analyze -o wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{file}: is not valid JSON ({reason}); it is damaged, analyze again") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: holds no JSON object; give a report directory that analyze -o wrote")
    return value
