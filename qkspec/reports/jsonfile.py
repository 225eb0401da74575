"""report.json: what a script needs to know of a report without reading its tables. Strict JSON in ASCII."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np

from qkspec.analysis import SCHEMA, Report
from qkspec.energy import star
from qkspec.readings import plain
from qkspec.reports.view import RunView, against_baseline, evidence, views
from qkspec.theorem import GRAVITY, Condition, Verdict

KIND = "qkspec report"
MAX_HEADS = 2000  # heads listed with their evidence; heads.csv has every one
MAX_MOMENTS = 1000  # checkpoints summed up in a run; heads.csv has every one

Json = dict[str, Any]


def write(report: Report, out: TextIO) -> None:
    """Write report.json to an open text file."""
    write_document(document(report), out)


def write_document(document: Json, out: TextIO) -> None:
    """Write a document; NaN or infinity in it is an error of ours, never a bare NaN in a file."""
    json.dump(document, out, indent=1, allow_nan=False, ensure_ascii=True)
    out.write("\n")


def document(report: Report, files: Mapping[str, Mapping[str, int | str]] | None = None) -> Json:
    """Return report.json as plain values.

    Args:
        report: the report.
        files: name to size and digest of the other files of its directory.
    """
    runs = list(views(report))
    troubled = [(view, row) for view in runs for row in view.worst()]
    place = {verdict: i for i, verdict in enumerate(GRAVITY)}
    size = report.readings.metric("freezing_ratio")
    troubled.sort(key=lambda item: (place[report.verdicts[item[1]]], -np.nan_to_num(size[item[1]], nan=-1.0)))
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "provenance": dict(report.provenance),
        "limits": {name: plain_number(value) for name, value in asdict(report.limits).items()},
        "metrics": list(report.readings.metrics),
        "rows": len(report.readings),
        "runs": [_run(view) for view in runs],
        "heads": _heads(report, troubled[:MAX_HEADS]),
        "heads_left_out": max(len(troubled) - MAX_HEADS, 0),
        "sources": [{**asdict(fact), "remarks": list(fact.remarks)} for fact in report.checkpoints],
        "skipped": dict(report.skipped),
        "baseline": report.bands.plain() if report.bands is not None else None,
        "files": {name: dict(facts) for name, facts in (files or {}).items()},
    }


def plain_number(value: float | None) -> float | int | None:
    """Return a number that JSON can hold: None for what is missing or not finite, an int for a whole one."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def condition_document(condition: Condition) -> Json:
    """Return a condition as plain values."""
    numbers = {name: plain_number(getattr(condition, name)) for name in ("value", "limit", "error")}
    return {**asdict(condition), **numbers}


def _run(view: RunView) -> Json:
    last = len(view.grid) - 1
    chosen = range(max(last + 1 - MAX_MOMENTS, 0), last + 1)
    return {
        "name": view.name,
        "state": {
            "verdict": view.state.verdict,
            "share_concentrated_and_large": plain_number(view.state.share),
            "share_concentrated_and_frozen": plain_number(view.state.frozen),
            "malignant": view.state.malignant,
            "first_malignant_step": view.state.turned,
            "surge_step": view.state.surge,
            "crossed_step": view.state.crossed,
            "largest_median_growth": plain_number(view.state.growth),
            "reasons": [condition_document(c) for c in view.story.reasons] if view.story else [],
        },
        "alarms": dict(view.story.alarms) if view.story else {},
        "loss": _loss(view),
        "first_malignant": _first(view),
        "heads": len(view.table.heads),
        "verdicts": _words(view.counts()),
        "checkpoints": [_moment(view, index) for index in chosen],
        "layers": _layers(view),
    }


def _loss(view: RunView) -> Json | None:
    """Return what the run's loss did and by how many steps each alarm came before its trouble; None without a loss."""
    story = view.story
    if story is None or story.loss is None:
        return None
    trouble = story.trouble
    return {
        "source": story.loss.source,
        "points": len(story.loss.steps),
        "trouble": trouble
        and {
            "step": trouble.step,
            "kind": trouble.kind,
            "value": plain_number(trouble.value),
            "limit": plain_number(trouble.limit),
            "reference": trouble.reference,
        },
        "leads": story.leads,
    }


def _moment(view: RunView, index: int) -> Json:
    rows = view.grid[index]
    rows = rows[rows >= 0]
    return {
        "name": view.table.checkpoints[index],
        "step": plain(view.report.readings["step"][rows[0]]),
        **_extremes(view, rows),
        "verdicts": _words(view.counts(index)),
    }


def _layers(view: RunView) -> list[Json]:
    out = []
    readings = view.report.readings
    for block, layer, module, columns in view.modules():
        rows = view.grid[-1][columns]
        rows = rows[rows >= 0]
        if not len(rows):
            continue
        shape = {name: int(readings[name][rows[0]]) for name in ("d_model", "d_q")}
        out.append(
            {
                "block": block,
                "layer": layer,
                "module": module,
                "heads": len(rows),
                **shape,
                "s_star": star(shape["d_q"]),
                "random_weights": _random_weights(view.report, int(rows[0])),
                **_extremes(view, rows),
                "verdicts": _words(Counter(view.report.verdicts[rows].tolist())),
            }
        )
    return out


def _random_weights(report: Report, row: int) -> Json:
    """Return what random weights of a head's shape show: concentration beyond that is the training's."""
    low, high, rank = report.random_band(row)
    return {"sec_star_p05": low, "sec_star_p95": high, "effective_rank": rank}


def _extremes(view: RunView, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Json:
    """Return the values that judge some heads: the largest, or the least where small is grave."""
    readings = view.report.readings
    return {
        "max_sigma1": _over(np.nanmax, readings.metric("sigma1")[rows]),
        "max_freezing_ratio": _over(np.nanmax, readings.metric("freezing_ratio")[rows]),
        "max_sec_star": _over(np.nanmax, readings.metric("sec_star")[rows]),
        "min_effective_rank": _over(np.nanmin, readings.metric("effective_rank")[rows]),
        "min_predicted_entropy": _over(np.nanmin, readings.metric("predicted_entropy")[rows]),
    }


def _over(function: Any, values: np.ndarray[Any, np.dtype[np.float64]]) -> float | int | None:
    return plain_number(function(values)) if np.isfinite(values).any() else None


def _first(view: RunView) -> Json | None:
    row = view.first_turn()
    return None if row is None else {**_head(view.report, row), "evidence": _evidence(view.report, [row])[row]}


def _heads(report: Report, troubled: list[tuple[RunView, int]]) -> list[Json]:
    rows = [row for _, row in troubled]
    conditions, bands, sure = _evidence(report, rows), against_baseline(report, rows), report.confidence()
    return [
        {
            **_head(report, row),
            "confidence": sure[row] or None,
            "since_step": _since(view, row),
            "evidence": conditions[row],
            "flags": _flags(view, row),
            "baseline": [condition_document(c) for c in bands.get(row, ())],
        }
        for view, row in troubled
    ]


def _flags(view: RunView, row: int) -> list[Json]:
    return [
        {
            "name": flag.name,
            "step": plain_number(flag.step),
            "quantity": flag.quantity,
            "value": plain_number(flag.value),
            "limit": plain_number(flag.limit),
        }
        for flag in view.flags(row)
    ]


def _since(view: RunView, row: int) -> int | None:
    index = view.since(row)
    return int(view.steps[index]) if index is not None and view.has_steps else None


def _head(report: Report, row: int) -> Json:
    verdict: Verdict = report.verdicts[row]
    keys = ("run", "checkpoint", "step", "block", "layer", "module", "head")
    return {
        **{name: plain(report.readings[name][row]) for name in keys},
        "verdict": verdict.value,
        "meaning": verdict.meaning,
    }


def _evidence(report: Report, rows: list[int]) -> dict[int, list[Json]]:
    return {row: [condition_document(c) for c in found] for row, found in evidence(report, rows).items()}


def _words(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts[verdict] for verdict in GRAVITY if counts.get(verdict)}
