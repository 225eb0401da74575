"""Image augmentation as timm and Swin train with: random crops, RandAugment, Mixup, CutMix, random erasing.

Everything is drawn from the generator handed in, never from a global one, so that a batch can be made again.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Pixels = NDArray[np.float32]
Random = np.random.Generator

MAGNITUDE, DEVIATION = 9.0, 0.5  # of RandAugment, on a scale to 10
OPERATIONS, CHANCE = 2, 0.5  # drawn for an image, and the chance that each is applied
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop
_ERASED, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10


def crop(image: Image.Image, size: int, rng: Random) -> Image.Image:
    """Return a random part of an image, scaled to (size, size), mirrored half of the time (Szegedy et al. 2015)."""
    width, height = image.size
    for _ in range(_TRIES):
        w, h = _box(width * height * rng.uniform(*_AREA), _ASPECT, rng)
        if w <= width and h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            part = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + w, top + h))
            break
    else:
        part = ImageOps.fit(image, (size, size))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def rand_augment(image: Image.Image, rng: Random) -> Image.Image:
    """Return an image after two operations drawn from OPS (Cubuk et al. 2019), as timm's "rand-m9-mstd0.5-inc1"."""
    for choice in rng.integers(0, len(OPS), size=OPERATIONS):
        level = min(10.0, max(0.0, rng.normal(MAGNITUDE, DEVIATION))) / 10
        signed = level if rng.random() < 0.5 else -level
        if rng.random() < CHANCE:
            image = OPS[choice][1](image, signed)
    return image


def mix(
    x: Pixels, y: NDArray[np.int64], classes: int, mixup: float, cutmix: float, rng: Random
) -> tuple[Pixels, Pixels]:
    """Blend a batch with itself in reverse order, by Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Args:
        x: (batch, channels, size, size).
        y: (batch,) classes.
        classes: how many there are.
        mixup: α of the share's Beta(α, α); 0 leaves Mixup out, and of two ways one is drawn for the batch.
        cutmix: the same for CutMix.
        rng: what is drawn from.

    Returns:
        Images as x, and the share of each class, (batch, classes).
    """
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if cut:
        size = x.shape[-1]
        side = int(size * math.sqrt(1 - share))
        (top, bottom), (left, right) = (_span(int(rng.integers(0, size)), side, size) for _ in range(2))
        mixed = x.copy()
        mixed[..., top:bottom, left:right] = x[::-1, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / size**2
    else:
        mixed = (x * share + x[::-1] * (1 - share)).astype(np.float32)
    known = np.eye(classes, dtype=np.float32)[y]
    return mixed, (known * share + known[::-1] * (1 - share)).astype(np.float32)


def erase(x: Pixels, chance: float, rng: Random) -> Pixels:
    """Return a batch (batch, channels, size, size) with a box of some images turned to noise (Zhong et al. 2017)."""
    size = x.shape[-1]
    x = x.copy()
    for image in x:
        if rng.random() >= chance:
            continue
        for _ in range(_TRIES):
            w, h = _box(size * size * rng.uniform(*_ERASED), _ERASED_ASPECT, rng)
            if w < size and h < size:
                left, top = rng.integers(0, size - w + 1), rng.integers(0, size - h + 1)
                image[:, top : top + h, left : left + w] = rng.standard_normal((len(image), h, w), dtype=np.float32)
                break
    return x


def _box(area: float, aspects: tuple[float, float], rng: Random) -> tuple[int, int]:
    """Return width and height of a box of that area; their ratio is drawn evenly on a logarithmic scale."""
    ratio = math.exp(rng.uniform(math.log(aspects[0]), math.log(aspects[1])))
    return max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))


def _span(middle: int, side: int, size: int) -> tuple[int, int]:
    return max(0, middle - side // 2), min(size, middle + side // 2)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    grey = 128 if image.mode == "L" else (128, 128, 128)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=grey)


def _rotated(image: Image.Image, level: float) -> Image.Image:
    grey = 128 if image.mode == "L" else (128, 128, 128)
    return image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=grey)


def _solarized_up(image: Image.Image, level: float) -> Image.Image:
    more = int(abs(level) * 110)
    return image.point(
        [min(255, value + more) if value < 128 else value for value in range(256)] * len(image.getbands())
    )


def _posterized(image: Image.Image, level: float) -> Image.Image:
    kept = 256 - (1 << (4 + int(abs(level) * 4)))  # ImageOps.posterize refuses the strongest level, of no bits
    return image.point([value & kept for value in range(256)] * len(image.getbands()))


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


OPS: tuple[tuple[str, Callable[[Image.Image, float], Image.Image]], ...] = (  # of an image and a level from -1 to 1
    ("AutoContrast", lambda image, _: ImageOps.autocontrast(image)),
    ("Equalize", lambda image, _: ImageOps.equalize(image)),
    ("Invert", lambda image, _: ImageOps.invert(image)),
    ("Rotate", _rotated),
    ("Posterize", _posterized),
    ("Solarize", lambda image, level: ImageOps.solarize(image, 256 - int(abs(level) * 256))),
    ("SolarizeAdd", _solarized_up),
    ("Color", lambda image, level: ImageEnhance.Color(image).enhance(_factor(level))),
    ("Contrast", lambda image, level: ImageEnhance.Contrast(image).enhance(_factor(level))),
    ("Brightness", lambda image, level: ImageEnhance.Brightness(image).enhance(_factor(level))),
    ("Sharpness", lambda image, level: ImageEnhance.Sharpness(image).enhance(_factor(level))),
    ("ShearX", lambda image, level: _affine(image, 1, 0.3 * level, 0, 0, 1, 0)),
    ("ShearY", lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 1, 0)),
    ("TranslateX", lambda image, level: _affine(image, 1, 0, 0.45 * level * image.size[0], 0, 1, 0)),
    ("TranslateY", lambda image, level: _affine(image, 1, 0, 0, 0, 1, 0.45 * level * image.size[1])),
)
