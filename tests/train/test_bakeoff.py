import csv
import dataclasses
import shutil
from pathlib import Path

import pytest

from qkspec.errors import UsageError
from qkspec.train import bakeoff, save
from qkspec.train.config import TrainConfig
from qkspec.train.run import Stop

PNG = b"\x89PNG\r\n\x1a\n"


def _run(trials: list[bakeoff.Trial]) -> list[bakeoff.Entry]:
    for trial in trials:
        list(bakeoff.run(trial, Stop()))
    return [bakeoff.entry(trial) for trial in trials]


def test_every_remedy_is_planned_at_every_rate_on_one_seed(tiny: TrainConfig, tmp_path: Path) -> None:
    trials = bakeoff.plan(tiny, ["all"], [0.003, 0.01], tmp_path)
    assert len(trials) == 2 * len(bakeoff.REMEDIES)
    assert len({t.folder for t in trials}) == len(trials)
    assert {t.config.seed for t in trials} == {tiny.seed}
    by_name = {t.remedy: t.config for t in trials}
    assert by_name["adamw"].warmup == 0
    assert by_name["adamw+warmup"].warmup == round(0.2 * tiny.steps)
    assert by_name["sigma"].reparam == "sigma"
    assert by_name["qknorm"].qk_norm
    assert bakeoff.about(["adamw", "adamw+warmup"], tiny) == "gpt, 12 steps, seed 0, warmup of 2 steps"
    (own,) = bakeoff.plan(dataclasses.replace(tiny, warmup=5), ["adamw+warmup"], [], tmp_path)
    assert own.config.warmup == 5
    for wrong in (["sgd"], []):
        with pytest.raises(UsageError, match="--compare"):
            bakeoff.plan(tiny, wrong, [], tmp_path)


def test_a_comparison_writes_one_table_and_the_figure(tiny: TrainConfig, tmp_path: Path) -> None:
    trials = bakeoff.plan(tiny, ["adamw", "adamw2", "qknorm"], [0.003, 0.01], tmp_path)
    entries = _run(trials)
    bakeoff.write(entries, tiny, tmp_path)
    with (tmp_path / "bakeoff.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["remedy"], float(r["lr"])) for r in rows] == [(t.remedy, t.config.lr) for t in trials]
    for row, one, trial in zip(rows, entries, trials, strict=True):
        metrics = list(save.lines(trial.folder / "metrics.jsonl"))
        assert float(row["validation"]) == pytest.approx(metrics[-1]["validation"], rel=1e-5)
        assert one.outcome == "ok"
        assert one.entropy is not None
        assert 0 < one.entropy <= 1
        assert one.train == pytest.approx(metrics[-1]["loss"], abs=1e-6)  # a twentieth of twelve steps is the last one
    text = (tmp_path / "bakeoff.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == 4
    assert "lr 0.003" in text
    assert "12 steps, seed 0, τ 0.01 (" in text
    assert (tmp_path / "bakeoff.png").read_bytes().startswith(PNG)
    assert not list(tmp_path.glob(".*"))


def test_a_comparison_goes_on_where_it_stopped(tiny: TrainConfig, tmp_path: Path) -> None:
    whole = _run(bakeoff.plan(tiny, ["adamw", "adamw2"], [], tmp_path / "whole"))
    trials = bakeoff.plan(tiny, ["adamw", "adamw2"], [], tmp_path / "broken")
    list(bakeoff.run(trials[0], Stop()))
    for step in bakeoff.run(trials[1], Stop()):
        if step.step == 7:
            break
    assert bakeoff.entry(trials[1]).outcome == "unfinished"
    assert list(bakeoff.run(trials[0], Stop())) == []
    again = _run(trials)
    assert [e.validation for e in again] == [e.validation for e in whole]
    (other,) = bakeoff.plan(dataclasses.replace(tiny, beta1=0.8), ["adamw"], [], tmp_path / "broken")
    with pytest.raises(UsageError, match="other settings"):
        list(bakeoff.run(other, Stop()))


@pytest.mark.parametrize("rate", [0.01, 1000.0])
def test_a_run_without_its_last_checkpoint_has_not_ended(tiny: TrainConfig, tmp_path: Path, rate: float) -> None:
    """Killed after the last row, before its weights are there: both a full run and a crash go on, and then end."""
    (trial,) = bakeoff.plan(dataclasses.replace(tiny, steps=60), ["adamw"], [rate], tmp_path)
    list(bakeoff.run(trial, Stop()))
    whole = bakeoff.entry(trial)
    assert (whole.outcome == "ok") is (rate < 1)
    newest = list(save.checkpoints(trial.folder).values())[-1]
    shutil.rmtree(newest)
    assert bakeoff.entry(trial).outcome == "unfinished"
    assert list(bakeoff.run(trial, Stop()))
    again = bakeoff.entry(trial)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(whole, seconds=0)
    assert newest.is_dir()


def test_a_crash_is_an_entry_of_the_table(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, steps=200)
    entries = _run(bakeoff.plan(config, ["adamw"], [1000.0, 0.001], tmp_path))
    assert entries[0].outcome != "ok"
    assert entries[0].step < 200
    assert entries[1].outcome == "ok"
    bakeoff.write(entries, config, tmp_path)
    assert f"{entries[0].outcome} at {entries[0].step}" in (tmp_path / "bakeoff.md").read_text(encoding="utf-8")


def test_rates_are_positive_numbers() -> None:
    assert bakeoff.rates_of("0.01, 3e-2") == [0.01, 0.03]
    assert bakeoff.rates_of("") == []
    for wrong in ("a", "0", "-1", "nan", "0.1;0.2"):
        with pytest.raises(UsageError, match="--learning-rates"):
            bakeoff.rates_of(wrong)
