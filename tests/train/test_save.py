import dataclasses
import itertools
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qkspec.errors import CheckpointError, InputError, OutputError
from qkspec.train import save
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build
from qkspec.train.loop import Step, train
from qkspec.train.schedule import kept


def test_the_steps_kept_are_early_log_spaced_and_at_the_interval() -> None:
    config = TrainConfig(steps=6123, save_every=2500)
    due = [s for s in range(config.steps + 1) if kept(s, config)]
    assert due == [0, 2, 5, 10, 20, 40, 60, 80, 100, 200, 500, 1000, 2000, 2500, 5000, 6123]


def test_the_demonstration_starts_with_a_spacing_of_twenty_at_most() -> None:
    due = [s for s in range(601) if kept(s, TrainConfig())]
    assert due[0] == 0
    assert len(due) >= 8
    assert all(b - a <= 20 for a, b in itertools.pairwise(due) if b <= 100)


@pytest.mark.parametrize("tied", [True, False])
def test_a_published_checkpoint_holds_the_model_and_its_facts(tiny: TrainConfig, tmp_path: Path, tied: bool) -> None:
    tiny = dataclasses.replace(tiny, tied=tied)
    lab = build(tiny)
    *_, last = train(lab)
    folder = save.publish(lab, tmp_path, last)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "resume.safetensors",
        "trainer_state.json",
    ]
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    for name, tensor in stored.items():
        assert torch.equal(tensor, lab.model.state_dict()[name])
    facts = json.loads((folder / "trainer_state.json").read_text())
    assert facts["global_step"] == tiny.steps
    assert facts["validation_loss"] == last.validation
    assert facts["train_config"] == tiny.as_dict()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_slim_checkpoint_resumes_exactly(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, keep="attention", save_dtype="bfloat16")
    lab = build(config)
    *_, last = train(lab)
    folder = save.publish(lab, tmp_path, last)
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert {n.split(".")[3] for n in stored} == {"ln_1", "attn"}
    other = build(config)
    assert save.restore(other, tmp_path) == folder
    assert other.step == tiny.steps
    for a, b in zip(other.model.parameters(), lab.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_newest_checkpoints_keep_their_state(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, full_states=2)
    lab = build(config)
    for step in train(lab):
        save.publish(lab, tmp_path, step)
    kept = save.checkpoints(tmp_path)
    assert list(kept) == [0, 2, 5, 10, 11, 12]  # 11 was not due and goes with its state, later
    assert [s for s, p in kept.items() if (p / "resume.safetensors").exists()] == [11, 12]


def test_restoring_goes_to_the_newest_and_refuses_another_model(tiny: TrainConfig, tmp_path: Path) -> None:
    lab = build(tiny)
    assert save.restore(lab, tmp_path) is None
    save.publish(lab, tmp_path, Step(0))
    wider = build(dataclasses.replace(tiny, width=32))
    with pytest.raises(CheckpointError, match="same settings"):
        save.restore(wider, tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw2"])
def test_what_is_resumed_has_the_settings_that_are_asked_for(tiny: TrainConfig, tmp_path: Path, optimizer: str) -> None:
    lab = build(dataclasses.replace(tiny, optimizer=optimizer))
    *_, last = train(lab)
    save.publish(lab, tmp_path, last)
    asked = {"tau": 0.25, "weight_decay": 0.75, "beta1": 0.5, "beta2": 0.625, "eps": 1e-3}
    other = build(dataclasses.replace(lab.config, **asked))
    save.restore(other, tmp_path)
    decayed, plain = other.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.75, 0.0)
    for group, before in zip((decayed, plain), lab.optimizer.param_groups, strict=True):
        assert (group["betas"], group["eps"]) == ((0.5, 0.625), 1e-3)
        assert group.get("tau") == (0.25 if optimizer == "adamw2" else None)
        assert group.get("bounded_steps") == before.get("bounded_steps")
    weight = decayed["params"][0]
    ours = lab.optimizer.state[lab.optimizer.param_groups[0]["params"][0]]
    assert torch.equal(other.optimizer.state[weight]["exp_avg"], ours["exp_avg"])


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up at each write in turn: the published checkpoint stays whole, and nothing is left lying."""
    lab = build(tiny)
    folder = save.publish(lab, tmp_path, Step(0))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real = os.fsync
    for failing in range(6):
        calls = 0

        def full(handle: int, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls > failing:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        if failing < 5:
            with pytest.raises(OutputError, match="No space left"):
                save.publish(lab, tmp_path, Step(0))
            assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
            assert [p.name for p in tmp_path.iterdir() if ".partial" in p.name] == []


def test_a_file_that_the_system_will_not_grow_is_an_output_error(tiny: TrainConfig, tmp_path: Path) -> None:
    """The kernel itself refuses, below Python: safetensors' own error is one of ours, at every size."""
    resource = pytest.importorskip("resource")
    lab = build(tiny)
    folder = save.publish(lab, tmp_path, Step(0))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 5_000, 50_000):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            with pytest.raises(OutputError, match="could not be written"):
                save.publish(lab, tmp_path, Step(0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert [p.name for p in tmp_path.iterdir() if ".partial" in p.name] == []


def test_a_run_killed_while_it_replaces_a_checkpoint_has_one(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each rename and each removal in turn, as a process is: nothing after it happens."""

    class Killed(BaseException):
        pass

    lab = build(tiny)
    save.publish(lab, tmp_path, Step(0))
    for last in range(4):
        left = last

        def dying(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            save.publish(lab, tmp_path, Step(0))
        save.tidy(tmp_path)
        assert save.restore(build(tiny), tmp_path) == tmp_path / "step-000000"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    for name in (".step-000001.partial-77", ".step-000002.old-77", "step-000003"):
        (tmp_path / name).mkdir()
    (tmp_path / ".metrics.jsonl.partial-77").touch()
    save.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003"]


def test_no_number_that_json_lacks_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save.write_json(tmp_path / "x.json", {"a": float("nan")})


def test_a_line_cut_short_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste', encoding="utf-8")
    assert list(save.lines(path)) == [{"step": 1}, {"step": 2}]
    assert list(save.lines(tmp_path / "absent")) == []
    for bad, said in (("[1]", "holds no record"), ("{", "is damaged")):
        path.write_text(f'{{"step": 1}}\n{bad}\n', encoding="utf-8")
        with pytest.raises(InputError, match=f"line 2 {said}; take it out"):
            list(save.lines(path))
