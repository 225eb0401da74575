import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkspec.errors import UsageError
from qkspec.train import maps, probes
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build
from qkspec.train.models.anatomy import choose


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as page:
        return np.asarray(page.convert("RGB"))


def test_stills_and_an_animation_of_the_chosen_heads(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, maps="0,1.1", maps_every=4)
    list(runs.run(config, tmp_path / "run", runs.Stop()))
    folder = tmp_path / "run" / "maps"
    assert sorted(p.name for p in folder.iterdir()) == ["maps.gif", *(f"step-{s:06d}.png" for s in (0, 4, 8, 12))]
    with Image.open(folder / "maps.gif") as film:
        assert film.n_frames == 4
        film.seek(3)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(last - _pixels(folder / "step-000012.png")).max() <= 12  # colours of one palette


def test_they_follow_the_checkpoints_and_no_weight_changes(tiny: TrainConfig, tmp_path: Path) -> None:
    for name, choice in (("without", ""), ("with", "all")):
        list(runs.run(dataclasses.replace(tiny, maps=choice), tmp_path / name, runs.Stop()))
    a, b = (tmp_path / n / "step-000012" / "model.safetensors" for n in ("without", "with"))
    assert a.read_bytes() == b.read_bytes()
    assert not (tmp_path / "without" / "maps").exists()
    drawn = sorted(p.stem for p in (tmp_path / "with" / "maps").glob("*.png"))
    assert drawn == sorted(p.name for p in (tmp_path / "with").glob("step-*"))


def test_a_resumed_run_draws_the_same_pictures(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, maps="all", maps_every=3)
    list(runs.run(config, tmp_path / "whole", runs.Stop()))
    for step in runs.run(config, tmp_path / "broken", runs.Stop()):
        if step.step == 9:
            break
    stray = tmp_path / "broken" / "maps" / "step-000007.png"
    stray.write_bytes(b"of another choice of steps")
    list(runs.resume(tmp_path / "broken", runs.Stop()))
    whole, broken = (sorted((tmp_path / n / "maps").iterdir()) for n in ("whole", "broken"))
    assert [p.name for p in whole] == [p.name for p in broken]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(whole, broken, strict=True))


def test_a_map_is_that_of_the_forward_pass(tiny: TrainConfig) -> None:
    lab = build(tiny)
    ((name, one),) = probes.maps(lab, {1: (1,)}).items()
    assert name == "transformer.h.1.attn"
    parts, x, _ = probes.probed(lab)
    seen: list[torch.Tensor] = []
    parts[1].module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        lab.model(x)
        q, k, _ = parts[1].module.project(seen[0])
    for row in range(8):
        scores = [float(q[0, 1, row] @ k[0, 1, column]) / math.sqrt(8) for column in range(row + 1)]
        total = sum(math.exp(s) for s in scores)
        expected = [math.exp(s) / total for s in scores] + [0.0] * (7 - row)
        assert one[0, row].tolist() == pytest.approx(expected, abs=1e-6)


def test_brightness_is_the_root_of_attention_and_what_is_no_number_is_red() -> None:
    one = torch.tensor([[1.0, 0.0], [0.25, math.nan]])
    tile = maps._tile(one)
    assert tile.shape == (128, 128, 3)
    colours = maps._colours(256)
    assert tile[0, 0].tolist() == colours[255].tolist()
    assert tile[0, 127].tolist() == colours[0].tolist()
    assert tile[127, 0].tolist() == colours[128].tolist()
    assert tile[127, 127].tolist() == [214, 39, 40]
    long = torch.eye(600)
    assert maps._tile(long).shape == (200, 200, 3)
    assert maps._tile(long)[0, 0].tolist() == colours[255].tolist()  # the whole mass of its three queries stays there


def test_choices_that_the_model_does_not_have_are_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    parts, _, _ = probes.probed(build(tiny))
    assert choose("all", parts) == {0: (0, 1), 1: (0, 1)}
    assert choose("1.1, 0,1.0", parts) == {1: (1, 0), 0: (0, 1)}
    assert choose("", parts) == {}
    for wrong in ("2", "0.2", "x", "0.", "-1"):
        with pytest.raises(UsageError, match="--maps"):
            list(runs.run(dataclasses.replace(tiny, maps=wrong), tmp_path / "run", runs.Stop()))
    assert not (tmp_path / "run").exists()
