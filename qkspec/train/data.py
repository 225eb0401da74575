"""What a run is trained on. Every batch is a function of seed, split, step and micro-batch: no cursor to save."""

import hashlib
import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkspec.errors import InputError
from qkspec.train.config import TrainConfig

TEXT_SUFFIXES = (".txt", ".md", ".py", ".rst", ".c", ".h", ".js", ".ts", ".java", ".rs", ".go", ".tex", ".html", ".csv")
_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
_SPLITS = {"train": 0, "validation": 1}


class Data(ABC):
    """Training and validation batches. ``name`` says what it is, ``digest`` is the SHA-256 of its bytes."""

    name: str
    digest: str
    size: int

    @abstractmethod
    def batch(self, split: str, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of one micro-batch, on the CPU; the same arguments give the same batch."""

    @abstractmethod
    def positions(self, split: str, step: int, micro: int) -> list[int] | list[str]:
        """Return where in the data the samples of a micro-batch stand: first tokens, or images."""


class Tokens(Data):
    """Windows of a long row of token ids; the last tenth is held out for validation.

    Args:
        ids: (size,) uint8 or uint16.
        config: gives context, batch and seed.
        name: for the record.
    """

    def __init__(self, ids: NDArray[np.uint8] | NDArray[np.uint16], config: TrainConfig, name: str) -> None:
        cut = len(ids) - len(ids) // 10
        self._splits = {"train": ids[:cut], "validation": ids[cut:]}
        self._config = config
        self.name, self.size = name, len(ids)
        if len(self._splits["validation"]) < config.context + 2:
            raise InputError(f"{name}: {len(ids)} tokens are too few for --context {config.context}; give more text")
        top = int(ids.max())
        if top >= config.vocab:
            raise InputError(f"{name}: token id {top} is outside --vocab {config.vocab}; set --vocab {top + 1} or more")
        self.digest = hashlib.sha256(ids.data).hexdigest()  # read through, not copied: a .bin may exceed memory

    def batch(self, split: str, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return ids and the ids that follow them, both (batch, context) int64."""
        ids, length = self._splits[split], self._config.context + 1
        starts = self._starts(split, step, micro)
        rows = torch.from_numpy(np.stack([ids[i : i + length].astype(np.int64) for i in starts]))
        return rows[:, :-1], rows[:, 1:]

    def positions(self, split: str, step: int, micro: int) -> list[int]:
        """Return the number of each sequence's first token in the whole row."""
        before = len(self._splits["train"]) if split == "validation" else 0
        return [before + int(start) for start in self._starts(split, step, micro)]

    def _starts(self, split: str, step: int, micro: int) -> NDArray[np.int64]:
        config = self._config
        rng = draw(config.seed, split, step, micro)
        return rng.integers(0, len(self._splits[split]) - config.context, size=config.batch)


def draw(seed: int, split: str, step: int, micro: int) -> np.random.Generator:
    """Return the generator of one batch. Validation batches are the same for every seed, so that runs compare."""
    return np.random.default_rng((seed if split == "train" else 0, _SPLITS[split], step, micro))


def load(config: TrainConfig) -> Data:
    """Return the data that ``config.data`` names; InputError when it is not there or holds nothing to train on."""
    if config.data in ("auto", "stdlib"):
        root = Path(sysconfig.get_paths()["stdlib"])
        return Tokens(_joined(_sources(root)), config, "Python standard library sources")
    path = Path(config.data)
    if path.suffix == ".bin" and path.is_file():
        return Tokens(_bin(path), config, str(path))
    if path.is_file():
        return Tokens(_joined(iter((path,))), config, str(path))
    if path.is_dir():
        return Tokens(_joined(_texts(path)), config, str(path))
    raise InputError(f"{config.data}: no such file or folder; --data takes text files, a folder or a nanoGPT .bin")


def _bin(path: Path) -> NDArray[np.uint16]:
    if path.stat().st_size % 2 or not path.stat().st_size:
        raise InputError(f"{path}: not a row of uint16 token ids: its size is odd or zero; write it as nanoGPT does")
    return np.memmap(path, dtype="<u2", mode="r")


def _sources(root: Path) -> Iterator[Path]:
    """Yield the .py files under a standard library in an order that no file system decides."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not f.startswith("config-"))
        for file in sorted(files):
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                yield Path(folder, file)


def _texts(root: Path) -> Iterator[Path]:
    """Yield the text files under a folder, hidden ones left out, in sorted order."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if file.lower().endswith(TEXT_SUFFIXES) and not file.startswith("."):
                yield Path(folder, file)


def _joined(paths: Iterator[Path]) -> NDArray[np.uint8]:
    chunks = []
    for path in paths:
        try:
            chunks.append(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give --data files that can") from error
    return np.frombuffer(b"\n".join(chunks), dtype=np.uint8)
