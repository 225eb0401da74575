"""Images with labels: scikit-learn's digits, or a folder with one subfolder a class."""

import hashlib
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from qkspec.errors import InputError, UsageError
from qkspec.train import augment
from qkspec.train.config import TrainConfig
from qkspec.train.data import Data, draw

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")
_HELD_OUT = 5  # every fifth image of a fixed shuffle is for validation


class Images(Data):
    """Labelled images. Each batch, its augmentation too, is drawn from a generator of its coordinates alone.

    Args:
        labels: (size,) class of each image.
        config: gives batch, seed, classes.
        name, digest: for the record.
    """

    def __init__(self, labels: NDArray[np.int64], config: TrainConfig, name: str, digest: str) -> None:
        order = np.random.default_rng(0).permutation(len(labels))
        held = np.arange(len(labels)) % _HELD_OUT == 0
        self._splits = {"train": order[~held], "validation": order[held]}
        self._labels, self._config = labels, config
        self.name, self.digest, self.size = name, digest, len(labels)
        if len(self._splits["train"]) < 1:
            raise InputError(f"{name}: {len(labels)} images are too few to hold some out; give more")
        if int(labels.max()) >= config.classes:
            raise InputError(f"{name}: has {int(labels.max()) + 1} classes; set --classes to that")

    @abstractmethod
    def pixels(self, index: NDArray[np.int64], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Return (batch, channels, size, size), -1 to 1, of images by number; augmented where there is a ``rng``."""

    def batch(self, split: str, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return images (batch, channels, size, size) and their classes (batch,).

        A training batch under Mixup or CutMix has the share of each class instead, (batch, classes).
        """
        config, rng = self._config, draw(self._config.seed, split, step, micro)
        chosen = rng.choice(self._splits[split], size=config.batch)
        if split != "train":
            return torch.from_numpy(self.pixels(chosen)), torch.from_numpy(self._labels[chosen])
        x, labels = self.pixels(chosen, rng), self._labels[chosen]
        if config.erasing:
            x = augment.erase(x, config.erasing, rng)
        if not config.mixup and not config.cutmix:
            return torch.from_numpy(x), torch.from_numpy(labels)
        x, shares = augment.mix(x, labels, config.classes, config.mixup, config.cutmix, rng)
        return torch.from_numpy(x), torch.from_numpy(shares)

    def positions(self, split: str, step: int, micro: int) -> list[int] | list[str]:
        """Return the numbers of the images, or their paths."""
        return [int(number) for number in self._chosen(split, step, micro)]

    def _chosen(self, split: str, step: int, micro: int) -> NDArray[np.int64]:
        return draw(self._config.seed, split, step, micro).choice(self._splits[split], size=self._config.batch)


class Digits(Images):
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (extra "images")."""

    def __init__(self, config: TrainConfig) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UsageError('--data digits needs scikit-learn: pip install "qkspec[images]"') from error
        if (config.image_size, config.channels) != (8, 1):
            raise UsageError("--data digits has images of 8 x 8 pixels and one channel: --image-size 8 --channels 1")
        if config.augment != "none":
            raise UsageError("--augment needs a folder of images; of digits there are --mixup, --cutmix and --erasing")
        digits = load_digits()
        self._pixels = (digits.images[:, None] / 8 - 1).astype(np.float32)  # 0 to 16 becomes -1 to 1
        digest = hashlib.sha256(self._pixels.data).hexdigest()
        super().__init__(digits.target.astype(np.int64), config, "scikit-learn digits", digest)

    def pixels(self, index: NDArray[np.int64], rng: np.random.Generator | None = None) -> NDArray[np.float32]:  # noqa: ARG002 - there is nothing to crop
        """Return (batch, 1, 8, 8)."""
        chosen: NDArray[np.float32] = self._pixels[index]
        return chosen


class ImageFolder(Images):
    """A folder whose subfolders are the classes; an image is read when drawn.

    Without augmentation it is scaled and cut to its middle square.
    """

    def __init__(self, root: Path, config: TrainConfig) -> None:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        listed = [(p, i) for i, f in enumerate(folders) for p in sorted(f.iterdir()) if p.suffix.lower() in SUFFIXES]
        if not listed:
            raise InputError(f"{root}: has no subfolders with images; --data takes a folder with one subfolder a class")
        self._root, self._paths = root, [path for path, _ in listed]
        names = "\n".join(f"{p.relative_to(root)} {p.stat().st_size}" for p in self._paths)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        super().__init__(np.array([label for _, label in listed]), config, str(root), digest)

    def pixels(self, index: NDArray[np.int64], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Return (batch, channels, size, size), -1 to 1."""
        return np.stack([self._read(self._paths[i], rng) for i in index])

    def positions(self, split: str, step: int, micro: int) -> list[str]:
        """Return the path of each image within the folder."""
        return [str(self._paths[i].relative_to(self._root)) for i in self._chosen(split, step, micro)]

    def _read(self, path: Path, rng: np.random.Generator | None) -> NDArray[np.float32]:
        size, how = self._config.image_size, self._config.augment
        try:
            with Image.open(path) as image:
                whole = image.convert("L" if self._config.channels == 1 else "RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: cannot be read as an image ({error}); take it out of the folder") from error
        if rng is None or how == "none":
            square = ImageOps.fit(whole, (size, size))
        else:
            square = augment.crop(whole, size, rng)
            square = augment.rand_augment(square, rng) if how == "rand" else square
        values = np.asarray(square, dtype=np.float32).reshape(size, size, -1)
        return np.ascontiguousarray(values.transpose(2, 0, 1) / 127.5 - 1)


def load(config: TrainConfig) -> Data:
    """Return the images that ``config.data`` names."""
    if config.data in ("auto", "digits"):
        return Digits(config)
    root = Path(config.data)
    if not root.is_dir():
        raise InputError(f"{config.data}: no such folder; --data takes digits, or a folder with one subfolder a class")
    return ImageFolder(root, config)
