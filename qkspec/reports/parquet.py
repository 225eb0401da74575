"""heads.parquet: heads.csv with types, for pandas, polars or DuckDB; null where nothing was measured."""

from pathlib import Path
from typing import Any

import numpy as np

from qkspec.analysis import SCHEMA, Report
from qkspec.readings import KEYS, NO_STEP, TEXT
from qkspec.reports.csvfile import APPLICABLE, JUDGED_MAP, columns, judged_maps
from qkspec.reports.names import escape

_GROUP = 100_000  # rows in memory at a time, and in a row group


def write(report: Report, out: Path) -> None:
    """Write the table: names as strings, counts as int64, metrics as float64, theorem_applies as a boolean.

    Names are inert as everywhere (see names.py) but without the apostrophe that guards a spreadsheet's cell.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = columns(report)
    schema = pa.schema([(name, _type(name)) for name in names], metadata={"qkspec_schema": str(SCHEMA)})
    known: dict[str, str] = {}
    with parquet.ParquetWriter(out, schema) as file:
        for start in range(0, len(report.readings), _GROUP):
            part = slice(start, start + _GROUP)
            file.write_table(pa.table([_array(report, name, part, known) for name in names], schema=schema))


def _type(name: str) -> Any:
    import pyarrow as pa

    if name in TEXT or name in ("verdict", JUDGED_MAP):
        return pa.string()
    if name == APPLICABLE:
        return pa.bool_()
    return pa.int64() if name in KEYS else pa.float64()


def _array(report: Report, name: str, part: slice, known: dict[str, str]) -> Any:
    """Return a column's values for some rows; ``known`` keeps the inert form of each name met."""
    import pyarrow as pa

    if name == "verdict":
        return pa.array([verdict.value for verdict in report.verdicts[part]], _type(name))
    if name == APPLICABLE:
        return pa.array(report.applicable[part])
    if name == JUDGED_MAP:
        return pa.array([kind or None for kind in judged_maps(report, part)], _type(name))
    column = report.readings.columns.get(name)
    if column is None:
        return pa.nulls(len(report.applicable[part]), _type(name))
    values = column[part]
    if name in TEXT:
        return pa.array([known[v] if v in known else known.setdefault(v, escape(v)) for v in values.tolist()])
    missing = values == NO_STEP if name in KEYS else np.isnan(values.astype(np.float64))
    return pa.array(values, _type(name), mask=missing)
