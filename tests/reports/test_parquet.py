"""heads.parquet: read back by another library, it is heads.csv with types and nulls."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qkspec.analysis import Report
from qkspec.cli import main
from qkspec.errors import UsageError
from qkspec.reports import formats
from qkspec.reports.directory import write_directory
from qkspec.reports.formats import Format, formats_with
from qkspec.reports.names import escape, uncell
from qkspec.reports.saved import load

pa = pytest.importorskip("pyarrow", reason="needs qkspec[parquet]")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs qkspec[parquet]")

KIND = {pa.string(): str, pa.int64(): int, pa.float64(): float, pa.bool_(): lambda text: text == "1"}


def table(report: Report, out: Path) -> "pa.Table":
    write_directory(report, out, formats=(Format.PARQUET,))
    return parquet.read_table(out / "heads.parquet")


def test_it_is_heads_csv_with_types_and_nulls(two_runs: Report, tmp_path: Path) -> None:
    found = table(two_runs, tmp_path / "out")
    with (tmp_path / "out" / "heads.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert found.column_names == rows[0]
    assert found.num_rows == len(two_runs.readings) == len(rows) - 1
    for name, cells in zip(rows[0], zip(*rows[1:], strict=True), strict=True):
        kind = KIND[found.schema.field(name).type]
        assert found[name].to_pylist() == [None if text == "" else kind(text) for text in cells], name
    types = {name: str(found.schema.field(name).type) for name in ("run", "step", "sigma1", "verdict")}
    assert types == {"run": "string", "step": "int64", "sigma1": "double", "verdict": "string"}
    assert found.schema.metadata[b"qkspec_schema"] == b"1"
    assert load(tmp_path / "out").states == two_runs.states


def test_an_unknown_step_is_null_and_no_minus_one(make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = make_report(("none", (0.0, 6.0)), steps=(None, None), layers=1)
    assert table(report, tmp_path / "out")["step"].null_count == len(report.readings)


def test_a_metric_that_was_not_computed_is_null_and_infinity_stays(one_run: Report, tmp_path: Path) -> None:
    from dataclasses import replace

    from qkspec.readings import Readings

    values = one_run.readings.metric("trace").copy()
    values[:2] = np.nan, np.inf
    report = replace(one_run, readings=Readings({**one_run.readings.columns, "trace": values}))
    assert table(report, tmp_path / "out")["trace"].to_pylist()[:2] == [None, np.inf]


def test_names_are_inert_and_those_of_heads_csv(
    one_run: Report, rename: Callable[[Report, str], Report], evil: str, tmp_path: Path
) -> None:
    names = table(rename(one_run, "=" + evil + "\udc80"), tmp_path / "out")["module"].to_pylist()
    assert not any(char in name for name in names for char in "\x1b\u202e\n\x9b")
    with (tmp_path / "out" / "heads.csv").open(encoding="utf-8", newline="") as file:
        assert names == [escape(uncell(row["module"])) for row in csv.DictReader(file)]


def test_more_rows_than_a_group(one_run: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qkspec.reports import parquet as module

    whole = table(one_run, tmp_path / "whole")
    monkeypatch.setattr(module, "_GROUP", 7)
    assert table(one_run, tmp_path / "parts").equals(whole)


def test_analyze_writes_it_on_request(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(sample / "step-000000"), str(tmp_path / "out")
    assert main(["analyze", run, "-o", out, "--with", "parquet, markdown", "-q"]) == 0
    assert {"heads.parquet", "report.md", "heads.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["analyze", run, "-o", out, "-q"]) == 0  # a report with it is replaced like any other
    assert not (tmp_path / "out" / "heads.parquet").exists()
    capsys.readouterr()
    assert main(["analyze", run, "-o", out, "--with", "exe", "-q"]) == 2
    assert capsys.readouterr().err.startswith("error: --with 'exe': no such format; known: csv, parquet")
    assert main(["analyze", run, "--with", "parquet", "-q"]) == 2
    assert "-o" in capsys.readouterr().err


def test_without_pyarrow_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "pyarrow" else object())
    assert Format.PARQUET not in formats.default_formats()
    with pytest.raises(UsageError, match=r'heads.parquet needs pyarrow: pip install "qkspec\[parquet\]"'):
        formats_with("parquet")
