"""report.html in a real browser: it draws, its controls work by mouse and keyboard, without an error or a request."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page

from qkspec.analysis import Report, assemble
from qkspec.baseline import Bands
from qkspec.maps import Maps
from qkspec.readings import Readings
from qkspec.reports.html import write
from qkspec.reports.view import views

pytest.importorskip("jinja2", reason="needs qkspec[html]")
pytest.importorskip("plotly", reason="needs qkspec[html]")

CONTRAST = Path(__file__).parent / "contrast.js"

RESET = """
sorting.key = ""; sorting.down = false;
for (const id of ["find", "only"]) document.getElementById(id).value = "";
document.getElementById("metric").selectedIndex = 0;
state.metric = document.getElementById("metric").value;
delete document.documentElement.dataset.theme;
chooseRun(0);
"""


def saved(report: Report, path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        write(report, file)
    return path


@pytest.fixture(scope="module")
def opened(driver: Any, two_runs: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(driver, saved(two_runs, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The page of two runs as if it had just been opened; no error and no request may have come of the test."""
    opened.act(lambda: opened.js(RESET))
    yield opened
    assert opened.problems() == []
    assert opened.requests() == []


def test_it_draws_every_picture_and_the_table(page: Page) -> None:
    for name in ("map", "spectrum", "indices", "trajectories", "sec"):
        assert page.js("return document.querySelectorAll(`#${arguments[0]} .main-svg`).length", name) > 0, name
    assert len(page.texts("#heads tbody tr")) == 12
    assert page.texts(".state") == ["lost", "sound"]
    assert "step 20: layer 2 head 0 turned malignant" in page.find(".summary").text


def test_the_slider_moves_through_the_steps(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    assert page.find("#moment-label").text == "step 160"
    before = page.js("return document.getElementById('map').data[0].z.flat()")
    page.act(lambda: page.find("#moment").send_keys(Keys.HOME))
    assert page.find("#moment-label").text == "step 0"
    assert set(page.column(4)) == {".healthy"}
    assert page.js("return document.getElementById('map').data[0].z.flat()") != before
    page.act(lambda: page.find("#moment").send_keys(Keys.ARROW_RIGHT))
    assert page.find("#moment-label").text == "step 10"


def test_the_metric_selector_changes_map_and_trajectories(page: Page) -> None:
    page.choose("#metric", "predicted_entropy")
    assert "predicted entropy" in page.find("#trajectories .ytitle").text
    page.choose("#metric", "verdict")
    assert page.js("return document.getElementById('map').data[0].z[0][0]") == 1  # malignant


def test_the_other_run_can_be_chosen(page: Page) -> None:
    page.choose("#run", "1")
    assert set(page.column(4)) == {".healthy"}


def test_the_table_sorts_both_ways_and_filters(page: Page) -> None:
    kappa = "#heads th[data-key='freezing_ratio'] button"
    page.act(lambda: page.find(kappa).click())
    down = [float(text) for text in page.column(5)]
    assert down == sorted(down, reverse=True)
    assert page.find("#heads th[data-key='freezing_ratio']").get_attribute("aria-sort") == "descending"
    page.act(lambda: page.find(kappa).click())
    up = [float(text) for text in page.column(5)]
    assert up == sorted(up)
    page.choose("#only", "malignant")
    assert len(page.column(4)) == 6
    assert page.find("#found").text == "6 of 12 heads"
    page.choose("#find", "layer 1 ")
    assert page.column(2) == ["1", "1"]


def test_a_click_on_the_map_chooses_a_head(page: Page) -> None:
    from selenium.webdriver import ActionChains

    drag = page.find("#map .nsewdrag")
    width, height = drag.size["width"], drag.size["height"]
    offset = (int(width / 8 - width / 2), int(height / 2 - height / 6))  # last row, first column
    page.act(lambda: ActionChains(page.driver).move_to_element_with_offset(drag, *offset).click().perform())
    assert page.find("#head-title").text == "layer 2 head 0 at step 160"
    assert "malignant" in page.find("#head-verdict").text
    assert "✓" in page.texts("#evidence td")


def test_the_keyboard_alone_chooses_a_head(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.act(lambda: page.find("#map").send_keys(Keys.ARROW_UP))
    page.act(lambda: page.find("#map").send_keys(Keys.ARROW_RIGHT))
    assert page.find("#head-title").text == "layer 1 head 3 at step 160"
    page.act(lambda: page.find("#heads tbody button").send_keys(Keys.ENTER))
    assert page.find("#head-title").text == "layer 2 head 2 at step 160"
    assert page.js("return document.activeElement.getAttribute('aria-label')") == "show layer 2 head 2"


def test_every_focus_stop_has_a_name(page: Page) -> None:
    nameless = page.js(
        "return [...document.querySelectorAll('button, select, input, [tabindex]')].filter((e) => "
        "!(e.textContent.trim() || e.closest('label') || e.ariaLabel || e.getAttribute('aria-label'))).length"
    )
    assert nameless == 0


def test_every_text_has_contrast_in_light_and_dark(page: Page) -> None:
    """WCAG 2 AA asks for 4.5 : 1. Letters on the map's colours are held to it one by one."""
    for theme in ("light", "dark"):
        page.act(lambda: page.find("#theme").click())
        assert page.find("#theme").text == f"theme: {theme}"
        for metric in ("freezing_ratio", "verdict"):
            page.choose("#metric", metric)
            found = page.js(CONTRAST.read_text(encoding="utf-8"))
            assert len(found) > 100
            assert found[0][0] >= 4.5, found[:5]
    worst = page.js(
        "return Math.min(...Array.from({ length: 401 }, (_, i) => shade(CIVIDIS, i / 400)).map((c) => {"
        "const [x, y] = [c, rgb(inkOn(c))].map((d) => d.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : "
        "((v / 255 + 0.055) / 1.055) ** 2.4))).map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b);"
        "return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); }))"
    )
    assert worst >= 4.5


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.wait(lambda: page.js("return document.documentElement.scrollWidth <= innerWidth"))  # drawings follow
        first = page.js("return document.querySelector('.summary dd').getBoundingClientRect().bottom")
        assert first < 300  # which head and from which step stands on the first screen
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_paper_is_light_and_holds_the_drawings(page: Page) -> None:
    page.act(lambda: page.find("#theme").click())
    page.act(lambda: page.find("#theme").click())  # dark
    page.act(lambda: page.js("dispatchEvent(new Event('beforeprint'))"))
    ink, widths = page.js(
        "return [getComputedStyle(document.body).color, [...document.querySelectorAll('.plot')].map((e) => "
        "[e.clientWidth, e.querySelector('.main-svg')?.clientWidth])]"
    )
    assert ink == "rgb(31, 35, 40)"
    assert all(drawn in (None, room) and room <= 690 for room, drawn in widths)
    assert not page.find("#theme").is_displayed()
    page.act(lambda: page.js("dispatchEvent(new Event('afterprint'))"))
    assert page.find("#theme").text == "theme: dark"


@pytest.mark.parametrize(
    "name",
    [
        "<script>window.hacked=1</script>",
        '</script><img src=x onerror="window.hacked=1">',
        "{{ 7 * 7 }}<!--",
        "<b>bold</b><a href='https://evil.example/'>x</a>",
        "\u202eevil\x1b[31m",
    ],
)
def test_names_are_inert(
    driver: Any, rename: Callable[[Report, str], Report], two_runs: Report, tmp_path: Path, name: str
) -> None:
    page = Page(driver, saved(rename(two_runs, name), tmp_path / "report.html"))
    assert page.js("return window.hacked") is None
    assert page.js("return document.querySelectorAll('a, img, b + a, svg a').length") == 0
    assert page.js("return document.querySelectorAll('script').length") == 3
    assert "49" not in page.find("h2").text
    assert page.problems() == []
    assert page.requests() == []


def test_the_policy_stops_what_is_not_ours(driver: Any, one_run: Report, tmp_path: Path) -> None:
    page = Page(driver, saved(one_run, tmp_path / "report.html"))
    page.js("const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)")
    page.js("fetch('https://evil.example/').catch(() => {})")
    assert page.js("return window.hacked") is None
    assert any("Content Security Policy" in problem for problem in page.problems())
    assert page.requests() == []


def test_a_baselines_band_follows_the_chosen_head(
    driver: Any, one_run: Report, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    base = make_report(("base", (0.0, 0.2)), layers=2, steps=(0, 40)).readings
    page = Page(driver, saved(replace(one_run, bands=Bands.of(base, "<b>base")), tmp_path / "report.html"))
    names = "return document.getElementById('trajectories').data.map((t) => t.name || '')"
    assert not any("base" in name for name in page.js(names))  # the gravest head stands in a layer that base lacks
    page.act(lambda: page.js("chooseHead(0)"))
    assert "&lt;b&gt;base, layer 0" in page.js(names)
    assert "its limit (margin 2)" in page.js(names)
    page.choose("#metric", "effective_rank")
    assert not any("base" in name for name in page.js(names))
    assert page.problems() == []
    assert page.requests() == []


def test_the_table_and_the_map_say_which_heads_leave_a_baselines_bands(
    driver: Any, one_run: Report, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    bands = Bands.of(make_report(("base", (0.0, 0.2)), layers=2, steps=(0, 40)).readings, "base")
    page = Page(driver, saved(replace(one_run, bands=bands), tmp_path / "report.html"))
    view = next(iter(views(one_run)))
    names = {"freezing_ratio": "κ", "sigma1": "σ1", "predicted_entropy": "entropy"}
    for moment in (5, 1):
        page.act(lambda at=moment: page.js("chooseMoment(arguments[0])", at))
        cells = page.texts("#heads tbody td:nth-last-child(2)")
        heads = page.js(
            "return [...document.querySelectorAll('#heads tbody tr')].map((row) => Number(row.dataset.head))"
        )
        hovers = page.js("return document.getElementById('map').data[0].customdata.flat()")
        for head, cell in zip(heads, cells, strict=True):
            found = replace(one_run, bands=bands).against_baseline(int(view.grid[moment, head]))
            known = [c for c in found if c.holds is not None]
            left = [names[c.metric] for c in known if c.holds]
            assert cell == (", ".join(left) or "within" if known else "–"), head
            assert ", ".join(left) in hovers[head]
            assert ("outside" in hovers[head]) == bool(left)
    assert page.problems() == []


def test_the_predicted_map_of_the_chosen_head_is_drawn(driver: Any, with_maps: Report, tmp_path: Path) -> None:
    page = Page(driver, saved(with_maps, tmp_path / "report.html"))
    shown = "return document.getElementById('attention').data[0].z.flat()"
    codes = with_maps.maps.pictures["lost/step-000160/h.2.attn"]
    assert page.find("#head-title").text.startswith("layer 2 head 2")
    assert page.js(shown) == pytest.approx((codes[2] / 255).ravel().tolist())
    assert "predicted (weights alone, random tokens), 64 tokens, at step 160. ±" in page.find("#attention-note").text
    assert page.texts("#readings td")[1].endswith(" ± 0.012")
    page.act(lambda: page.js("chooseMoment(4)"))
    first = with_maps.maps.pictures["lost/step-000000/h.2.attn"]
    assert page.js(shown) == pytest.approx((first[2] / 255).ravel().tolist())
    assert "at step 0. None is kept of step 80 (only two were wanted)." in page.find("#attention-note").text
    assert "±" not in page.texts("#readings td")[1]
    page.act(lambda: page.js("chooseHead(0)"))
    few = with_maps.maps.pictures["lost/step-000000/h.0.attn"]
    assert page.js(shown) == pytest.approx((few[0] / 255).ravel().tolist())
    assert page.problems() == []
    assert page.requests() == []


def test_a_real_map_is_drawn_beside_the_predicted_one(driver: Any, with_maps: Report, tmp_path: Path) -> None:
    columns = dict(with_maps.readings.columns)
    for name in ("entropy", "rank", "diagonal", "columns"):
        columns[f"measured_{name}"] = np.where(with_maps.readings["step"] == 160, 0.1, np.nan)
    real = {key: codes[:, ::-1] for key, codes in with_maps.maps.pictures.items() if "step-000160" in key}
    report = replace(
        assemble(
            Readings(columns), with_maps.applicable, with_maps.limits, checkpoints=with_maps.checkpoints, skipped={},
            spectra={},
        ),
        maps=replace(with_maps.maps, given={"measured": real}),
    )  # fmt: skip
    page = Page(driver, saved(report, tmp_path / "report.html"))
    shown = "return document.getElementById('attention').data[0].z.flat()"
    assert page.find("#indices-title").text == "Measured attention map"
    assert page.js(shown) == pytest.approx((real["lost/step-000160/h.2.attn"][2] / 255).ravel().tolist())
    assert "measured (real inputs), 64 tokens, at step 160." in page.find("#attention-note").text
    assert "measured entropy / ln T" in page.texts("#evidence td")
    assert "0.100 ≤ 0.300" in page.texts("#evidence td")
    page.choose("#kind", "predicted")
    predicted = with_maps.maps.pictures["lost/step-000160/h.2.attn"]
    assert page.js(shown) == pytest.approx((predicted[2] / 255).ravel().tolist())
    page.act(lambda: page.js("chooseMoment(4)"))  # where nothing was measured
    assert page.find("#indices-title").text == "Predicted attention map"
    assert "predicted entropy / ln T" in page.texts("#evidence td")
    assert page.problems() == []


def test_a_page_without_pictures_says_so(driver: Any, one_run: Report, tmp_path: Path) -> None:
    page = Page(driver, saved(replace(one_run, maps=Maps(note="too late")), tmp_path / "report.html"))
    assert page.find("#attention-note").text == "No picture of this head's map is kept: too late."
    assert not page.find("#attention").is_displayed()
    assert len(page.texts("#readings tr")) == 4
    assert page.problems() == []


@pytest.mark.parametrize("shape", ["one checkpoint", "no spectra", "uneven"])
def test_other_shapes_draw(
    driver: Any, make_report: Callable[..., Report], one_run: Report, tmp_path: Path, shape: str
) -> None:
    report = {
        "one checkpoint": lambda: make_report(("one", (6.0,)), steps=(None,)),
        "no spectra": lambda: replace(one_run, spectra={}),
        "uneven": lambda: replace(make_report(("wide", (0.0, 6.0)), layers=2, heads=50), skipped={"x": "<b>"}),
    }[shape]()
    page = Page(driver, saved(report, tmp_path / "report.html"))
    empty = {"one checkpoint": ("trajectories", "indices"), "no spectra": ("spectrum", "sec"), "uneven": ()}[shape]
    for name in ("trajectories", "indices", "spectrum", "sec"):
        assert page.find(f"#{name}").is_displayed() == (name not in empty), name
    assert page.problems() == []
    assert page.requests() == []
