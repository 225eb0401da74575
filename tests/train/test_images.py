import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkspec.errors import InputError, UsageError
from qkspec.train import images, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig

VIT = TrainConfig(model="vit", layers=1, heads=2, width=16, batch=4, steps=4, eval_batches=2, threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of flat colours: cats are dark and dogs are light, of several sizes and modes."""
    for label, (name, shade) in enumerate((("cat", 10), ("dog", 240))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            picture = Image.new("RGB", (6 + i, 9), (shade, shade, shade)).convert(mode)
            picture.save(tmp_path / "data" / name / f"{i}.png")
        assert label in (0, 1)
    (tmp_path / "data" / "dog" / "notes.txt").write_text("no image", encoding="utf-8")
    return tmp_path / "data"


def test_a_folder_of_images_gives_pixels_with_their_classes(folder: Path) -> None:
    config = dataclasses.replace(VIT, data=str(folder), channels=3, classes=2)
    loaded = images.load(config)
    assert loaded.size == 20
    x, y = loaded.batch("train", 0, 0)
    assert x.shape == (4, 3, 8, 8)
    assert x.dtype == torch.float32
    for picture, label in zip(x, y, strict=True):
        assert float(picture.mean()) == pytest.approx((10, 240)[int(label)] / 127.5 - 1, abs=0.02)
    assert all(torch.equal(a, b) for a, b in zip(loaded.batch("train", 0, 0), (x, y), strict=True))


def test_no_image_is_both_trained_on_and_held_out(folder: Path) -> None:
    loaded = images.load(dataclasses.replace(VIT, data=str(folder), classes=2))
    train, held = loaded._splits["train"], loaded._splits["validation"]
    assert sorted([*train, *held]) == list(range(20))
    assert len(held) == 4


def test_what_is_no_folder_of_images_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong, said in ((tmp_path / "absent", "no such folder"), (tmp_path / "empty", "no subfolders")):
        with pytest.raises(InputError, match=said):
            images.load(dataclasses.replace(VIT, data=str(wrong)))
    (folder / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    loaded = images.load(dataclasses.replace(VIT, data=str(folder), classes=2))
    with pytest.raises(InputError, match=r"0\.png"):
        loaded.pixels(np.array([0]))
    (folder / "emu").mkdir()
    Image.new("L", (8, 8)).save(folder / "emu" / "a.png")
    with pytest.raises(InputError, match="--classes"):
        images.load(dataclasses.replace(VIT, data=str(folder), classes=2))


def test_a_vit_trains_and_resumes_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, data=str(folder), classes=2, probe_every=2)
    list(runs.run(config, tmp_path / "whole", runs.Stop()))
    for step in runs.run(config, tmp_path / "broken", runs.Stop()):
        if step.step == 3:
            break
    list(runs.resume(tmp_path / "broken", runs.Stop()))
    a, b = (tmp_path / n / "step-000004" / "model.safetensors" for n in ("whole", "broken"))
    assert a.read_bytes() == b.read_bytes()
    (row, *_) = save.lines(tmp_path / "whole" / "probes.jsonl")
    assert len(row["blocks"][0]["terms"]) == 15


def test_the_digits_of_scikit_learn_are_learned(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = dataclasses.replace(VIT, steps=60, batch=32, lr=0.003, optimizer="adamw")
    rows = list(runs.run(config, tmp_path / "run", runs.Stop()))
    assert rows[0].validation == pytest.approx(2.5, abs=0.6)
    assert rows[-1].validation < rows[0].validation - 0.25
    with pytest.raises(UsageError, match="8 x 8"):
        images.load(dataclasses.replace(config, image_size=16))
