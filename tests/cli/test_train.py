import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkspec.cli import main

TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "8"]
TINY += ["--batch", "4", "--eval-batches", "1", "--threads", "1", "-q"]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of {i * i}\n" for i in range(500)), encoding="utf-8")
    return [*TINY, "--data", str(path)]


def test_a_run_says_its_losses_and_where_the_checkpoints_are(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *options, "--steps", "6", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "train loss" in said.out
    assert "validation loss" in said.out
    assert f"qkspec analyze {out}" in said.out
    assert said.err == ""
    assert sorted(p.name for p in out.glob("step-*")) == [f"step-{s:06d}" for s in (0, 2, 5, 6)]
    assert main(["train", "--resume", str(out), "-q"]) == 0
    assert "already finished at step 6;" in capsys.readouterr().out
    assert main(["train", "--resume", str(out), "--steps", "8", "-q"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(9))
    assert json.loads((out / "run.json").read_text())["train_config"]["width"] == 16


def test_tau_of_infinity_is_adamw_and_resumes(options: list[str], tmp_path: Path) -> None:
    for name, more in (("a", ["--optimizer", "adamw"]), ("b", ["--tau", "inf"])):
        assert main(["train", *options, *more, "--steps", "2", "--out", str(tmp_path / name)]) == 0
    assert main(["train", "--resume", str(tmp_path / "b"), "--steps", "3", "-q"]) == 0
    a, b = ([json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in "ab")
    assert len(b) == 4
    for x, y in zip(a[1:], b[1:], strict=False):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)


def test_a_run_is_not_resumed_as_another_model(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *options, "--steps", "1", "--out", out]) == 0
    assert main(["train", "--resume", out, "--model", "vit"]) == 2
    assert f"--model vit: {out} trains a gpt; leave --model out" in capsys.readouterr().err
    assert main(["train", "--resume", out, "--model", "gpt", "--steps", "0", "-q"]) == 0


def test_tau_without_adamw2_is_told(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options.remove("-q")
    for name, more, told in (("a", ["--tau", "0.1"], True), ("b", [], False)):
        run = ["train", *options, *more, "--optimizer", "adamw", "--steps", "1", "--out", str(tmp_path / name)]
        assert main(run) == 0
        assert ("warning: --tau bounds the steps of adamw2" in capsys.readouterr().err) == told


def test_progress_is_lines_on_stderr_where_there_is_no_terminal(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options.remove("-q")
    assert main(["train", *options, "--steps", "4", "--eval-every", "2", "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["0/4", "2/4", "4/4"]
    assert all(word in lines[-1] for word in ("loss", "lr", "bound", "validation"))


def test_a_crash_is_a_result_unless_asked_otherwise(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = ["train", *options, "--optimizer", "adamw", "--lr", "1000", "--steps", "200"]
    assert main([*crash, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert "ended early" in said.out
    assert ", validation loss 5." in said.out
    assert " at step 0\n" in said.out, "a validation loss from long before the crash says so"
    assert "the run ends here" in said.err
    (evidence,) = (tmp_path / "a").glob("alarm-*")
    assert f"; see {evidence}" in said.err
    assert {p.name for p in evidence.iterdir()} == {"alarm.json", "maps.png"}
    assert main([*crash, "--out", str(tmp_path / "b"), "--fail-on-nan"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [["--layers", "0"], ["--lr", "nan"], ["--norm", "batch"], ["--model", "rnn"], ["--resume", "x", "--out", "y"]],
)
def test_a_wrong_setting_is_exit_2(options: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_data_that_is_not_there_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "run")]) == 3
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_done(options: list[str], tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "qkspec", "train", *options, "--steps", "100000", "--out", str(out)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True)
    while not (out / "step-000020").exists():
        assert child.poll() is None
        time.sleep(0.05)
    sent = time.monotonic()
    child.send_signal(number)
    assert child.stdout is not None
    printed = (
        child.stdout.readline() + child.stdout.readline()
    )  # the summary: all is kept by now, and what is left is the interpreter's exit
    assert time.monotonic() - sent < 5
    rest, errors = child.communicate(timeout=60)
    assert child.returncode == code
    assert errors == ""
    assert "checkpoints in" in printed + rest
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (out / f"step-{last:06d}" / "resume.safetensors").is_file()
    assert not list(out.glob(".*"))


def test_remedies_are_compared_in_one_command(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bakeoff"
    command = ["train", *options, "--steps", "6", "--compare", "adamw,adamw2", "--learning-rates", "0.003,0.01"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| adamw2 |" in said
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [
        f"{name}-lr{lr}" for name in ("adamw", "adamw2") for lr in ("0.003", "0.01")
    ]
    assert main([*command, "--resume", str(out)]) == 2


def test_a_preset_lies_under_the_options_given(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", *options, "--preset", "gpt2", "--steps", "1", "--accumulate", "1", "--out", str(out)]) == 0
    settings = json.loads((out / "run.json").read_text())["train_config"]
    assert (settings["width"], settings["steps"]) == (16, 1)
    assert (settings["tau"], settings["clip"], settings["vocab"]) == (0.01, 1.0, 50_304)
    assert main(["train", *options, "--preset", "gpt5", "--out", str(tmp_path / "other")]) == 2
