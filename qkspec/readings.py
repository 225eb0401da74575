"""The columnar table: one row a checkpoint, layer and head.

128 layers x 128 heads x 100 checkpoints is 1.6 million rows, so columns are arrays and never lists of row objects.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64] | NDArray[np.int64] | NDArray[np.object_]

TEXT = ("run", "checkpoint", "block", "module")
KEYS = ("run", "checkpoint", "step", "block", "layer", "module", "head", "kv_head", "d_model", "d_q")
NO_STEP = -1  # the step of a checkpoint whose step is not known; written as an empty cell


@dataclass(frozen=True)
class Readings:
    """Columns of equal length: the KEYS (text as objects, counts as int64), then one float64 column a metric.

    A metric that could not be computed is NaN. Rows stand in the order checkpoint, module, head.
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def metric(self, name: str) -> NDArray[np.float64]:
        """Return a metric's column as float64, all NaN if it was not measured."""
        column = self.columns.get(name)
        return np.full(len(self), np.nan) if column is None else np.asarray(column, dtype=np.float64)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metric columns."""
        return tuple(name for name in self.columns if name not in KEYS)

    def where(self, mask: NDArray[np.bool_]) -> "Readings":
        """Return the rows where mask (rows,) is true."""
        return Readings({name: column[mask] for name, column in self.columns.items()})

    def rows(self, name: str, value: str) -> NDArray[np.bool_]:
        """Return the mask (rows,) of one value of a text column."""
        return np.asarray(self.columns[name] == np.array(value, dtype=object))  # a str would lose NULs at its end

    def groups(self, name: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield each distinct value of a text column, in order of appearance, with the mask of its rows."""
        column = self.columns[name]
        for value in dict.fromkeys(column.tolist()):
            yield value, self.rows(name, value)

    def at(self, row: int) -> dict[str, str | int | float | None]:
        """Return one row as plain values, None where nothing was measured."""
        return {name: plain(column[row]) for name, column in self.columns.items()}


def empty(metrics: Sequence[str]) -> Readings:
    """Return a table without rows."""
    return Readings({**{name: _column(name, []) for name in KEYS}, **{name: np.empty(0) for name in metrics}})


def concatenate(parts: Sequence[Readings], metrics: Sequence[str]) -> Readings:
    """Stack tables; a metric that a part lacks is NaN there."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty(metrics)
    keys = {name: np.concatenate([part[name] for part in parts]) for name in KEYS}
    return Readings({**keys, **{name: np.concatenate([part.metric(name) for part in parts]) for name in metrics}})


def text(value: str, rows: int) -> NDArray[np.object_]:
    """Return a text column that repeats one string without copying it."""
    column = np.empty(rows, dtype=object)
    column[:] = value
    return column


def plain(value: object) -> str | int | float | None:
    """Return a cell as a plain Python value: None for NaN and for an unknown step."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)):
        return None if value == NO_STEP else int(value)
    number = float(value)  # type: ignore[arg-type]
    return number if np.isfinite(number) else None


def _column(name: str, values: Sequence[object]) -> Column:
    return np.array(values, dtype=object if name in TEXT else np.int64)
