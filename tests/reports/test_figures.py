"""Figures: drawn for every shape of report, the same bytes for the same report, names drawn as they stand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from qkspec.analysis import Report
from qkspec.baseline import Bands
from qkspec.curve import Curve
from qkspec.errors import OutputError, UsageError
from qkspec.reports import figures
from qkspec.reports.directory import write_directory
from qkspec.reports.figures import FIGURES, freezing_trajectories, sec_curves, sigma1_trajectories
from qkspec.reports.plots import draw_into
from qkspec.reports.saved import load
from qkspec.reports.style import styled
from qkspec.reports.view import RunView

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("plot_format", ["png", "svg", "pdf"])
def test_each_format_is_drawn(
    one_run: Report, tmp_path: Path, plot_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plot_format == "pdf":  # cutting the fonts to what is used takes seconds a figure
        monkeypatch.setattr(figures, "FIGURES", FIGURES[:1])
    files = draw_into(one_run, tmp_path, plot_format=plot_format)
    assert {path.stem for path in files} == {name for name, _ in figures.FIGURES}
    assert all(path.read_bytes().startswith(MAGIC[plot_format]) for path in files)


def test_the_same_report_is_drawn_alike(one_run: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", FIGURES[:2])
    a, b = (draw_into(one_run, tmp_path / name, plot_format="svg") for name in "ab")
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


def test_other_files_of_the_folder_stay(one_run: Report, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "sigma1.svg").write_text("old")
    draw_into(one_run, tmp_path, plot_format="svg")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "sigma1.svg").read_text().startswith("<?xml")
    assert len(list(tmp_path.iterdir())) == len(FIGURES) + 1


def test_a_wrong_format_or_place_is_an_error(one_run: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not one of png, svg, pdf"):
        draw_into(one_run, tmp_path, plot_format="exe")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        draw_into(one_run, tmp_path / "file")


def test_the_lines_are_the_readings(one_run: Report) -> None:
    view = RunView.of(one_run, "lost")
    with styled():
        figure = sigma1_trajectories(one_run)
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    values = view.metric("sigma1")
    for column in range(values.shape[1]):
        assert any(len(y) == len(values) and np.array_equal(y, values[:, column]) for y in drawn)
    limits = [
        line.get_ydata()[0]
        for line in _drawn(one_run, freezing_trajectories).axes[0].lines
        if line.get_linestyle() != "-"
    ]
    assert one_run.limits.freezing in limits


def with_losses(report: Report, *runs: str, trouble: float = 3.0) -> Report:
    """The report with a loss for some runs: the first goes up from step 100."""
    from qkspec.judging import assemble

    steps = np.arange(0, 201)
    falling = 5 * np.exp(-steps / 60.0) + 1
    losses = {run: Curve(steps, falling + (steps > 100) * trouble * (run == runs[0])) for run in runs}
    return assemble(
        report.readings, report.applicable, report.limits, checkpoints=report.checkpoints, skipped=report.skipped,
        spectra=report.spectra, losses=losses,
    )  # fmt: skip


def test_the_loss_stands_below_on_the_same_steps(two_runs: Report) -> None:
    report = with_losses(two_runs, "lost", "sound")
    figure = _drawn(report, sigma1_trajectories)
    upper, lower = figure.axes[:2]
    assert len(figure.axes) == 4
    assert lower.get_shared_x_axes().joined(upper, lower)
    assert upper.get_xlim() == lower.get_xlim() == (0, 160)
    assert lower.get_position().y1 < upper.get_position().y0
    loss, trouble = report.stories["lost"].loss, report.stories["lost"].trouble
    assert loss is not None
    assert trouble is not None
    assert np.array_equal(lower.lines[0].get_ydata(), loss.values)
    assert [text.get_text() for text in lower.texts] == [f"rises for good at step {trouble.step}"]
    assert figure.axes[3].get_shared_y_axes().joined(lower, figure.axes[3])


def test_a_run_without_a_loss_says_so_beside_one_that_has_it(two_runs: Report) -> None:
    figure = _drawn(with_losses(two_runs, "lost"), sigma1_trajectories)
    assert [text.get_text() for text in figure.axes[3].texts] == ["no loss was found"]
    assert len(_drawn(two_runs, sigma1_trajectories).axes) == 2


@pytest.mark.parametrize("kind", ["huge", "not finite", "one point", "one checkpoint", "one step", "no steps"])
def test_odd_losses_are_drawn(make_report: Callable[..., Report], tmp_path: Path, kind: str) -> None:
    shape: dict[str, object] = {"steps": {"no steps": (None, None), "one step": (100, 100)}.get(kind, (0, 100))}
    report = make_report(("a", (0.0,) if kind == "one checkpoint" else (0.0, 6.0)), layers=1, **shape)
    report = with_losses(report, "a", trouble=1e6 if kind == "huge" else np.nan if kind == "not finite" else 0.0)
    if kind == "one point":
        story = replace(report.stories["a"], loss=Curve(np.array([5]), np.array([2.0])), trouble=None)
        report = replace(report, stories={"a": story})
    assert len(draw_into(report, tmp_path)) == len(FIGURES)
    lower = _drawn(report, sigma1_trajectories).axes[-1]
    assert lower.get_yscale() == ("log" if kind in ("huge", "no steps") else "linear")
    if kind == "one step":
        assert lower.get_xlim()[0] < 5, "the loss is seen, not one point of it"


def test_a_baseline_is_drawn_as_what_its_heads_showed(one_run: Report, make_report: Callable[..., Report]) -> None:
    base = make_report(("base", (0.0, 0.1, 0.2)), steps=(0, 20, 80)).readings
    report = replace(one_run, bands=Bands.of(base, "base$"))
    figure = _drawn(report, sigma1_trajectories)
    ((band,),) = [axis.collections for axis in figure.axes]
    points = band.get_paths()[0].vertices
    at_20 = base.metric("sigma1")[base["step"] == 20]
    shown = points[points[:, 0] == 20, 1]
    assert (shown.min(), shown.max()) == pytest.approx((at_20.min(), at_20.max()))
    assert (points[:, 0].min(), points[:, 0].max()) == (0, 160)
    assert r"baseline base\$" in [text.get_text() for text in figure.legends[0].get_texts()]
    stepless = make_report(("base", (0.0, 0.1)), steps=(None, None)).readings
    assert _drawn(replace(one_run, bands=Bands.of(stepless, "b")), freezing_trajectories).axes[0].collections
    unknown = make_report(("none", (0.0, 6.0)), steps=(None, None))
    assert _drawn(replace(unknown, bands=report.bands), sigma1_trajectories).axes[0].collections


def test_sec_curves_end_at_one(one_run: Report) -> None:
    for axis in _drawn(one_run, sec_curves).axes:
        assert all(line.get_ydata()[-1] == pytest.approx(1.0) for line in axis.lines)
        assert axis.lines


def _drawn(report: Report, draw: Callable[[Report], Figure]) -> Figure:
    with styled():
        return draw(report)


@pytest.mark.parametrize(
    "shape",
    [
        "one checkpoint",
        "no steps",
        "no spectra",
        "names",
        "seven runs",
        "many heads",
        "all dead",
        "thin heads",
        "huge",
        "same step",
    ],
)
def test_every_shape_of_report_can_be_drawn(
    one_run: Report,
    two_runs: Report,
    make_report: Callable[..., Report],
    rename: Callable[[Report, str], Report],
    evil: str,
    tmp_path: Path,
    shape: str,
) -> None:
    report = {
        "one checkpoint": lambda: make_report(("one", (6.0,))),
        "no steps": lambda: make_report(("none", (0.0, 1.0, 6.0)), steps=(None, None, None)),
        "no spectra": lambda: replace(one_run, spectra={}),
        "names": lambda: rename(two_runs, evil + "$x_1$ _日本"),
        "seven runs": lambda: make_report(
            *((f"run {i}", (0.0, 1.0)) for i in range(7)), layers=1, steps=(0, 9), heads=2
        ),
        "many heads": lambda: make_report(("wide", (0.0, 6.0)), layers=2, heads=48),
        "all dead": lambda: dead(one_run),
        "thin heads": lambda: make_report(("thin", (0.0, 6.0)), layers=1, d_q=1),
        "same step": lambda: make_report(("same", (0.0, 1.0, 6.0)), layers=1, steps=(5, 5, 5)),
        "huge": lambda: replace(one_run, spectra={key: s * np.inf for key, s in one_run.spectra.items()}),
    }[shape]()
    assert len(draw_into(report, tmp_path)) == len(FIGURES)


def test_a_map_of_some_heads_says_their_numbers(one_run: Report, tmp_path: Path) -> None:
    part = load(write_directory(one_run, tmp_path / "out", formats=[]), heads={1, 3})
    figure = _drawn(part, figures.head_map)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "3"]
    (image,) = figure.axes[0].images
    view = RunView.of(part, "lost")
    np.testing.assert_array_equal(image.get_array(), view.metric("freezing_ratio")[-1].reshape(3, 2))


def dead(report: Report) -> Report:
    from qkspec.analysis import assemble
    from qkspec.readings import Readings

    columns = dict(report.readings.columns)
    for name in report.readings.metrics:
        columns[name] = np.full(len(report.readings), 0.0 if name in ("sigma1", "freezing_ratio") else np.nan)
    spectra = {key: np.zeros_like(sigma) for key, sigma in report.spectra.items()}
    return assemble(
        Readings(columns), report.applicable, report.limits, checkpoints=report.checkpoints, skipped={}, spectra=spectra
    )


def test_an_svg_holds_no_name_that_could_act(
    two_runs: Report, rename: Callable[[Report, str], Report], tmp_path: Path
) -> None:
    import re

    name = "--><script>alert(1)</script><a href='x'>]]>&\x1b"
    for path in draw_into(rename(two_runs, name), tmp_path, plot_format="svg"):
        root = ET.fromstring(path.read_text(encoding="utf-8"))  # well-formed
        assert not {
            tag
            for element in root.iter()
            if (tag := re.sub(r"{.*}", "", element.tag)) in ("script", "a", "foreignObject")
        }
        assert "\x1b" not in path.read_text(encoding="utf-8")
