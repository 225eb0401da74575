"""Batches on the device of a run; on a GPU the next ones are made by threads while it computes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from qkspec.engine import cpu_count
from qkspec.train.config import TrainConfig
from qkspec.train.data import Data
from qkspec.train.world import World

THREADS = 16  # at most; decoding an image releases Python's lock

Batch = tuple[Tensor, Tensor]
Place = tuple[str, int, int]


class Feed:
    """Hands out batches by their coordinates, the same ones whatever was made ahead.

    Args:
        data: what they are made of.
        config: says which batches a run will want.
        world: says which of them this process takes.
        device: where they go. From a CUDA device's pinned memory the copy does not wait.
        threads: batches made ahead, each by a thread of its own; None is as many as cores with CUDA, else 0.
    """

    def __init__(
        self, data: Data, config: TrainConfig, world: World, device: torch.device, threads: int | None = None
    ) -> None:
        self._data, self._config, self._world, self._device = data, config, world, device
        cuda = device.type == "cuda"
        self._threads = threads if threads is not None else min(THREADS, cpu_count()) if cuda else 0
        self._pool = ThreadPoolExecutor(self._threads, "qkspec-data") if self._threads else None
        self._ahead: dict[Place, Future[Batch]] = {}

    def take(self, split: str, step: int, micro: int) -> Batch:
        """Return inputs and targets of one micro-batch, on the device."""
        place = (split, step, micro)
        made = self._ahead.pop(place, None)
        wanted = list(islice(self._after(place), self._threads))
        for stale in [p for p in self._ahead if p[0] == split and p not in wanted]:
            self._ahead.pop(stale).cancel()
        if self._pool is not None:
            for one in wanted:
                if one not in self._ahead:
                    self._ahead[one] = self._pool.submit(self._make, one)
        x, y = made.result() if made is not None else self._make(place)
        return x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)

    def _make(self, place: Place) -> Batch:
        x, y = self._data.batch(*place)
        return (x.pin_memory(), y.pin_memory()) if self._device.type == "cuda" else (x, y)

    def _after(self, place: Place) -> Iterator[Place]:
        """Yield the places that this process will ask for after one, in order, to the end of the run or validation."""
        split, step, micro = place
        training = split == "train"
        micros = self._config.accumulate if training else self._config.eval_batches
        while True:
            micro += self._world.size
            if micro >= micros:
                step, micro = step + 1, self._world.rank
                if not training or step >= self._config.steps:
                    return
            yield split, step, micro
