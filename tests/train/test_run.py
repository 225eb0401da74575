import dataclasses
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from qkspec.errors import InputError, OutputError, UsageError
from qkspec.train import run as runs
from qkspec.train import save
from qkspec.train.config import TrainConfig
from qkspec.train.run import Stop


def _digest(folder: Path) -> str:
    newest = list(save.checkpoints(folder).values())[-1]
    parts = [(newest / name).read_bytes() for name in ("model.safetensors", "resume.safetensors")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _losses(folder: Path) -> list[tuple[int, float | None]]:
    return [(r["step"], r.get("loss")) for r in save.lines(folder / "metrics.jsonl")]


KINDS: dict[str, dict[str, object]] = {
    "adamw": {"optimizer": "adamw"},
    "adamw2": {"optimizer": "adamw2"},
    "tied": {"tied": True, "clip": 0.5, "accumulate": 2},
    "sigma": {"optimizer": "adamw", "reparam": "sigma", "qk_norm": True},
    "slim": {"keep": "attention", "save_dtype": "bfloat16", "dtype": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_any_step_and_resumed_ends_the_same(tiny: TrainConfig, tmp_path: Path, kind: str) -> None:
    config = dataclasses.replace(tiny, **KINDS[kind])
    list(runs.run(config, tmp_path / "whole", Stop()))
    broken = tmp_path / "broken"
    for when in (3, 4, 9, 12):
        stop = Stop()
        steps = runs.resume(broken, stop) if broken.exists() else runs.run(config, broken, stop)
        for step in steps:
            if step.step == when:
                stop.signals.append(signal.SIGINT)
    list(runs.resume(broken, Stop()))
    assert _digest(broken) == _digest(tmp_path / "whole")
    assert _losses(broken) == _losses(tmp_path / "whole")
    assert [r["step"] for r in save.lines(broken / "metrics.jsonl")] == list(range(tiny.steps + 1))


def test_rows_after_the_newest_checkpoint_are_written_again(tiny: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in runs.run(tiny, folder, Stop()):
        if step.step == 8:
            break  # as if killed: the newest checkpoint is that of step 5
    assert _losses(folder)[-1][0] == 8
    steps = runs.resume(folder, Stop())
    assert next(steps).step == 6
    steps.close()
    assert [s for s, _ in _losses(folder)] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("reparam", ["none", "sigma"])
def test_evaluating_probing_and_saving_more_often_changes_no_weight(
    tiny: TrainConfig, tmp_path: Path, reparam: str
) -> None:
    tiny = dataclasses.replace(tiny, reparam=reparam)
    loud = dataclasses.replace(tiny, eval_every=1, save_every=1, probe_every=1)
    list(runs.run(tiny, tmp_path / "quiet", Stop()))
    list(runs.run(loud, tmp_path / "loud", Stop()))
    a, b = (tmp_path / name / "step-000012" / "model.safetensors" for name in ("quiet", "loud"))
    assert a.read_bytes() == b.read_bytes()


def test_a_crash_ends_the_run_with_its_row(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw", lr=1000.0, steps=200)
    *_, last = runs.run(config, tmp_path / "run", Stop())
    assert last.outcome != "ok"
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert rows[-1]["outcome"] == rows[-1]["alarm"] == last.outcome
    assert rows[-1]["step"] == last.step
    assert max(save.checkpoints(tmp_path / "run")) == last.step - 1


def test_a_folder_in_use_is_not_written_over(tiny: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = runs.run(tiny, folder, Stop())
    next(first)
    with pytest.raises(UsageError, match="another"):
        next(runs.resume(folder, Stop()))
    first.close()
    with pytest.raises(UsageError, match="already holds"):
        next(runs.run(tiny, folder, Stop()))


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """Have the system refuse to let any file grow beyond so many bytes, as a full disk does in the midst of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["metrics.jsonl", "probes.jsonl", "step-000008", "run.json", "again"])
def test_a_disk_that_fills_up_is_one_sentence_and_costs_nothing(tiny: TrainConfig, tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw2", probe_every=1, save_every=8, full_states=12)
    folder = tmp_path / "run"
    list(runs.run(config, tmp_path / "whole", Stop()))
    steps = runs.run(config, folder if name != "run.json" else tmp_path / "never", Stop())
    if name == "run.json":
        with _files_up_to(100), pytest.raises(OutputError, match=r"never: cannot be written .* another --out"):
            next(steps)
        return
    for step in steps:
        if step.step == 7:
            break
    if name == "again":
        steps.close()
        steps = runs.resume(folder, Stop())
        before = (folder / "run.json").read_bytes()
    sizes = {n: (folder / n).stat().st_size for n in ("metrics.jsonl", "probes.jsonl")}
    room = {n: size + 20 for n, size in sizes.items()} | {"step-000008": sizes["probes.jsonl"] + 4000, "again": 100}
    with _files_up_to(room[name]), pytest.raises(OutputError, match=name if name != "again" else "cannot be written"):
        next(steps)
    if name == "again":
        assert (folder / "run.json").read_bytes() == before
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    list(runs.resume(folder, Stop()))
    assert _digest(folder) == _digest(tmp_path / "whole")
    assert _losses(folder) == _losses(tmp_path / "whole")


def test_evidence_that_cannot_be_written_is_one_sentence(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw", lr=1000.0, steps=200)
    steps = runs.run(config, tmp_path / "run", Stop())
    next(steps)
    for step in range(1, 200):
        (tmp_path / "run" / f"alarm-{step:06d}").touch()
    with pytest.raises(OutputError, match=r"alarm-\d+: cannot be written"):
        list(steps)


@pytest.mark.parametrize("ends", [False, True])
def test_of_two_that_start_at_once_one_is_refused(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The other one starts (and perhaps ends) between this one's look at the folder and its first file."""
    folder, build = tmp_path / "run", runs.build
    other = runs.run(tiny, folder, Stop())

    def meanwhile(config: TrainConfig) -> runs.Lab:
        lab = build(config)
        if config.seed == 1:
            list(other) if ends else next(other)
        return lab

    monkeypatch.setattr(runs, "build", meanwhile)
    with pytest.raises(UsageError, match="already holds" if ends else "another"):
        next(runs.run(dataclasses.replace(tiny, seed=1), folder, Stop()))
    assert runs.recorded(folder, {}) == tiny
    other.close()


def test_only_a_run_on_the_same_data_is_resumed(tiny: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        next(runs.resume(tmp_path, Stop()))
    list(runs.run(dataclasses.replace(tiny, steps=1), tmp_path / "run", Stop()))
    Path(tiny.data).write_text("something else entirely " * 200, encoding="utf-8")
    with pytest.raises(InputError, match="not the data"):
        next(runs.resume(tmp_path / "run", Stop()))


def test_a_run_without_states_says_that_it_cannot_go_on(tiny: TrainConfig, tmp_path: Path) -> None:
    list(runs.run(dataclasses.replace(tiny, full_states=0), tmp_path / "run", Stop()))
    assert list((tmp_path / "run").rglob("resume.safetensors")) == []
    with pytest.raises(InputError, match="full-states 0"):
        next(runs.resume(tmp_path / "run", Stop()))


def test_a_finished_run_can_be_given_more_steps(tiny: TrainConfig, tmp_path: Path) -> None:
    list(runs.run(tiny, tmp_path / "run", Stop()))
    assert list(runs.resume(tmp_path / "run", Stop())) == []
    due = set(save.checkpoints(tmp_path / "run"))
    assert [s.step for s in runs.resume(tmp_path / "run", Stop(), {"steps": 14})] == [13, 14]
    more = {"steps": 40, "save_every": 1000}
    list(runs.resume(tmp_path / "run", Stop(), more))
    assert due <= set(save.checkpoints(tmp_path / "run")), "what was due when it was written stays"


def test_a_run_killed_at_its_first_step_writes_it_once(tiny: TrainConfig, tmp_path: Path) -> None:
    next(steps := runs.run(tiny, tmp_path / "run", Stop()))
    steps.close()
    list(runs.resume(tmp_path / "run", Stop()))
    assert [row["step"] for row in save.lines(tmp_path / "run" / "metrics.jsonl")] == list(range(tiny.steps + 1))


def test_checkpoints_of_a_course_that_was_left_do_not_stay(tiny: TrainConfig, tmp_path: Path) -> None:
    list(runs.run(tiny, tmp_path / "run", Stop()))
    newest = max(save.checkpoints(tmp_path / "run"))
    (tmp_path / "run" / save.name_of(newest) / save.RESUME).unlink()
    resumed = runs.resume(tmp_path / "run", Stop(), {"lr": 1e-4})
    next(resumed)
    resumed.close()
    assert newest not in save.checkpoints(tmp_path / "run")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_is_strict_json(value: float) -> None:
    row = runs.row(runs.Step(3, loss=value, lr=1e-9, outcome="loss is NaN"))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["loss"] is None
    assert row["lr"] == 1e-9


_RESUMER = """
import sys
from pathlib import Path
from qkspec.train import run as runs
from qkspec.train.config import from_dict
import json
folder, config = Path(sys.argv[1]), from_dict(json.loads(sys.argv[2]))
started = (folder / "run.json").exists()
for step in runs.resume(folder, runs.Stop()) if started else runs.run(config, folder, runs.Stop()):
    pass
"""


def test_killed_at_random_moments_it_ends_with_identical_hashes(tiny: TrainConfig, tmp_path: Path) -> None:
    """SIGKILL at random moments, inside saves too; the newest checkpoint always loads."""
    config = dataclasses.replace(tiny, steps=60, save_every=3, optimizer="adamw2")
    list(runs.run(config, tmp_path / "whole", Stop()))
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", _RESUMER, str(folder), json.dumps(config.as_dict())]
    rng = random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for attempt in range(2):
        child = subprocess.Popen(command, env=environment)
        before = max(save.checkpoints(folder), default=0) if folder.exists() else 0
        goal = before + rng.randrange(3, 20)
        while child.poll() is None:
            inside = attempt % 2 == 0 or any(folder.glob(".step-*.partial-*"))
            if inside and folder.exists() and max(save.checkpoints(folder), default=0) >= goal:
                break
            time.sleep(0.0005)
        child.kill()
        child.wait()
        lab = runs.build(config)
        assert save.restore(lab, folder) is not None
        assert all(torch.isfinite(w).all() for w in lab.model.parameters())
    subprocess.run(command, env=environment, check=True)
    assert _digest(folder) == _digest(tmp_path / "whole")
    assert _losses(folder) == _losses(tmp_path / "whole")
