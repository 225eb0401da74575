"""The page's data and markup, without a browser."""

import io
import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qkspec.analysis import Report, assemble
from qkspec.baseline import SHARES, SIZES, Bands
from qkspec.errors import UsageError
from qkspec.readings import concatenate
from qkspec.reports import formats, pagedata
from qkspec.reports.formats import Format
from qkspec.reports.html import embed, write
from qkspec.reports.packing import log_spaced, pack, spaced, unpack
from qkspec.reports.view import number, views

pytest.importorskip("jinja2", reason="needs qkspec[html]")
pytest.importorskip("plotly", reason="needs qkspec[html]")


@given(arrays(np.float64, st.integers(0, 50), elements=st.floats(-1e30, 1e30)), st.booleans())
def test_packing_keeps_six_figures(values: np.ndarray, log: bool) -> None:
    back = unpack(pack(values, log=log))
    packed = pack(values, log=log)
    if packed["log"]:
        known = values > 0
        assert np.array_equal(back == 0, values == 0)
        error = np.abs(np.log(back[known]) - np.log(values[known]))
    else:
        error = np.abs(back - values)
    assert np.all(
        error
        <= (packed["high"] - packed["low"]) / 33_554_426 * 1.01 + 1e-9 * max(abs(packed["low"]), abs(packed["high"]))
    )


def test_a_page_rounds_to_the_same_three_figures_as_a_terminal() -> None:
    values = np.arange(0.1005, 0.9995, 0.001) - 4e-6  # such as 0.237496
    assert [number(value) for value in unpack(pack(values))] == [number(value) for value in values]


def test_packing_keeps_what_is_missing() -> None:
    values = np.array([np.nan, 0.0, 1.0, 1e6, np.inf])
    assert np.isnan(unpack(pack(values))).tolist() == [True, False, False, False, True]
    assert unpack(pack(values))[1] == 0
    assert unpack(pack(np.array([np.nan]))).size == 1


@given(st.integers(1, 5000), st.integers(2, 200))
def test_thinning_keeps_both_ends(count: int, most: int) -> None:
    for places in (spaced(count, most), log_spaced(count, most)):
        assert places[0] == 0
        assert places[-1] == count - 1
        assert len(places) <= most
        assert places == sorted(set(places))


class Links(HTMLParser):
    """Every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "action", "srcset")]


def html(report: Report) -> str:
    out = io.StringIO()
    write(report, out)
    return out.getvalue()


def test_the_page_links_to_nothing_and_is_the_same_twice(two_runs: Report) -> None:
    text = html(two_runs)
    links = Links()
    links.feed(text)
    assert links.found == ["data:,"]
    assert text == html(two_runs)
    assert "Content-Security-Policy" in text


def test_the_data_is_the_reports(two_runs: Report) -> None:
    runs = list(views(two_runs))
    data = pagedata.page_data(two_runs.limits, runs)
    for view, raw in zip(runs, data["runs"], strict=True):
        drawn = unpack(raw["values"]["sigma1"]).reshape(len(raw["steps"]), -1)
        assert np.allclose(drawn, view.metric("sigma1"), rtol=1e-3)
        part = raw["spectra"]["modules"][0]
        whole = two_runs.spectra[f"{view.name}/{view.table.checkpoints[-1]}/h.0.attn"]
        sigma = unpack(part["sigma"]).reshape(len(raw["spectra"]["labels"]), -1, len(part["s"]))[-1]
        assert np.allclose(sigma, whole[:, np.array(part["s"]) - 1], rtol=1e-2)


def test_a_model_that_gains_heads_has_spectra_of_those_it_has(make_report: Callable[..., Report]) -> None:
    few, many = (make_report(("grown", (0.0,)), layers=1, heads=n, steps=(n,)) for n in (2, 4))
    report = assemble(
        concatenate([few.readings, many.readings], few.readings.metrics),
        np.concatenate([few.applicable, many.applicable]),
        few.limits,
        checkpoints=(*few.checkpoints, *many.checkpoints),
        skipped={},
        spectra={**few.spectra, **many.spectra},
    )
    part = pagedata.page_data(report.limits, list(views(report)))["runs"][0]["spectra"]["modules"][0]
    sigma = unpack(part["sigma"]).reshape(2, 4, len(part["s"]))
    np.testing.assert_array_equal(np.isfinite(sigma).all(axis=2), [[True, True, False, False], [True] * 4])


def test_a_baselines_bands_are_those_of_each_layer(one_run: Report, make_report: Callable[..., Report]) -> None:
    base = make_report(("base", (0.0, 0.5)), layers=2, steps=(0, 40)).readings
    report = replace(one_run, bands=Bands.of(base, "<base>"))
    raw = pagedata.page_data(report.limits, list(views(report)))["runs"][0]["bands"]
    assert (raw["name"], raw["margin"], set(raw["metrics"])) == ("<base>", 2.0, {*SIZES, *SHARES})
    found = raw["metrics"]["sigma1"]
    assert found["steps"] == [0, 40, 160]
    high, limit = (unpack(found[side]).reshape(3, 3) for side in ("high", "limit"))
    for layer in (0, 1):
        values = base.metric("sigma1")[(base["layer"] == layer) & (base["step"] == 40)]
        assert high[layer, 1:] == pytest.approx(np.full(2, values.max()), rel=1e-3)
        assert limit[layer] == pytest.approx(2 * high[layer], rel=1e-3)
    assert np.isnan(high[2]).all()
    assert json.dumps(raw, allow_nan=False)
    assert pagedata.page_data(one_run.limits, list(views(one_run)))["runs"][0]["bands"] is None


def test_the_page_says_how_sure_each_malignant_verdict_is(two_runs: Report) -> None:
    lost, sound = pagedata.page_data(two_runs.limits, list(views(two_runs)))["runs"]
    assert sound["sure"] is None
    view = next(iter(views(two_runs)))
    codes = np.frombuffer(b64decode(lost["sure"]["data"]), dtype=np.uint8)
    found = ["" if code == 255 else lost["sure"]["words"][code] for code in codes]
    assert found == two_runs.confidence()[view.grid.ravel()].tolist()
    assert set(found) == {"", "certain", "suspect"}


def test_the_data_is_bounded_and_keeps_the_turning_point(
    make_report: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make_report(("long", tuple(np.linspace(0, 6, 40))), layers=1, heads=2, steps=tuple(range(40)))
    monkeypatch.setattr(pagedata, "CELLS", 10)
    raw = pagedata.page_data(report.limits, list(views(report)))["runs"][0]
    view = next(iter(views(report)))
    row = view.first_turn()
    assert row is not None
    assert len(raw["steps"]) <= 6
    assert view.steps[view.index_of(row)] in raw["steps"]
    assert {0, 39} <= set(raw["steps"])


def test_embedded_json_cannot_leave_its_element() -> None:
    text = embed({"name": "</script><!--<script>&\u2028", "value": 1.5})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text)["name"] == "</script><!--<script>&\u2028"
    with pytest.raises(ValueError, match="JSON"):
        embed(float("nan"))


def test_a_missing_extra_is_one_sentence(one_run: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert Format.HTML not in formats.default_formats()
    with pytest.raises(UsageError, match=r'needs jinja2 and plotly: pip install "qkspec\[html\]"'):
        Format.HTML.require()
