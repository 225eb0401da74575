import dataclasses
import math
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
    settled = alarm.Spikes([2.0] + [0.01] * 50)
    assert not settled.see(0.1)  # a hard image, not a spike: a twentieth of the first loss is 0.1
    assert settled.see(0.4)
    fresh = alarm.Spikes()
    assert not any(fresh.see(loss) for loss in [1.0] * 10 + [9.0])


def test_alarms_do_not_follow_one_another() -> None:
    losses = [2.0 + 0.01 * (i % 3) for i in range(60)] + [5.0, 50.0, 500.0] + [2.0] * 60 + [2000.0]
    fires = alarm.Alarm()
    assert [i for i, loss in enumerate(losses) if fires.why(Step(i, loss=loss))] == [60, 123]
    assert alarm.Alarm().why(Step(1, loss=math.nan, outcome="loss is NaN")) == "loss is NaN"


def test_the_ring_holds_the_last_steps_that_left_weights(tiny: TrainConfig) -> None:
    lab, ring = build(tiny), alarm.Ring(4)
    for i in range(9):
        ring.hold(lab, Step(i, loss=2.0, outcome="ok" if i < 8 else "loss is NaN"))
    assert [step.step for step, _ in ring.past()] == [4, 5, 6, 7]
    assert ring.past() == []
    without = alarm.Ring(0)
    without.hold(lab, Step(1, loss=2.0))
    assert without.past() == []


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
