"""PATH as cli.md says it: files, folders, globs, runs, folders of runs; steps, order, names, what is passed over."""

import json
import os
import pickle  # noqa: TID251 - our own objects, as worker processes get them
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qkspec.checkpoints.sequence import Run, find_runs, open_checkpoint
from qkspec.errors import CheckpointError, InputError, UsageError

WEIGHTS = {"h.0.attn.weight": torch.ones(2, 2)}


def model(folder: Path, state: dict[str, Any] | None = None, *, file: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(WEIGHTS, folder / file)
    else:
        torch.save(WEIGHTS, folder / file)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    if state is not None:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def found(*paths: Path | str) -> list[tuple[str, list[tuple[str, int | None]]]]:
    return [(run.name, [(s.name, s.step) for s in run.sources]) for run in find_runs([str(path) for path in paths])]


def test_a_checkpoint_folder_and_its_file(tmp_path: Path) -> None:
    folder = model(tmp_path / "step-000100")
    assert found(folder) == [("step-000100", [("step-000100", 100)])]
    assert found(folder / "model.safetensors") == [("step-000100", [("step-000100", 100)])]
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.name, checkpoint.step, checkpoint.config) == ("step-000100", 100, {"model_type": "gpt2"})
    assert checkpoint.path == str(folder)
    named = open_checkpoint(folder, name="mine", step=5)
    assert (named.name, named.step) == ("mine", 5)
    np.testing.assert_array_equal(checkpoint.store.read("h.0.attn.weight"), np.ones((2, 2)))


def test_a_run_of_our_own_trainer(tmp_path: Path) -> None:
    for step in (0, 20, 100, 3):
        model(tmp_path / "run" / f"step-{step:06}", {"step": step})
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert found(tmp_path / "run") == [
        ("run", [("step-000000", 0), ("step-000003", 3), ("step-000020", 20), ("step-000100", 100)])
    ]


def test_a_trainer_folder_of_transformers(tmp_path: Path) -> None:
    for step in (500, 1000, 90):
        folder = model(tmp_path / "out" / f"checkpoint-{step}", {"global_step": step, "log_history": []})
        for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            torch.save({"a": torch.ones(2)}, folder / state)
    model(tmp_path / "out", {"global_step": 1000})
    (tmp_path / "out" / "runs").mkdir()
    model(tmp_path / "out" / "tmp-checkpoint-1500")
    (run,) = find_runs([str(tmp_path / "out")])
    steps = [("checkpoint-90", 90), ("checkpoint-500", 500), ("checkpoint-1000", 1000), ("out", 1000)]
    assert [(s.name, s.step) for s in run.sources] == steps
    assert [Path(path).name for path in run.ignored] == ["tmp-checkpoint-1500"]
    assert run.skipped == {}


def test_steps_come_from_the_trainer_before_the_name(tmp_path: Path) -> None:
    model(tmp_path / "r" / "epoch_1", {"global_step": 4000})
    model(tmp_path / "r" / "epoch_2", {"global_step": True})
    folder = model(tmp_path / "r" / "epoch_3")
    log = ", ".join('{"step": 7, "loss": 1.0}' for _ in range(5000))
    (folder / "trainer_state.json").write_text('{"epoch": 2.0, "global_step": 6000, "log_history": [' + log + "]}")
    (model(tmp_path / "r" / "epoch_4") / "trainer_state.json").write_text("{broken")
    assert found(tmp_path / "r") == [("r", [("epoch_2", 2), ("epoch_4", 4), ("epoch_1", 4000), ("epoch_3", 6000)])]


def test_files_in_natural_order_with_and_without_steps(tmp_path: Path) -> None:
    for name in ("ckpt_9.pt", "ckpt_10.pt", "ckpt_100.pt", "ckpt_final.pt"):
        torch.save(WEIGHTS, tmp_path / name)
    torch.save({"state_dict": WEIGHTS, "global_step": 50}, tmp_path / "last.ckpt")
    torch.save({"opt": torch.ones(2)}, tmp_path / "optimizer.pt")
    (tmp_path / "notes.txt").touch()
    order = [("ckpt_9", 9), ("ckpt_10", 10), (tmp_path.name, 50), ("ckpt_100", 100), ("ckpt_final", None)]
    assert found(tmp_path) == [(tmp_path.name, order)]


def test_lightning_folders(tmp_path: Path) -> None:
    inner = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    inner.mkdir(parents=True)
    for step in (900, 1800):
        torch.save({"state_dict": WEIGHTS, "global_step": step}, inner / f"epoch={step // 900}-step={step}.ckpt")
    (inner / "last.ckpt").symlink_to("epoch=2-step=1800.ckpt")
    (run,) = find_runs([str(tmp_path / "lightning_logs")])
    assert [(s.name, s.step) for s in run.sources] == [("epoch=1-step=900", 900), ("epoch=2-step=1800", 1800)]
    assert list(run.ignored.values()) == ["is a link to epoch=2-step=1800"]


def test_a_folder_of_runs(tmp_path: Path) -> None:
    for run in ("adamw", "adamw2"):
        for step in (0, 10):
            model(tmp_path / run / f"step-{step:06}", {"step": step})
    steps = [("step-000000", 0), ("step-000010", 10)]
    assert found(tmp_path) == [("adamw", steps), ("adamw2", steps)]
    assert found(tmp_path / "adamw", tmp_path / "adamw2") == [("adamw", steps), ("adamw2", steps)]


def test_several_checkpoints_are_one_sequence(tmp_path: Path) -> None:
    a, b, c = (model(tmp_path / "run" / f"step-{n}") for n in (10, 9, 100))
    assert found(a, b, c) == [("run", [("step-9", 9), ("step-10", 10), ("step-100", 100)])]
    assert found(tmp_path / "run" / "step-?") == [("step-9", [("step-9", 9)])]
    assert found(tmp_path / "run" / "step-*")[0][1] == [("step-9", 9), ("step-10", 10), ("step-100", 100)]
    mixed = found(a, tmp_path / "run", b)
    assert [name for name, _ in mixed] == ["run", f"{tmp_path.name}/run"] or len({name for name, _ in mixed}) == 2


def test_equal_steps_are_told_apart_by_name(tmp_path: Path) -> None:
    model(tmp_path / "a" / "step-5")
    model(tmp_path / "b" / "step-5")
    assert found(tmp_path / "a" / "step-5", tmp_path / "b" / "step-5") == [
        (tmp_path.name, [("a/step-5", 5), ("b/step-5", 5)])
    ]
    save_file(WEIGHTS, tmp_path / "ckpt_1.safetensors")
    torch.save(WEIGHTS, tmp_path / "ckpt_1.pt")
    names = [s.name for s in find_runs([str(tmp_path / "ckpt_1.safetensors"), str(tmp_path / "ckpt_1.pt")])[0].sources]
    assert sorted(names) == ["ckpt_1.pt", "ckpt_1.safetensors"]


def test_neighbours_do_not_matter(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "original").mkdir()
    torch.save(WEIGHTS, folder / "original" / "consolidated.00.pth")
    torch.save({"other": torch.zeros(3)}, folder / "pytorch_model.bin")
    torch.save({"other": torch.zeros(3)}, folder / "flax_model.bin")
    (folder / "onnx").mkdir()
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    assert found(folder) == [("m", [("m", None)])]
    assert list(open_checkpoint(folder).store.names()) == list(WEIGHTS)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "really_torch.safetensors")
    save_file(WEIGHTS, tmp_path / "really_safe.bin")
    for name, form in {"really_torch.safetensors": "torch", "really_safe.bin": "safetensors"}.items():
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.store.format == form
        np.testing.assert_array_equal(checkpoint.store.read("h.0.attn.weight"), np.ones((2, 2)))


def test_a_folder_that_is_not_whole_stays_and_fails_when_opened(tmp_path: Path) -> None:
    model(tmp_path / "checkpoint-1")
    broken = tmp_path / "checkpoint-2"
    broken.mkdir()
    torch.save({}, broken / "optimizer.pt")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"")
    (run,) = find_runs([str(tmp_path)])
    assert [s.step for s in run.sources] == [1, 2, 3, 4]
    for source, message in zip(run.sources[1:], ("no model weights", "1 of 2 shards", "is empty"), strict=True):
        with pytest.raises(CheckpointError, match=message):
            source.open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_skipped_with_its_reason(tmp_path: Path) -> None:
    model(tmp_path / "checkpoint-1")
    (tmp_path / "secret").mkdir(mode=0)
    (run,) = find_runs([str(tmp_path)])
    assert "permissions" in next(iter(run.skipped.values()))


def test_links_in_circles_end(tmp_path: Path) -> None:
    model(tmp_path / "run" / "step-1")
    (tmp_path / "run" / "again").symlink_to(tmp_path)
    (tmp_path / "run" / "latest").symlink_to("step-1")
    (run,) = find_runs([str(tmp_path)])
    assert [s.name for s in run.sources] == ["step-1"]
    assert list(run.ignored.values()) == ["is a link to step-1"]


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("none.pt", "empty", "x*", "", "a\0b"):
        with pytest.raises(InputError):
            find_runs([str(tmp_path / path) if path and "\0" not in path else path])
    with pytest.raises(InputError, match="no checkpoint was given"):
        find_runs([])
    model(tmp_path / "r" / "step-1")
    model(tmp_path / "r" / "step-2")
    with pytest.raises(InputError, match="holds 2 checkpoints"):
        open_checkpoint(tmp_path / "r")


def test_paths_as_users_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "run" / "step-1")
    model(tmp_path / "run" / "step-2")
    monkeypatch.chdir(tmp_path / "run")
    assert found(".")[0][0] == "run"
    assert found("./step-1/") == [("step-1", [("step-1", 1)])]
    assert found("step-1", "step-2")[0][1] == [("step-1", 1), ("step-2", 2)]
    assert find_runs(["step-1/model.safetensors"])[0].sources[0].path == "step-1/model.safetensors"
    with pytest.raises(InputError, match=r"none\.pt: does not exist"):
        find_runs(["none.pt"])


def test_runs_travel_to_other_processes(tmp_path: Path) -> None:
    model(tmp_path / "step-1")
    (run,) = find_runs([str(tmp_path / "step-1")])
    copy = pickle.loads(pickle.dumps(run))
    assert isinstance(copy, Run)
    assert copy == run
    assert list(copy.sources[0].open().store.names()) == list(WEIGHTS)


def test_a_large_run_is_found_quickly(tmp_path: Path) -> None:
    first = model(tmp_path / "run" / "step-0")
    for step in range(1, 1000):
        folder = tmp_path / "run" / f"step-{step}"
        folder.mkdir()
        os.link(first / "model.safetensors", folder / "model.safetensors")
    (run,) = find_runs([str(tmp_path / "run")])
    assert [s.step for s in run.sources] == list(range(1000))


def report(folder: Path, kind: str = "qkspec report") -> Path:
    model(folder, file="maps.safetensors")
    save_file(WEIGHTS, folder / "spectra.safetensors")
    (folder / "report.json").write_text(json.dumps({"kind": kind, "schema": 1}, indent=1))
    return folder


def test_a_report_inside_its_run_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        model(tmp_path / "run" / f"step-{step}")
    report(tmp_path / "run" / "report")
    report(tmp_path / "run" / "deeper" / "report-9")
    (run,) = find_runs([str(tmp_path / "run")])
    assert [s.name for s in run.sources] == ["step-1", "step-2"]
    assert run.ignored == {str(tmp_path / "run" / "report"): "is a report that qkspec wrote"}
    report(tmp_path / "run" / "other", kind="another report")
    assert len(find_runs([str(tmp_path / "run")])) == 2, "what others call a report may hold checkpoints"


def test_a_report_given_as_a_checkpoint_is_told_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rep: is a saved report, not a checkpoint; analyze, gate, compare and plot"):
        find_runs([str(report(tmp_path / "rep"))])
