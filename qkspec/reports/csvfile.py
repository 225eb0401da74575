"""heads.csv: one row a checkpoint, attention module and head; the contract's columns first, then the other metrics.

A value that was not measured is an empty cell. Numbers are written so that they read back to the last bit.
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.errors import InputError
from qkspec.readings import KEYS, NO_STEP, TEXT, Column, Readings, concatenate
from qkspec.reports.names import cell, uncell
from qkspec.theorem import KINDS, map_index

F64 = NDArray[np.float64]

CONTRACT = (
    *KEYS,
    *(
        "sigma1",
        "sigma2",
        "frobenius",
        "stable_rank",
        "effective_rank",
        "s90",
        "s99",
        "sec_1",
        "sec_2",
        "sec_4",
        "sec_8",
    ),
    *("trace", "positive_fraction", "sigma1_wq", "sigma1_wk", "logit_std", "freezing_ratio"),
    *("predicted_entropy", "predicted_rank", "predicted_diagonal", "verdict"),
)
JUDGED_MAP = "judged_map"  # the kind of map that the verdict was judged by, one of theorem.KINDS
APPLICABLE = "theorem_applies"  # 1 or 0; the last column

_BLOCK = 50_000  # rows formatted or parsed at a time
_LARGEST = 1 << 53


def columns(report: Report) -> tuple[str, ...]:
    """Return the header of heads.csv."""
    further = (name for name in report.readings.metrics if name not in CONTRACT)
    return (*CONTRACT, *further, JUDGED_MAP, APPLICABLE)


def judged_maps(report: Report, part: slice) -> list[str]:
    """Return the kind of map that some rows were judged by, "" where there was none."""
    rows = np.zeros(len(report.readings), dtype=bool)
    rows[part] = True
    values, places = map_index(report.readings.where(rows), "entropy")
    return [KINDS[place] if known else "" for place, known in zip(places.tolist(), np.isfinite(values), strict=True)]


def lines(report: Report) -> Iterator[str]:
    r"""Yield heads.csv line by line, each with its "\n"."""
    header = columns(report)
    yield ",".join(header) + "\n"
    known: dict[str, str] = {}
    for start in range(0, len(report.readings), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield from (
            ",".join(row) + "\n" for row in zip(*(_cells(report, name, part, known) for name in header), strict=True)
        )


def write(report: Report, out: TextIO) -> None:
    """Write heads.csv to an open text file."""
    out.writelines(lines(report))


def read(path: Path, metrics: Sequence[str]) -> tuple[Readings, NDArray[np.bool_]]:
    """Read heads.csv back.

    Args:
        path: the file.
        metrics: the metrics that were measured; the other columns of the contract are empty.

    Returns:
        The readings, and (rows,) whether Theorem 1 applies. Verdicts are not read: they follow from the limits.

    Raises:
        InputError: it is no heads.csv.
    """
    parts, applicable = [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if [name for name in (*KEYS, *metrics, APPLICABLE) if name not in header] or len(set(header)) < len(header):
                raise InputError(
                    f"{path}: lacks columns that its report.json names; it is damaged, write the report again"
                )
            while block := list(islice(rows, _BLOCK)):
                table = dict(zip(header, zip(*block, strict=True), strict=True))
                parts.append(Readings({name: _column(name, table[name]) for name in (*KEYS, *metrics)}))
                applicable.append(np.array([{"1": True, "0": False}[text] for text in table[APPLICABLE]]))
    except (ValueError, KeyError, OverflowError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read ({reason}); it is damaged, write the report again") from error
    return concatenate(parts, metrics), np.concatenate([np.empty(0, bool), *applicable])


def _cells(report: Report, name: str, part: slice, known: dict[str, str]) -> list[str]:
    """Return a column's cells for some rows; ``known`` keeps the quoted form of each name met."""
    if name in _WORDS:
        return _WORDS[name](report, part)
    column = report.readings.columns.get(name)
    if column is None:
        return [""] * len(report.readings["run"][part])
    values = column[part].tolist()
    if name in TEXT:
        return [known[v] if v in known else known.setdefault(v, quoted(v)) for v in values]
    if name in KEYS:
        return ["" if v == NO_STEP else str(v) for v in values]
    return ["" if v != v else repr(v) for v in values]  # noqa: PLR0124 - NaN alone differs from itself


_WORDS: dict[str, Callable[[Report, slice], list[str]]] = {
    "verdict": lambda report, part: [verdict.value for verdict in report.verdicts[part]],
    JUDGED_MAP: judged_maps,
    APPLICABLE: lambda report, part: ["1" if applies else "0" for applies in report.applicable[part].tolist()],
}


def quoted(name: str) -> str:
    """Return a name as a CSV cell."""
    text = cell(name)
    return '"{}"'.format(text.replace('"', '""')) if any(c in text for c in ',"') else text


def _column(name: str, cells: Sequence[str]) -> Column:
    if name in TEXT:
        known = {text: uncell(text) for text in set(cells)}
        out = np.empty(len(cells), dtype=object)
        out[:] = [known[text] for text in cells]
        return out
    if name in KEYS:
        return np.array([_whole(name, text) for text in cells], dtype=np.int64)
    return np.array([float(text) if text else math.nan for text in cells], dtype=np.float64)


def _whole(name: str, text: str) -> int:
    value = NO_STEP if name == "step" and not text else int(text)
    if not (NO_STEP if name in ("step", "layer") else 0) <= value < _LARGEST:
        raise ValueError(f"{name} {value}")
    return value
