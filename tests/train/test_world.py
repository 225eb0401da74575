import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkspec.analysis import analyze
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

_DIVIDED = """
import json, sys
from pathlib import Path
import torch
from qkspec.train import run as runs
from qkspec.train.config import from_dict
from qkspec.train.world import joined
out = Path(sys.argv[2])
with joined() as world:
    for config in (from_dict(values) for values in json.loads(sys.argv[1])):
        list(runs.run(config, out / config.optimizer, runs.Stop()))
    stop = runs.Stop()
    for step in runs.run(config, out / "cut", stop):
        if step.step == 7 and world.rank == 1:
            stop.signals.append(15)  # after the processes have agreed on this step: it is for the next
    assert step.step == 8 and stop.code == 143
    list(runs.resume(out / "cut", runs.Stop()))
    build = runs.build
    def poisoned(config):
        lab = build(config)
        if world.rank == 1:
            lab.model.lm_head.weight.data.to_local()[0, 0] = torch.nan
        return lab
    runs.build = poisoned
    list(runs.run(config, out / "crash", runs.Stop()))
"""


_CUT = """
import json, sys
from pathlib import Path
from qkspec.train import run as runs
from qkspec.train.config import from_dict
from qkspec.train.world import joined
config, out = from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
with joined() as world:
    list(runs.run(config, out / "whole", runs.Stop()))
    for step in runs.run(config, out / "cut", runs.Stop()):
        if step.step == 5:
            break
    world.wait()
    list(runs.resume(out / "cut", runs.Stop()))
"""


def _torchrun(*command: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command]


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


def test_three_processes_resume_to_the_bit(tmp_path: Path) -> None:
    """Of three numbers the order of the sum tells, and DDP would choose it anew after the first step."""
    data = tmp_path / "text.txt"
    data.write_text("A head that looks at one token only learns nothing of the others. " * 200, encoding="utf-8")
    config = TrainConfig(
        layers=4, context=16, batch=2, accumulate=3, steps=6, threads=1, eval_batches=3, data=str(data)
    )
    script = tmp_path / "script.py"
    script.write_text(_CUT, encoding="utf-8")
    command = _torchrun(str(script), json.dumps(config.as_dict()), str(tmp_path), processes=3)
    subprocess.run(command, env=_environment(), check=True, capture_output=True)
    whole, cut = ((tmp_path / n / "step-000006" / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut


def test_divided_weights_train_save_and_resume_as_whole_ones(tiny: TrainConfig, tmp_path: Path) -> None:
    common = dataclasses.replace(tiny, accumulate=2, clip=0.5, eps=1e-4, fsdp=True, probe_every=6, maps="1", beta2=0.9)
    configs = [dataclasses.replace(common, optimizer=name) for name in ("adamw", "adamw2")]
    script = tmp_path / "script.py"
    script.write_text(_DIVIDED, encoding="utf-8")
    command = _torchrun(str(script), json.dumps([config.as_dict() for config in configs]), str(tmp_path))
    subprocess.run(command, env=_environment(), check=True, capture_output=True)
    for config in configs:
        list(runs.run(config, tmp_path / "whole", runs.Stop()))  # in one process there is nothing to divide
        whole, ours = tmp_path / "whole", tmp_path / config.optimizer
        a, b = (load_file(folder / "step-000012" / "model.safetensors") for folder in (whole, ours))
        assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
        for name, weight in a.items():
            torch.testing.assert_close(b[name], weight, atol=1e-4, rtol=1e-3)
        probes = [list(save.lines(folder / "probes.jsonl"))[-1]["blocks"] for folder in (whole, ours)]
        assert probes[1][1]["terms"]["q"] == pytest.approx(probes[0][1]["terms"]["q"], rel=1e-3)
        assert (ours / "maps" / "step-000012.png").is_file()
        for file in ("model.safetensors", "resume.safetensors") if config.optimizer == "adamw2" else ():
            assert (ours / "step-000012" / file).read_bytes() == (tmp_path / "cut" / "step-000012" / file).read_bytes()
        last = list(runs.resume(ours, runs.Stop(), {"steps": 14}))[-1]  # by another number of processes
        assert (last.step, last.outcome) == (14, "ok")
        shutil.rmtree(whole)
    evidence = json.loads((tmp_path / "crash" / "alarm-000001" / "alarm.json").read_text())
    assert evidence["why"] == "loss is NaN"
    assert sum(row["weight_not_finite"] for row in evidence["tensors"].values()) == 1
    assert set(analyze([tmp_path / "adamw2"]).readings["layer"]) == {0, 1}


def test_what_needs_whole_weights_is_refused_with_divided_ones(tiny: TrainConfig) -> None:
    for change in ({"ring": 2}, {"reparam": "sigma"}):
        with pytest.raises(UsageError, match="--fsdp divides the weights"):
            dataclasses.replace(tiny, fsdp=True, **change)


def test_micro_batches_must_share_out_evenly(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="multiple of the 2 processes"):
        build(dataclasses.replace(tiny, accumulate=3))
    with pytest.raises(UsageError, match="--eval-batches 3 is no multiple"):
        build(dataclasses.replace(tiny, accumulate=2, eval_batches=3, fsdp=True))


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
