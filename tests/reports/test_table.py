"""The summary in the terminal: says what matters, fits the width, interprets nothing."""

import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from qkspec.analysis import Report, assemble
from qkspec.readings import Readings
from qkspec.reports.directory import write_directory
from qkspec.reports.glyphs import Glyphs, thin
from qkspec.reports.palette import LOOKS, STATES
from qkspec.reports.saved import load
from qkspec.reports.table import render
from qkspec.reports.view import RunView, number, with_error
from qkspec.theorem import Verdict

Rename = Callable[[Report, str], Report]


def shown(report: Report, width: int = 80, encoding: str = "utf-8", *, colour: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="truecolor" if colour else None, _environ={}
    )
    render(report, console)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_it_says_what_a_tired_engineer_needs(two_runs: Report) -> None:
    text = shown(two_runs, 100)
    for part in (
        "6 checkpoints, steps 0 to 160", "12/12 heads in 3 layers", "LOST",
        "6 of 12 heads (50%) concentrated and frozen (κ ≥ 1.00) at step 160",
        "step 20: layer 2 head 0 turned malignant", "κ 0.582 ≥ 0.450", "worst heads at step 160",
        "6 malignant, 6 healthy",
        "SOUND", "no head was malignant at any checkpoint", "12 healthy",
        "model.safetensors: is 12 bytes, too short; save it again",
        "M malignant", "max σ1",
    ):  # fmt: skip
        assert part in text, part
    assert text.index("layer  head") < text.index("layer × head")


def test_the_map_of_some_heads_says_their_numbers(make_report: Callable[..., Report], tmp_path: Path) -> None:
    whole = make_report(("one", (6.0,)), layers=2, heads=12)
    text = shown(whole)
    assert "0 M · M · M · M · M · M ·\n" in text[text.index("layer × head") :]
    part = load(write_directory(whole, tmp_path / "out", formats=[]), heads={1, 10})
    lines = shown(part).splitlines()
    at = next(i for i, line in enumerate(lines) if "layer × head" in line)
    assert [line.split() for line in lines[at + 1 : at + 4]] == [["1", "10"], ["0", "·", "M"], ["1", "·", "M"]]
    assert [line.rindex(last) for line, last in zip(lines[at + 1 : at + 4], "0MM", strict=True)] == [9, 9, 9]


def test_one_checkpoint_has_no_course(make_report: Callable[..., Report]) -> None:
    """Nothing turned, nothing is first, nothing is since: it is so, or it is not."""
    reports = (make_report((name, (size,))) for name, size in (("sound", 0.0), ("lost", 6.0)))
    sound, lost = (" ".join(shown(report).split()) for report in reports)
    assert "worst: no head is malignant" in sound
    assert "worst: layer 2 head 2 is malignant, with 5 more" in lost
    assert "from 50% a model counts as lost" in lost
    for text in (sound, lost):
        assert not re.search(r"turned|since|first|at any checkpoint", text)
    assert "worst heads" not in sound


@pytest.mark.parametrize("width", [20, 40, 79, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("colour", [False, True])
def test_it_is_never_wider_than_the_terminal(
    two_runs: Report,
    rename: Rename,
    evil: str,
    make_report: Callable[..., Report],
    width: int,
    encoding: str,
    colour: bool,
) -> None:
    wide = make_report(("wide", (0.0, 6.0)), layers=2, heads=24)
    for report in (two_runs, rename(two_runs, evil), wide):
        text = shown(report, width, encoding, colour=colour)
        assert max(cell_len(line) for line in strip(text).splitlines()) <= width


def strip(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_plain_output_has_no_escape_sequence(two_runs: Report) -> None:
    assert "\x1b" not in shown(two_runs)
    assert "\x1b[" in shown(two_runs, colour=True)


def test_ascii_fallback_is_ascii_and_still_draws(two_runs: Report) -> None:
    text = shown(two_runs, 120, "ascii")
    assert text.isascii()
    assert "kappa 0.582 >= 0.450" in text
    assert "max sigma1" in text
    assert "M malignant" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_inert(two_runs: Report, rename: Rename, evil: str, encoding: str) -> None:
    text = shown(rename(two_runs, evil), 200, encoding)
    assert "[red]x[/red]" in text
    bad = [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert not bad
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_colour_escapes_are_only_ours(two_runs: Report, rename: Rename, evil: str) -> None:
    text = shown(rename(two_runs, evil), 200, colour=True)
    assert "\x1b[31m\\" not in text
    assert "\x1b]" not in text  # no hyperlink
    assert "\x9b" not in text


def test_many_layers_are_folded_to_those_in_trouble(make_report: Callable[..., Report]) -> None:
    text = shown(make_report(("deep", (0.0, 0.01)), layers=44, heads=2))
    assert "… 4 more layers" in text


def test_one_checkpoint_without_a_step_is_named(make_report: Callable[..., Report]) -> None:
    text = shown(make_report(("final", (6.0,)), steps=(None,)))
    assert "1 checkpoint ·" in text
    assert "at checkpoint 0" in text
    assert "max σ1" not in text  # no trajectory of one point


def test_broken_heads_are_named_first(one_run: Report) -> None:
    columns = dict(one_run.readings.columns)
    sigma = columns["sigma1"].copy()
    sigma[-1] = np.nan
    columns["sigma1"] = sigma
    report = assemble(
        Readings(columns), one_run.applicable, one_run.limits, checkpoints=one_run.checkpoints, skipped={}, spectra={}
    )
    text = shown(report)
    assert "BROKEN   weights hold NaN or Inf at step 160" in text
    table = text[text.index("layer  head") :].splitlines()
    assert "broken" in table[1]


def test_every_verdict_and_state_has_its_look() -> None:
    assert set(LOOKS) == set(Verdict)
    assert len({look.letter for look in LOOKS.values()}) == len(Verdict)
    assert set(STATES) == {"broken", "lost", "warned", "sound", "unjudged"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (0.04512, "0.0451"), (123.456, "123"), (20123.4, "20123"),
     (1e7, "1.0e+07"), (3e-9, "3.0e-09"),
     (float("nan"), "-"), (float("inf"), "inf"), (-2.5, "-2.50"), (999.9, "1000")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.66012, 0.0381, "0.66 ± 0.04"), (0.66, 0.0123, "0.660 ± 0.012"), (0.66, 0.0195, "0.66 ± 0.02"),
     (0.66, 0.098, "0.66 ± 0.10"), (123.4, 12.3, "123 ± 12"), (0.5, 0.0, "0.500"), (0.5, None, "0.500"),
     (0.5, float("nan"), "0.500"), (0.2, 0.8, "0.2 ± 0.8"), (1e5, 4e3, "1.0e+05 ± 4000")],
)  # fmt: skip
def test_an_error_has_one_or_two_figures_and_the_value_as_many_places(
    value: float, error: float | None, text: str
) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("values", "drawn"),
    [((1.0, 2.0, 3.0), "▁▅█"), ((5.0, 5.0), "▁▁"), ((1.0, float("nan"), 2.0), "▁ █"), ((1.0, 10.0, 100.0), "▁▅█"),
     ((float("nan"),), " "), ((0.0, float("inf"), 1.0), "▁ █")],
)  # fmt: skip
def test_sparklines(values: Sequence[float], drawn: str) -> None:
    assert Glyphs(unicode=True).sparkline(values, 60) == drawn
    assert Glyphs(unicode=False).sparkline(values, 60).isascii()


def test_thinning_keeps_the_peak() -> None:
    values = np.zeros(1000)
    values[321] = 9.0
    assert thin(values, 40).max() == 9.0
    assert len(thin(values, 40)) == 40


def test_a_view_lays_out_every_row(two_runs: Report) -> None:
    view = RunView.of(two_runs, "lost")
    assert view.grid.shape == (6, 12)
    rows = view.grid[view.grid >= 0]
    assert len(set(rows.tolist())) == rows.size == (two_runs.readings["run"] == "lost").sum()
    first = view.first_turn()
    assert first is not None
    assert two_runs.verdicts[first] is Verdict.MALIGNANT
    since = view.since(view.worst()[0])
    assert since is not None
    assert view.steps[since] == 40
