"""Losses travel with a report, and what they say of the alarms comes back with them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qkspec.analysis import Report, assemble
from qkspec.curve import Curve, final
from qkspec.errors import InputError
from qkspec.reports import losses, markdown
from qkspec.reports.directory import write_directory
from qkspec.reports.saved import load
from qkspec.reports.view import RunView, loss_sentence, number


@pytest.fixture(scope="module")
def with_losses(two_runs: Report) -> Report:
    steps = np.arange(161)
    good = 3.0 / (1 + 0.02 * steps)
    bad = np.where(steps > 90, 2.5, good)
    bad[-1] = np.nan
    return assemble(
        two_runs.readings,
        two_runs.applicable,
        two_runs.limits,
        checkpoints=two_runs.checkpoints,
        skipped={},
        spectra={},
        losses={"lost": Curve(steps, bad, "lost/metrics.jsonl"), "sound": Curve(steps, good, "sound/metrics.jsonl")},
    )


def test_losses_come_back_with_what_they_say(with_losses: Report, tmp_path: Path) -> None:
    back = load(write_directory(with_losses, tmp_path / "out", formats=()))
    for run, story in with_losses.stories.items():
        assert story.loss is not None
        other = back.stories[run].loss
        assert other is not None
        assert other.source == story.loss.source
        assert np.array_equal(other.steps, story.loss.steps)
        assert np.array_equal(other.values, story.loss.values, equal_nan=True)
        assert back.stories[run].trouble == story.trouble
        assert back.stories[run].leads == story.leads


def test_a_report_without_losses_has_no_file_of_them(two_runs: Report, tmp_path: Path) -> None:
    assert not (write_directory(two_runs, tmp_path / "out", formats=()) / "losses.csv").exists()


def test_the_lead_is_told(with_losses: Report) -> None:
    lost, sound = (RunView.of(with_losses, run) for run in ("lost", "sound"))
    loss = with_losses.stories["sound"].loss
    assert loss is not None
    end = final(loss)
    assert loss_sentence(sound) == f"it ended at {number(end)}, the lowest of 2 runs, and did not rise for good"
    sentence = loss_sentence(lost)
    lead = with_losses.stories["lost"].leads["malignant"]
    assert f"the first malignant head {lead} steps before that" in sentence
    out = io.StringIO()
    markdown.write(with_losses, out)
    assert "the first malignant head" in out.getvalue()


def test_no_loss_is_no_sentence(two_runs: Report) -> None:
    assert loss_sentence(RunView.of(two_runs, "lost")) == ""
    assert loss_sentence(RunView.of(replace(two_runs, stories={}), "lost")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n",
        "run,step,loss\nx,1\n",
        "run,step,loss\nx,1.5,2\n",
        "run,step,loss\nx,1,two\n",
        "run,step,loss\nx,99999999999999999999,2\n",
    ],
)
def test_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(InputError, match=r"losses\.csv"):
        losses.read(tmp_path / "losses.csv", {})
