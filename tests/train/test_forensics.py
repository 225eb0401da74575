import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkspec.train import forensics, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build
from qkspec.train.loop import Step, train


def _read(folder: Path) -> dict:
    return json.loads((folder / "alarm.json").read_text(), parse_constant=pytest.fail)


def test_a_crash_leaves_its_evidence_in_one_folder(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw", lr=1000.0, steps=200, accumulate=2)
    *_, last = runs.run(config, tmp_path / "run", runs.Stop())
    (folder,) = (tmp_path / "run").glob("alarm-*")
    assert folder.name == forensics.name_of(last.step)
    found = _read(folder)
    assert found["why"] == found["outcome"] == last.outcome
    assert found["updates_made"] == max(save.checkpoints(tmp_path / "run"))
    names = dict(build(config).model.named_parameters())
    assert set(found["tensors"]) == set(names)
    assert any(row["gradient_not_finite"] or row["gradient_largest"] > 1e6 for row in found["tensors"].values())
    assert len(found["probe"]["blocks"]) == 2
    with Image.open(folder / "maps.png") as page:
        assert page.size[1] > 2 * 128


def test_the_batch_can_be_found_again(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw", lr=1000.0, steps=200, accumulate=2)
    *_, last = runs.run(config, tmp_path / "run", runs.Stop())
    said = _read(tmp_path / "run" / forensics.name_of(last.step))["batch"]
    text = Path(config.data).read_bytes()
    assert said["step"] == last.step - 1
    assert len(said["micro_batches"]) == 2
    for micro in said["micro_batches"]:
        rows = [list(text[at : at + config.context]) for at in micro["positions"]]
        assert hashlib.sha256(np.array(rows, dtype="<i8").tobytes()).hexdigest() == micro["inputs_sha256"]


def test_a_spike_is_examined_and_the_run_goes_on_to_the_same_weights(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(tiny, steps=12)
    list(runs.run(config, tmp_path / "calm", runs.Stop()))
    monkeypatch.setattr("qkspec.train.alarm.Spikes.see", lambda _, loss: loss is not None and loss > 0)
    steps = list(runs.run(dataclasses.replace(config, reparam="none"), tmp_path / "alarmed", runs.Stop()))
    assert [s.step for s in steps if s.alarm] == [1]
    found = _read(tmp_path / "alarmed" / "alarm-000001")
    assert (found["why"], found["outcome"], found["updates_made"]) == ("loss spike", "ok", 1)
    cut = found["matrices"]["transformer.h.0.attn.c_attn.weight[q]"]
    assert cut["effective_lr"] <= cut["lr"] == pytest.approx(config.lr)
    a, b = (tmp_path / n / "step-000012" / "model.safetensors" for n in ("calm", "alarmed"))
    assert a.read_bytes() == b.read_bytes()


def test_what_adamw_did_to_each_matrix_is_that_of_exact_arithmetic(tiny: TrainConfig) -> None:
    lab = build(dataclasses.replace(tiny, optimizer="adamw", weight_decay=0.0))
    before = {}
    for step in train(lab):
        if step.step == 4:
            before = {n: w.detach().clone() for n, w in lab.model.named_parameters()}
        if step.step == 5:
            break
    found = forensics.matrices(lab.optimizer, lab.model)
    assert "transformer.wte.weight" not in found
    after = dict(lab.model.named_parameters())
    name = "transformer.h.1.attn.c_attn.weight"
    for i, part in enumerate("qkv"):
        w, old = (t.detach().double()[:, 16 * i : 16 * i + 16] for t in (after[name], before[name]))
        row = found[f"{name}[{part}]"]
        assert row["sigma1_w"] == pytest.approx(float(torch.linalg.svdvals(w)[0]), rel=1e-3)
        moved = float(torch.linalg.svdvals(old - w)[0])
        assert row["sigma1_u"] * row["lr"] == pytest.approx(moved, rel=1e-2)
        assert row["effective_lr"] == row["lr"]
        assert row["bound"] is False


def test_figures_tell_what_is_lost() -> None:
    weight = torch.tensor([3.0, -4.0])
    found = forensics.figures(weight, torch.tensor([math.nan, -2.0]))
    assert (found["weight_norm"], found["weight_largest"], found["weight_not_finite"]) == (5.0, 4.0, 0)
    assert (found["gradient_norm"], found["gradient_largest"], found["gradient_not_finite"]) == (2.0, 2.0, 1)


def test_the_silence_after_an_alarm_outlasts_a_resume(tiny: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    list(runs.run(tiny, folder, runs.Stop()))
    rows = [
        json.dumps({"step": i, "loss": 2.0 + 0.01 * (i % 3)} | ({"alarm": "x"} if i == 80 else {})) for i in range(120)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert runs._alarm(folder).why(Step(120, loss=9.0)) is None
    assert runs._alarm(folder).why(Step(131, loss=9.0)) == "loss spike"
