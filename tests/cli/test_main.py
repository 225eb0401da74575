"""The contract of the command line: exit codes, streams, one-line errors. Each test runs the real program."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkspec.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def program(*arguments, **options):
    """Run qkspec as a user does."""
    command = [sys.executable, "-m", "qkspec", *map(str, arguments)]
    known = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT}
    return subprocess.run(command, check=False, **{**known, **options})


def gpt2(folder, *, layers=2, heads=2, width=16, seed=0, size=1.0, spoil=None):
    """A GPT-2 checkpoint of random weights on disk."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for i in range(layers):
        weight = rng.standard_normal((width, 3 * width)).astype(np.float32) * size / np.sqrt(width)
        if spoil is not None and i == 0:
            weight[0, 0] = spoil
        tensors[f"h.{i}.attn.c_attn.weight"] = weight
        tensors[f"h.{i}.attn.c_attn.bias"] = np.zeros(3 * width, np.float32)
        tensors[f"h.{i}.ln_1.weight"] = np.ones(width, np.float32)
        tensors[f"h.{i}.ln_1.bias"] = np.zeros(width, np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "gpt2", "n_head": heads, "n_embd": width, "n_positions": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def one_line(stderr):
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    return stderr


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_of_every_command(name, capsys):
    assert main([name, "--help"] if name else ["--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qkspec 0.")


def test_analyze_prints_the_report_to_stdout_and_nothing_else(tmp_path):
    done = program("analyze", gpt2(tmp_path / "step-000010"))
    assert done.returncode == 0
    assert "4/4 heads" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("output", ["json", "csv", "markdown"])
def test_other_formats(tmp_path, output):
    done = program("analyze", gpt2(tmp_path / "a"), "--format", output)
    assert done.returncode == 0
    if output == "json":
        assert json.loads(done.stdout)["schema"] >= 1
    if output == "csv":
        assert len(done.stdout.strip().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["analyze"], 2, "PATH"),
        (["analyze", "x", "--no-such-option"], 2, "--no-such-option"),
        (["no-such-command"], 2, "no-such-command"),
        (["analyze", "no/such/path"], 3, "no/such/path"),
        (["gate", "no/such/path"], 3, "no/such/path"),
        (["inspect", "no/such/path"], 3, "no/such/path"),
        (["analyze", "README.md"], 3, "README.md"),
        (["gate", ".", "--max-sec", "nan"], 2, "--max-sec"),
        (["gate", ".", "--max-sec", "1.5"], 2, "--max-sec"),
        (["gate", ".", "--max-sigma1", "-1"], 2, "--max-sigma1"),
        (["gate", ".", "--fail-on", "nonsense"], 2, "nonsense"),
        (["analyze", ".", "--limit", "freezing"], 2, "NAME=VALUE"),
        (["analyze", ".", "--limit", "nothing=1"], 2, "nothing"),
        (["analyze", ".", "-s", "0"], 2, "-s"),
        (["analyze", ".", "--layers", "3-1"], 2, "--layers"),
        (["explain", "no-such-term"], 2, "no-such-term"),
    ],
)
def test_errors_are_one_line_with_the_right_code(arguments, code, says, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert says in one_line(err)
    assert err.startswith("error: ")


def test_a_bad_checkpoint_among_good_ones_hides_none(tmp_path):
    gpt2(tmp_path / "run" / "step-000001")
    gpt2(tmp_path / "run" / "step-000002")
    (tmp_path / "run" / "step-000002" / "model.safetensors").write_bytes(b"not a header")
    gpt2(tmp_path / "run" / "step-000003")
    done = program("analyze", tmp_path / "run", "--format", "json")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "step-000002" in one_line(done.stderr)
    report = json.loads(done.stdout)
    assert "step-000002" in next(iter(report["skipped"]))
    assert program("gate", tmp_path / "run", "--max-sec", "1").returncode == 3
    assert program("gate", tmp_path / "run", "--max-sec", "1", "--allow-skipped").returncode == 0
    assert program("gate", tmp_path / "run", "--max-sec", "0.01").returncode == 1


def test_gate_over_no_heads_cannot_pass(tmp_path):
    (tmp_path / "run").mkdir()
    save_file({"embedding.weight": np.ones((4, 4), np.float32)}, tmp_path / "run" / "model.safetensors")
    assert program("gate", tmp_path / "run", "--max-sec", "1").returncode == 3
    assert program("gate", tmp_path / "run", "--max-sec", "1", "--allow-skipped").returncode == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gate_fails_on_weights_that_are_not_finite(tmp_path, bad):
    path = gpt2(tmp_path / "a", spoil=bad)
    done = program("gate", path, "--max-sigma1", "1e9")
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert program("gate", path).returncode == 1
    assert program("analyze", path).returncode == 0


def test_settings_file_and_flag(tmp_path):
    path = gpt2(tmp_path / "a")
    (tmp_path / "qkspec.toml").write_text("[gate]\nmax_sec = 0.01\ns = 1\n")
    assert program("gate", path, cwd=tmp_path, env=environment()).returncode == 1
    assert program("gate", path, "--max-sec", "1", cwd=tmp_path, env=environment()).returncode == 0
    (tmp_path / "qkspec.toml").write_text("[gate]\nmax_sex = 0.01\n")
    done = program("gate", path, cwd=tmp_path, env=environment())
    assert done.returncode == 2
    assert "max_sex" in one_line(done.stderr)


def test_names_from_a_checkpoint_are_inert(tmp_path):
    folder = tmp_path / "evil\x1b[31m[red]\u202e"
    done = program("analyze", gpt2(folder))
    assert done.returncode == 0
    assert "\x1b[31m" not in done.stdout
    assert "\u202e" not in done.stdout


def test_a_closed_pipe_is_no_error(tmp_path):
    path = gpt2(tmp_path / "a")
    command = (
        f"{sys.executable} -m qkspec analyze {path} --format csv | head -c 10 > /dev/null; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_a_full_disk_is_one_line_and_leaves_nothing():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m qkspec explain > /dev/full"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    one_line(done.stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_at_once_and_leave_nothing(tmp_path, number, code):
    run = tmp_path / "run"
    for step in range(300):
        gpt2(run / f"step-{step:06}", layers=8, heads=4, width=64, seed=step)
    (run / "step-000000" / "model.safetensors").write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-m", "qkspec", "analyze", str(run), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr.readline().startswith("warning: ")  # it is measuring now
    started = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}
