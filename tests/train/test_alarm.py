import dataclasses
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from qkspec.train import alarm, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build
from qkspec.train.loop import Step


def test_a_spike_is_a_loss_far_above_those_before() -> None:
    rng = random.Random(0)
    quiet = [2.0 + rng.gauss(0, 0.05) for _ in range(500)]
    spikes = alarm.Spikes()
    assert not any(spikes.see(loss) for loss in quiet)
    assert not spikes.see(2.2)
    assert spikes.see(3.5)
    fresh = alarm.Spikes()
    assert not any(fresh.see(loss) for loss in [1.0] * 10 + [9.0])


def test_alarms_do_not_follow_one_another(tiny: TrainConfig) -> None:
    lab, ring = build(tiny), alarm.Ring(4)
    losses = [2.0 + 0.01 * (i % 3) for i in range(60)] + [5.0, 50.0, 500.0]
    fired = [i for i, loss in enumerate(losses) if ring.watch(lab, Step(i, loss=loss))]
    assert fired == [60]
    assert [step.step for step, _ in ring.past()] == [59, 60, 61, 62]
    assert ring.past() == []


def test_the_steps_before_a_crash_join_the_sequence(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw", lr=1000.0, steps=200)
    for name, changes in (("ring", {"ring": 2}), ("dense", {"save_every": 1}), ("plain", {})):
        *_, last = runs.run(dataclasses.replace(config, **changes), tmp_path / name, runs.Stop())
    ring, dense, plain = (save.checkpoints(tmp_path / name) for name in ("ring", "dense", "plain"))
    wanted = set(range(last.step - 2, last.step))
    assert set(ring) == set(plain) | wanted
    for step in wanted:
        a, b = (load_file(found[step] / "model.safetensors") for found in (ring, dense))
        assert all(torch.equal(a[name], b[name]) for name in b)
    rows = list(save.lines(tmp_path / "ring" / "metrics.jsonl"))
    assert [r["step"] for r in rows if "alarm" in r] == [last.step]
    assert (ring[max(ring)] / "resume.safetensors").is_file()


def test_without_a_ring_nothing_is_watched(tiny: TrainConfig) -> None:
    ring = alarm.Ring(0)
    assert ring.watch(build(tiny), Step(1, loss=float("nan"), outcome="loss is NaN")) is None
    assert ring.past() == []
