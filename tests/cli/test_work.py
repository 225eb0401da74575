"""How the work is done from the command line: the cache, devices and engines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_cache import save

from qkspec.cli import main


@pytest.fixture
def run(tmp_path):
    for step in range(2):
        save(tmp_path / "run" / f"step-{step}", step)
    return str(tmp_path / "run")


def entries(folder):
    return sorted(folder.rglob("*.entry"))


def test_the_second_run_reads_what_the_first_one_kept(run, tmp_path, capsys):
    kept = tmp_path / "kept"
    assert main(["analyze", run, "--format", "json", "--cache", str(kept)]) == 0
    first = capsys.readouterr().out
    assert len(entries(kept)) == 2
    assert main(["gate", run, "--cache", str(kept), "--max-sigma1", "1e9"]) == 0
    capsys.readouterr()
    assert main(["analyze", run, "--format", "json", "--cache", str(kept)]) == 0
    assert capsys.readouterr().out == first
    assert main(["analyze", run, "--format", "json", "--no-cache"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["compare", "{run}", "{run}", "--workers", "2", "--device", "cpu", "--engine", "local"], 2),
        (["watch", "{run}", "--until-idle", "0.3", "--every", "0.1", "--device", "cpu"], 2),
        (["gate", "{run}", "--max-sigma1", "1e9", "--workers", "1"], 2),
    ],
)
def test_every_command_that_measures_takes_the_same_options(command, kept, run, tmp_path):
    words = [word.format(run=run) for word in command]
    assert main([*words, "--cache", str(tmp_path / "kept")]) == 0
    assert len(entries(tmp_path / "kept")) == kept
    assert main([*words, "--cache", str(tmp_path / "none"), "--no-cache"]) == 0
    assert not (tmp_path / "none").exists()


def test_compare_shows_the_same_whoever_does_the_work(run, capsys):
    shown = set()
    for words in (["--workers", "1"], ["--workers", "2"], ["--device", "auto"]):
        assert main(["compare", run, run, "--no-cache", *words]) == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1


def test_the_cache_is_the_platforms_unless_told_otherwise(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert main(["analyze", run, "--no-cache"]) == 0
    assert not (tmp_path / "home").exists()
    assert main(["analyze", run]) == 0
    assert len(entries(tmp_path / "home" / "qkspec")) == 2


def test_settings_file_can_switch_the_cache_off(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qkspec.toml").write_text("cache = false\nworkers = 1\n")
    assert main(["analyze", run]) == 0
    assert not (tmp_path / "home").exists()
    (tmp_path / "qkspec.toml").write_text("device = 'quantum'\n")
    assert main(["analyze", run]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_usage_error(run, capsys):
    for command in (
        ["analyze", run],
        ["gate", run],
        ["compare", run, run],
        ["watch", run, "--every", "0.1", "--until-idle", "0.3"],
    ):
        assert main([*command, "--device", "cuda", "--no-cache"]) == 2
        assert "--device cuda" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_a_usage_error(run, capsys):
    pytest.importorskip("ray", reason="ray is not installed (qkspec[ray])")
    assert main(["analyze", run, "--engine", "ray", "--ray-address", "127.0.0.1:1", "--no-cache"]) == 2
    assert "--ray-address" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_workers_and_parent(number, code, run, tmp_path):
    """The workers have more to do than the test waits for: the same checkpoints, over and over."""
    paths = [str(save_large(tmp_path / f"large-{i}")) for i in range(2)]
    child = subprocess.Popen(
        [sys.executable, "-m", "qkspec", "analyze", *paths, "--workers", "2", "--no-cache"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(), start_new_session=True,
    )  # fmt: skip
    time.sleep(3)
    started = time.monotonic()
    os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
    _, err = child.communicate(timeout=10)
    assert child.returncode == code
    assert "Traceback" not in err
    while members(child.pid) and time.monotonic() - started < 10:
        time.sleep(0.05)
    assert time.monotonic() - started < 5


def save_large(folder):
    """A checkpoint that takes many seconds: heads as wide as 256, in float32."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    folder.mkdir()
    weight = rng.standard_normal((1024, 3072), dtype=np.float32)
    state = {f"h.{i}.attn.c_attn.weight": weight for i in range(40)}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 4, "n_layer": 40}))
    return folder


def members(session):
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(stat.parent.name)
    return found
