"""``qkspec plot``: the command draws a saved report again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qkspec.analysis import Report
from qkspec.cli import main
from qkspec.reports.directory import write_directory


def test_it_draws_into_a_folder(one_run: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = write_directory(one_run, tmp_path / "report", formats=())
    assert main(["plot", str(report), "--out", str(tmp_path / "figures"), "--plot-format", "svg"]) == 0
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 4
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_its_own_plots_keep_the_report_whole(one_run: Report, tmp_path: Path) -> None:
    report = write_directory(one_run, tmp_path / "report", formats=())
    assert main(["plot", str(report)]) == 0
    assert len(list((report / "plots").iterdir())) == 4
    write_directory(one_run, report, formats=())  # still a report of ours, so it may be replaced


def test_it_draws_among_no_reports_files(one_run: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = write_directory(one_run, tmp_path / "report", formats=())
    assert main(["plot", str(report), "--out", str(report)]) == 2
    assert "is a report, which figures among its files would spoil" in capsys.readouterr().err
    write_directory(one_run, report, formats=())  # nothing was drawn there


def test_a_baseline_is_drawn_behind(one_run: Report, make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = write_directory(one_run, tmp_path / "report", formats=())
    base = write_directory(make_report(("sound", (0.0, 0.1, 0.2))), tmp_path / "base", formats=())
    for name, more in (("without", []), ("with", ["--baseline", str(base)])):
        assert main(["plot", str(report), "--plot-format", "svg", "-o", str(tmp_path / name), *more]) == 0
    without, banded = ((tmp_path / name / "sigma1.svg").read_text() for name in ("without", "with"))
    assert "#b5dfcd" in banded
    assert "#b5dfcd" not in without
    assert main(["plot", str(report), "--baseline", str(tmp_path)]) == 3


@pytest.mark.parametrize(("arguments", "code"), [(["nowhere"], 3), (["--plot-format", "gif", "."], 2)])
def test_what_is_no_report_is_refused(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *arguments]) == code
