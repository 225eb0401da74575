"""Maps measured on real activations take the place of predicted ones in every output."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from qkspec.analysis import Report, assemble
from qkspec.readings import Readings
from qkspec.reports import jsonfile, markdown
from qkspec.reports.pagedata import page_data
from qkspec.reports.table import render
from qkspec.reports.view import views


@pytest.fixture(scope="module")
def measured(one_run: Report) -> Report:
    columns = dict(one_run.readings.columns)
    rows = len(one_run.readings)
    for name, value in (("entropy", 0.12), ("rank", 0.05), ("diagonal", 0.1), ("columns", 0.2), ("logit_std", 9.0)):
        columns[f"measured_{name}"] = np.full(rows, value)
    return assemble(
        Readings(columns), one_run.applicable, one_run.limits, checkpoints=one_run.checkpoints, skipped={}, spectra={}
    )


def test_every_output_names_the_measured_map(measured: Report) -> None:
    out = io.StringIO()
    render(measured, Console(file=out, width=120))
    assert "measured entropy 0.120 ≤ 0.300" in out.getvalue()
    text = io.StringIO()
    markdown.write(measured, text)
    assert "measured entropy 0.120" in text.getvalue()
    document = json.dumps(jsonfile.document(measured), allow_nan=False)
    assert '"measured_entropy"' in document
    data = page_data(measured, list(views(measured)))
    assert "measured_entropy" in [metric["name"] for metric in data["metrics"]]
    assert "measured_entropy" in [c[1] for c in data["runs"][0]["modules"][0]["conditions"]]


def test_what_nothing_measured_is_not_offered(one_run: Report) -> None:
    names = [metric["name"] for metric in page_data(one_run, list(views(one_run)))["metrics"]]
    assert "measured_entropy" not in names
    assert names[0] == "freezing_ratio"
