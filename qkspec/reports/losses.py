"""losses.csv: the training losses found beside the runs, one row a recorded step; an empty cell is one not finite."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.curve import Curve
from qkspec.errors import InputError
from qkspec.reports.csvfile import quoted
from qkspec.reports.names import uncell
from qkspec.reports.packing import spaced

HEADER = ("run", "step", "loss")
POINTS = 1500  # of a curve in a picture


def write(report: Report, out: TextIO) -> None:
    """Write losses.csv to an open text file."""
    out.writelines(lines(report))


def lines(report: Report) -> Iterator[str]:
    r"""Yield losses.csv line by line, each with its "\n"."""
    yield ",".join(HEADER) + "\n"
    for run, story in report.stories.items():
        if story.loss is None:
            continue
        name = quoted(run)
        for step, value in zip(story.loss.steps.tolist(), story.loss.values.tolist(), strict=True):
            yield f"{name},{step},{repr(value) if math.isfinite(value) else ''}\n"


def thinned(curve: Curve) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the finite points of a loss as a picture shows them: steps and values, at most POINTS, evenly taken."""
    known = np.isfinite(curve.values)
    steps, values = curve.steps[known], curve.values[known]
    few = spaced(len(values), POINTS)
    return steps[few], values[few]


def read(path: Path, sources: Mapping[str, str]) -> dict[str, Curve]:
    """Read losses.csv back.

    Args:
        path: the file.
        sources: run name to the file that its loss came from.

    Raises:
        InputError: it is no losses.csv.
    """
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if tuple(next(rows, ())) != HEADER:
                raise InputError(f"{path}: has no header {','.join(HEADER)}; it is damaged, write the report again")
            for run, step, loss in rows:
                steps.setdefault(run, []).append(int(step))
                values.setdefault(run, []).append(float(loss) if loss else math.nan)
        return {
            name: Curve(np.array(steps[run], dtype=np.int64), np.array(values[run]), sources.get(name, ""))
            for run in steps
            for name in (uncell(run),)
        }
    except (ValueError, OverflowError, csv.Error) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read ({reason}); it is damaged, write the report again") from error
