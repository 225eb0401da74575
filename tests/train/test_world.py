import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkspec.errors import UsageError
from qkspec.train import run as runs
from qkspec.train import save
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build

_TRAIN = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch import distributed
from qkspec.train import run as runs
from qkspec.train.config import from_dict
from qkspec.train.lab import build
from qkspec.train.loop import train
from qkspec.train.world import joined
with joined() as world:
    lab = build(from_dict(json.loads(sys.argv[1])))
    for step in train(lab):
        pass
    bits = b"".join(w.detach().numpy().tobytes() for w in lab.model.parameters())
    Path(sys.argv[2], f"digest-{world.rank}").write_text(hashlib.sha256(bits).hexdigest())
"""


def _torchrun(*command: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_replicas_stay_bit_identical(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, accumulate=4, optimizer="adamw2", clip=0.5)
    script = tmp_path / "script.py"
    script.write_text(_TRAIN, encoding="utf-8")
    command = _torchrun(str(script), json.dumps(config.as_dict()), str(tmp_path))
    subprocess.run(command, env=_environment(), check=True, capture_output=True)
    one, two = ((tmp_path / f"digest-{rank}").read_text() for rank in (0, 1))
    assert one == two


def test_two_processes_give_the_run_of_one_and_resume(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, accumulate=2, optimizer="adamw2", eps=1e-4)
    list(runs.run(config, tmp_path / "one", runs.Stop()))
    out = tmp_path / "two"
    changed = {k: v for k, v in config.as_dict().items() if v != getattr(TrainConfig(), k)}
    flags = [word for k, v in changed.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    command = _torchrun("-m", "qkspec", "train", *flags, "-q", "--out", str(out))
    done = subprocess.run(command, env=_environment(), check=True, capture_output=True, text=True)
    assert done.stdout.count("checkpoints in") == 1
    a, b = (load_file(tmp_path / n / "step-000012" / "model.safetensors") for n in ("one", "two"))
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, atol=1e-4, rtol=1e-3)
    rows = [list(save.lines(tmp_path / n / "metrics.jsonl")) for n in ("one", "two")]
    assert [r["step"] for r in rows[1]] == list(range(13))
    for ours, theirs in zip(*rows, strict=True):
        assert theirs.get("loss") == pytest.approx(ours.get("loss"), abs=1e-4)
        assert theirs.get("validation") == pytest.approx(ours.get("validation"), abs=1e-4)
    again = _torchrun("-m", "qkspec", "train", "--resume", str(out), "--steps", "14", "-q")
    subprocess.run(again, env=_environment(), check=True, capture_output=True)
    assert [r["step"] for r in save.lines(out / "metrics.jsonl")] == list(range(15))


def test_micro_batches_must_share_out_evenly(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="multiple of the 2 processes"):
        build(dataclasses.replace(tiny, accumulate=3))


def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--layers", "1", "--width", "16", "--context", "8", "--batch", "2", "--accumulate", "2", "--threads", "1"]
    flags += ["--steps", "100000", "--data", tiny.data, "-q", "--out", str(out)]
    command = [sys.executable, "-m", "qkspec", "train", *flags]
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2"} for r in (0, 1)]
    shared = _environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    children = [subprocess.Popen(command, env=shared | rank, stdout=subprocess.DEVNULL) for rank in ranks]
    while not (out / "step-000020").exists():
        assert all(child.poll() is None for child in children)
        time.sleep(0.05)
    children[1].send_signal(signal.SIGTERM)
    codes = [child.wait(timeout=60) for child in children]
    assert codes == [143, 143]
    last = list(save.lines(out / "metrics.jsonl"))[-1]["step"]
    assert (out / save.name_of(last) / "resume.safetensors").is_file()
