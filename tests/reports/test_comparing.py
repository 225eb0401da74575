"""The page of two runs side by side, in a real browser and as files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page

from qkspec.analysis import Report
from qkspec.cli import main
from qkspec.cli.compare import document, findings
from qkspec.comparison import compare
from qkspec.errors import UsageError
from qkspec.reports import formats
from qkspec.reports.comparing import Pair, check_target, save
from qkspec.reports.view import RunView

pytest.importorskip("jinja2", reason="needs qkspec[html]")
pytest.importorskip("plotly", reason="needs qkspec[html]")

TRACES = "return document.getElementById('trajectories').data.map((t) => t.name || '')"


def pair(a: Report, b: Report, runs: tuple[str, str]) -> Pair:
    found = compare((a, runs[0]), (b, runs[1]))
    return Pair(found, RunView.of(a, runs[0]), RunView.of(b, runs[1]), findings(found), document(found))


@pytest.fixture(scope="module")
def opened(driver: Any, two_runs: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("pair") / "compare.html"
    save(pair(two_runs, two_runs, ("lost", "sound")), out)
    return Page(driver, out)


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The page as if it had just been opened; no error and no request may have come of the test."""
    opened.act(
        lambda: opened.js(
            "for (const id of ['find', 'only']) control(id).value = ''; control('metric').selectedIndex = 0;"
            "state.metric = control('metric').value; state.head = -1; control('curves').value = -1;"
            "chooseMoment(PAIR.last)"
        )
    )
    yield opened
    assert opened.problems() == []
    assert opened.requests() == []


def test_it_says_where_the_runs_part_and_which_verdicts_differ(page: Page, two_runs: Report) -> None:
    parted = compare((two_runs, "lost"), (two_runs, "sound")).parted
    assert parted is not None
    card = page.find(".summary article:first-of-type").text
    assert card.startswith(f"They part at step {parted[0]} ({parted[1]})")
    assert "At their first common step the weights' sigma1 are the same." in card
    assert page.texts("#verdicts tbody td") == ["malignant", "healthy", "6", "healthy", "healthy", "6"]
    assert page.texts(".summary .state") == ["lost", "sound"]
    for name in ("trajectories", "map-a", "map-b"):
        assert page.js("return document.querySelectorAll(`#${arguments[0]} .main-svg`).length", name) > 0, name


def test_the_cards_of_both_runs_share_the_whole_width(page: Page) -> None:
    answer, a, b = page.js(
        "return [...document.querySelectorAll('.summary > article')].map((card) => card.getBoundingClientRect())"
    )
    assert (a["left"], b["right"]) == (answer["left"], answer["right"])
    assert a["width"] == pytest.approx(b["width"])


def test_both_medians_are_drawn_over_the_steps(page: Page, two_runs: Report) -> None:
    page.choose("#metric", "sigma1")
    assert [name for name in page.js(TRACES) if name] == ["A lost, median", "B sound, median"]
    for run, name in (("lost", "A lost, median"), ("sound", "B sound, median")):
        drawn = page.js(
            "return document.getElementById('trajectories').data.find((t) => t.name === arguments[0]).y", name
        )
        median = np.median(RunView.of(two_runs, run).metric("sigma1"), axis=1)
        assert drawn == pytest.approx(median.tolist(), rel=1e-3)
    words = page.js("return document.getElementById('trajectories').layout.annotations.map((a) => a.text)")
    parted = compare((two_runs, "lost"), (two_runs, "sound")).tracks[0].parted
    assert words == [f"medians part for good at step {parted}"]


def test_a_click_on_a_map_overlays_one_head_and_undoes_it(page: Page) -> None:
    from selenium.webdriver import ActionChains

    drag = page.find("#map-b .nsewdrag")
    corner = (-int(drag.size["width"] / 2) + 5, -int(drag.size["height"] / 2) + 5)  # the first row, the first column
    for chosen in (True, False):
        page.act(lambda: ActionChains(page.driver).move_to_element_with_offset(drag, *corner).click().perform())
        assert ("B sound, layer 0 head 0" in page.js(TRACES)) is chosen
        assert ("A lost, layer 0 head 0" in page.js(TRACES)) is chosen
        assert page.js("return control('curves').selectedOptions[0].text.startsWith('layer 0 head 0')") is chosen


def test_the_slider_moves_both_maps(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    assert page.texts("#title-a, #title-b") == ["lost, step 160", "sound, step 160"]
    page.act(lambda: page.find("#moment").send_keys(Keys.HOME))
    assert page.texts("#title-a, #title-b") == ["lost, step 0", "sound, step 0"]
    zs = [page.js(f"return document.getElementById('map-{side}').data[0].z.flat()") for side in "ab"]
    assert zs[0] == pytest.approx(zs[1], abs=1e-3)  # packed on the scale of each run


def test_the_table_shows_both_verdicts_and_filters_those_that_differ(page: Page) -> None:
    assert len(page.texts("#heads tbody tr")) == 12
    assert page.column(4)[0] == "Mmalignant"
    assert page.column(5)[0] == ".healthy"
    page.choose("#only", "≠")
    assert page.find("#found").text == "6 of 12 heads"
    page.act(lambda: page.find("#heads th[data-key='sigma1_a'] button").click())
    down = [float(text) for text in page.column(8)]
    assert down == sorted(down, reverse=True)
    page.act(lambda: page.find("#heads tbody button").click())
    assert any(name.startswith("A lost, layer") for name in page.js(TRACES))


def test_every_metric_and_both_themes_draw(page: Page) -> None:
    for metric in page.js("return [...control('metric').options].map((o) => o.value)"):
        page.choose("#metric", metric)
    for _ in range(3):
        page.act(lambda: page.find("#theme").click())


@pytest.mark.parametrize("shape", ["other heads", "other steps", "no steps", "one checkpoint", "names"])
def test_unlike_runs_draw(
    driver: Any,
    one_run: Report,
    make_report: Callable[..., Report],
    rename: Callable[[Report, str], Report],
    tmp_path: Path,
    shape: str,
) -> None:
    name = "</script><img src=x onerror='window.hacked=1'>{{ 7 * 7 }}\x1b"
    other, run = {
        "other heads": lambda: (make_report(("b", (0.0, 6.0)), layers=2, heads=6), "b"),
        "other steps": lambda: (make_report(("b", (0.0, 1.0, 2.0)), steps=(5, 15, 1000)), "b"),
        "no steps": lambda: (make_report(("b", (0.0, 6.0)), steps=(None, None)), "b"),
        "one checkpoint": lambda: (make_report(("b", (6.0,)), steps=(40,)), "b"),
        "names": lambda: (rename(one_run, name), name + "lost"),
    }[shape]()
    save(pair(one_run, other, ("lost", run)), tmp_path / "page.html")
    page = Page(driver, tmp_path / "page.html")
    page.choose("#metric", "sigma1")
    page.choose("#moment", "0")
    page.act(lambda: page.js("chooseHead(PAIR.heads - 1)"))
    assert page.js("return window.hacked") is None
    assert page.js("return document.querySelectorAll('a, img').length") == 0
    assert page.problems() == []
    assert page.requests() == []


def test_the_command_writes_a_directory_or_a_page(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(sample / "step-000000"), str(sample / "step-000600")
    for _ in range(2):  # the second replaces the first
        assert main(["compare", a, b, "-q", "-o", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.html", "compare.json"}
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["schema"] == 1
    assert "no step in common" in capsys.readouterr().out
    assert main(["compare", a, b, "-q", "-o", str(tmp_path / "page.html")]) == 0
    assert "no step in common" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["compare", a, b, "-q", "-o", str(tmp_path / "out")]) == 2
    assert "holds mine.txt" in capsys.readouterr().err


def test_what_is_not_a_comparison_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for name in ("file", "folder.html"):
        with pytest.raises(UsageError, match="name a"):
            check_target(tmp_path / name)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'compare.html needs jinja2 and plotly: pip install "qkspec\[html\]"'):
        check_target(tmp_path / "new")
