import dataclasses
import math
import time
import warnings
from pathlib import Path

import pytest

from qkspec.errors import UsageError
from qkspec.train import loggers, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.loop import Step


@pytest.fixture
def config(tiny: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny, steps=4, eval_every=2, probe_every=2)


def _run(config: TrainConfig, folder: Path, name: str) -> dict[int, float]:
    """Run with one logger and return the losses of metrics.jsonl by step."""
    loggers.check([name])
    steps = loggers.logged(runs.run(config, folder, runs.Stop()), [name], folder, config)
    assert [s.step for s in steps] == [0, 1, 2, 3, 4]
    return {r["step"]: r["loss"] for r in save.lines(folder / "metrics.jsonl") if "loss" in r}


def test_tensorboard_holds_every_loss(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        losses = _run(config, tmp_path / "run", "tensorboard")
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(losses, rel=1e-5)
    assert len(events.Scalars("probe/transformer.h.0.attn/entropy/head1")) == 3


def test_wandb_works_offline(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _run(config, tmp_path / "run", "wandb")
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    while b"validation" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # its service writes the last block after finish() has returned
    for name in (b"loss", b"validation", b"probe/transformer.h.1.attn/entropy/head0"):
        assert name in record.read_bytes()


def test_mlflow_holds_every_loss(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    losses = _run(config, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = (e for e in client.search_experiments() if e.name == "qkspec")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {m.step: m.value for m in history} == pytest.approx(losses, rel=1e-5)
    assert found.data.params["tau"] == "0.01"


def test_an_unknown_logger_or_a_missing_package_is_said_before_the_run() -> None:
    with pytest.raises(UsageError, match="tensorboard, wandb, mlflow"):
        loggers.check(["visdom"])


def test_only_finite_numbers_are_logged() -> None:
    assert loggers.scalars(Step(3, loss=math.nan, lr=0.1, bound=None)) == {"lr": 0.1, "seconds": 0.0}


def test_logging_changes_no_weight(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _run(config, tmp_path / "logged", "tensorboard")
    list(runs.run(config, tmp_path / "plain", runs.Stop()))
    a, b = (tmp_path / n / "step-000004" / "resume.safetensors" for n in ("logged", "plain"))
    assert a.read_bytes() == b.read_bytes()


class Broken(loggers.Logger):
    """A service that answers ``left`` times."""

    left = 2

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        if not Broken.left:
            raise ConnectionError("no server there\nsecond line")

    def log(self, step: int, values: object) -> None:
        if step >= Broken.left:
            raise ConnectionError("no answer")

    def close(self) -> None:
        raise ConnectionError("no answer")


def test_a_logger_that_fails_does_not_end_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", (("broken", Broken),))
    steps = list(loggers.logged(runs.run(config, tmp_path / "run", runs.Stop()), ["broken"], tmp_path, config))
    assert steps[-1].step == config.steps
    said = capsys.readouterr().err
    assert said.count("--log broken failed (no answer); the run goes on") == 2  # in the midst, and when it closes
    monkeypatch.setattr(Broken, "left", 0)
    with pytest.raises(UsageError, match=r"--log broken cannot start \(no server there\)"):
        next(loggers.logged(runs.run(config, tmp_path / "other", runs.Stop()), ["broken"], tmp_path, config))
