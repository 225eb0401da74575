import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from qkspec.errors import UsageError
from qkspec.train import augment, images
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build
from qkspec.train.loop import batch_loss
from qkspec.train.models.vit import DropPath, drop_chances

VIT = TrainConfig(model="vit", layers=3, heads=2, width=16, batch=4, steps=6, eval_batches=1, threads=1)
ALL = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "smoothing": 0.1, "drop_path": 0.4}


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade, name in ((40, "cat"), (200, "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            picture(size=(12 + i, 16)).point(lambda v, s=shade: (v + s) // 2).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    return tmp_path / "data"


INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", [name for name, _ in augment.OPS])
def test_operations_are_those_of_timm_pixel_for_pixel(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    theirs = f"{name}Increasing" if name in INCREASING else f"{name}Rel" if name.startswith("Translate") else name
    level_of = timm.LEVEL_TO_ARG[theirs]
    grey = 128 if mode == "L" else (128, 128, 128)
    for level in (0.0, 3.3, 9.0, 10.0):
        for sign in (1, -1):
            monkeypatch.setattr(timm, "_randomly_negate", lambda v, s=sign: s * v)
            arguments = level_of(level, {"translate_pct": 0.45}) if level_of else ()
            image = picture(mode)
            ours = dict(augment.OPS)[name](image, sign * level / 10)
            if (name, level) == ("Posterize", 10.0):  # no bits: Pillow refuses since 12
                assert not np.asarray(ours).any()
                continue
            wanted = timm.NAME_TO_OP[theirs](image, *arguments, fillcolor=grey, resample=Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(ours), np.asarray(wanted)), (level, sign)


def test_two_operations_each_half_of_the_time() -> None:
    rng, image = np.random.default_rng(0), picture()
    same = sum(np.array_equal(np.asarray(augment.rand_augment(image, rng)), np.asarray(image)) for _ in range(400))
    assert same / 400 == pytest.approx(0.25, abs=0.08)


def test_a_crop_has_a_share_of_the_area_and_is_mirrored_half_of_the_time() -> None:
    ramp = Image.fromarray(np.tile(np.arange(240, dtype=np.uint8), (240, 1)))
    rng = np.random.default_rng(0)
    crops = [np.asarray(augment.crop(ramp, 32, rng)).astype(float) for _ in range(300)]
    spans = [abs(c[:, -1].mean() - c[:, 0].mean()) / 240 for c in crops]
    assert 0.2 < min(spans) < 0.4
    assert max(spans) > 0.9
    assert np.mean([c[0, 0] > c[0, -1] for c in crops]) == pytest.approx(0.5, abs=0.1)
    assert augment.crop(Image.new("L", (3, 90)), 8, rng).size == (8, 8)  # no box of such shape fits


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_mixed_batch_has_each_class_in_the_share_of_its_pixels(mixup: float, cutmix: float) -> None:
    """Images of one flat colour tell by their mean how much of each is in a mixture."""
    y = np.array([0, 1, 2, 0])
    x = np.stack([np.full((1, 16, 16), v, dtype=np.float32) for v in y])
    rng, cut = np.random.default_rng(0), 0
    for _ in range(40):
        mixed, shares = augment.mix(x, y, 3, mixup, cutmix, rng)
        assert shares.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
        assert mixed.mean((1, 2, 3)) == pytest.approx(shares @ np.arange(3), abs=1e-5)
        cut += mixed[1].std() > 0.01
    assert (cut > 0) == (cutmix > 0)
    assert (x == np.stack([np.full((1, 16, 16), v) for v in y])).all()


def test_erasing_leaves_a_box_of_noise_in_its_share_of_images() -> None:
    x = np.zeros((400, 1, 16, 16), dtype=np.float32)
    out = augment.erase(x, 0.25, np.random.default_rng(0))
    hit = (out != 0).any(axis=(1, 2, 3))
    assert hit.mean() == pytest.approx(0.25, abs=0.06)
    for image in out[hit][:, 0]:
        rows, columns = np.flatnonzero((image != 0).any(1)), np.flatnonzero((image != 0).any(0))
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box != 0).all()
        assert 0.01 < box.size / 256 < 0.45
    assert not x.any()


def test_a_sublayer_is_left_out_for_its_share_of_samples_and_never_in_evaluation() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert bool((out == out[:, :1, :1]).all())
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
    assert drop_chances(dataclasses.replace(VIT, drop_path=0.4), 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@torch.no_grad()
def test_the_training_loss_is_smoothed_and_mixed_and_the_validation_loss_is_not() -> None:
    pytest.importorskip("sklearn")
    plain, mixed = build(VIT), build(dataclasses.replace(VIT, mixup=0.8, smoothing=0.1))
    assert float(batch_loss(plain, "validation", 0, 0)) == float(batch_loss(mixed, "validation", 0, 0))
    x, shares = mixed.data.batch("train", 0, 0)
    logs = functional.log_softmax(mixed.model(x).double(), -1)
    expected = -((0.9 * shares + 0.1 / 10) * logs).sum(-1).mean()
    assert float(batch_loss(mixed, "train", 0, 0)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("model", ["vit", "swin", "flatten-swin"])
def test_everything_together_resumes_to_the_same_bytes(folder: Path, tmp_path: Path, model: str) -> None:
    config = dataclasses.replace(
        VIT,
        model=model,
        data=str(folder),
        channels=3,
        classes=2,
        patch=1,
        stages="1,1",
        focused=1,
        augment="rand",
        **ALL,
    )
    list(runs.run(config, tmp_path / "whole", runs.Stop()))
    torch.manual_seed(99)
    for step in runs.run(config, tmp_path / "broken", runs.Stop()):
        if step.step == 4:
            break
    list(runs.resume(tmp_path / "broken", runs.Stop()))
    a, b = (tmp_path / n / "step-000006" / "model.safetensors" for n in ("whole", "broken"))
    assert a.read_bytes() == b.read_bytes()
    other = images.load(dataclasses.replace(config, augment="none", mixup=0.0, cutmix=0.0, erasing=0.0))
    assert torch.equal(other.batch("validation", 0, 0)[0], images.load(config).batch("validation", 0, 0)[0])
    assert not torch.equal(other.batch("train", 0, 0)[0], images.load(config).batch("train", 0, 0)[0])


def test_digits_are_not_cropped() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(UsageError, match="--augment"):
        images.load(dataclasses.replace(VIT, augment="rand"))
