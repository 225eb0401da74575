"""Maps measured on real activations, or of embedded tokens, take the place of predicted ones in every output."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from rich.console import Console

from qkspec.analysis import Report, assemble
from qkspec.readings import Readings
from qkspec.reports import csvfile, html, jsonfile, markdown, view
from qkspec.reports.pagedata import page_data
from qkspec.reports.table import render
from qkspec.reports.view import views

KINDS = ("embedded", "random", "measured")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def measured(one_run: Report, kind: str) -> Report:
    columns = dict(one_run.readings.columns)
    rows = len(one_run.readings)
    for name, value in (("entropy", 0.12), ("rank", 0.05), ("diagonal", 0.1), ("columns", 0.2), ("logit_std", 9.0)):
        columns[f"{kind}_{name}"] = np.full(rows, value)
    return assemble(
        Readings(columns), one_run.applicable, one_run.limits, checkpoints=one_run.checkpoints, skipped={}, spectra={}
    )


def test_every_output_names_the_map_that_the_verdict_rests_on(measured: Report, kind: str) -> None:
    limit = getattr(measured.limits, f"{kind}_entropy")
    out = io.StringIO()
    render(measured, Console(file=out, width=120))
    assert f"{kind} entropy 0.120 ≤ {limit:.3f}" in out.getvalue()
    text = io.StringIO()
    markdown.write(measured, text)
    assert f"{kind} entropy 0.120" in text.getvalue()
    worst = out.getvalue().partition("worst heads")[2]
    assert f"; maps {view.OF_KIND[kind]}" in worst
    assert worst.splitlines()[2].split()[7:9] == ["0.120", "0.0500"]
    assert f"| 0.120 | 0.0500 | {kind} |" in text.getvalue()
    lines = [line.split(",") for line in csvfile.lines(measured)]
    assert {line[-2] for line in lines[1:]} == {kind}
    assert lines[0][-2] == csvfile.JUDGED_MAP
    document = json.dumps(jsonfile.document(measured), allow_nan=False)
    assert f'"{kind}_entropy"' in document
    data = page_data(measured.limits, list(views(measured)))
    assert f"{kind}_entropy" in [metric["name"] for metric in data["metrics"]]
    assert f"{kind}_entropy" in [c[1] for c in data["runs"][0]["modules"][0]["conditions"]]
    assert data["kinds"] == [kind, "predicted"]


def test_kinds_of_maps_that_differ_are_told_apart(measured: Report, kind: str) -> None:
    columns = dict(measured.readings.columns)
    odd = measured.readings["head"].astype(int) % 4 == 2
    for name in ("entropy", "rank", "diagonal"):
        columns[f"{kind}_{name}"] = np.where(odd, np.nan, columns[f"{kind}_{name}"])
    mixed = assemble(
        Readings(columns),
        measured.applicable,
        measured.limits,
        checkpoints=measured.checkpoints,
        skipped={},
        spectra={},
    )
    out, text = io.StringIO(), io.StringIO()
    render(mixed, Console(file=out, width=120))
    rows = out.getvalue().partition("worst heads")[2].splitlines()[2:8]
    for row in rows:
        cells = row.split()
        assert cells[9] == ("predicted" if cells[1] == "2" else kind)
        assert (cells[7] == "0.120") == (cells[1] != "2")
    markdown.write(mixed, text)
    assert "| predicted |" in text.getvalue()
    assert f"| {kind} |" in text.getvalue()


@pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="needs qkspec[html]")
def test_the_page_draws_its_indices(driver: Any, measured: Report, kind: str, tmp_path: Path) -> None:
    with (tmp_path / "report.html").open("w", encoding="utf-8") as file:
        html.write(measured, file)
    page = browser.Page(driver, tmp_path / "report.html")
    assert page.find("#indices-title").text == f"{kind.capitalize()} attention map"
    assert f"{kind} entropy" in page.texts("#heads thead th")
    assert page.problems() == []
    assert page.requests() == []


def test_what_nothing_measured_is_not_offered(one_run: Report) -> None:
    names = [metric["name"] for metric in page_data(one_run.limits, list(views(one_run)))["metrics"]]
    assert not {f"{kind}_entropy" for kind in KINDS} & set(names)
    assert names[0] == "freezing_ratio"


@pytest.mark.parametrize(("entropy", "told"), [(0.97, True), (0.9, False)])
def test_a_model_whose_real_maps_are_all_even_is_told(one_run: Report, entropy: float, told: bool) -> None:
    from qkspec.reports.notes import notes

    real = {f"measured_{name}": np.full(len(one_run.readings), entropy) for name in ("entropy", "rank", "diagonal")}
    report = assemble(
        Readings({**one_run.readings.columns, **real}), one_run.applicable, one_run.limits,
        checkpoints=one_run.checkpoints, skipped={}, spectra={},
    )  # fmt: skip
    (run,) = views(report)
    assert ("even" in dict(notes(run))) == told
