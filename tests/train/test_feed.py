import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from qkspec.errors import InputError
from qkspec.train import lab as labs
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.data import Data
from qkspec.train.feed import Feed
from qkspec.train.world import World

CPU = torch.device("cpu")


class Counted(Data):
    """A batch tells its coordinates; those made are on record, with the thread that made them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int, int]] = []
        self.threads: set[str] = set()

    def batch(self, split: str, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 77:
            raise InputError("a file of step 77 is gone")
        self.made.append((split, step, micro))
        self.threads.add(threading.current_thread().name.split("_")[0])
        place = torch.tensor([("train", "validation").index(split), step, micro])
        return place, place

    def positions(self, split: str, step: int, micro: int) -> list[int]:
        return []


@pytest.mark.parametrize("world", [World(), World(1, 2)])
def test_every_batch_is_made_once_and_ahead_and_none_too_many(world: World) -> None:
    data, config = Counted(), TrainConfig(steps=5, accumulate=4, eval_batches=6)
    feed = Feed(data, config, world, CPU, threads=3)
    asked = []
    for step in range(5):
        for micro in range(world.rank, 4, world.size):
            asked.append(("train", step, micro))
            assert feed.take("train", step, micro)[0].tolist() == [0, step, micro]
        for micro in range(world.rank, 6, world.size) if step in (1, 4) else ():
            asked.append(("validation", 0, micro))
            assert feed.take("validation", 0, micro)[1].tolist() == [1, 0, micro]
    assert sorted(data.made) == sorted(asked)
    assert data.threads == {"MainThread", "qkspec-data"}


def test_another_course_than_foreseen_gets_its_own_batches() -> None:
    data = Counted()
    feed = Feed(data, TrainConfig(steps=100), World(), CPU, threads=2)
    for step in (0, 1, 50, 51, 3):
        assert feed.take("train", step, 0)[0].tolist() == [0, step, 0]
    assert len(feed._ahead) == 2


def test_on_a_cpu_nothing_is_made_ahead() -> None:
    data = Counted()
    feed = Feed(data, TrainConfig(steps=100), World(), CPU)
    feed.take("train", 0, 0)
    assert data.made == [("train", 0, 0)]
    assert data.threads == {"MainThread"}


def test_what_is_wrong_with_the_data_is_raised_where_the_batch_is_asked_for() -> None:
    feed = Feed(Counted(), TrainConfig(steps=100), World(), CPU, threads=2)
    feed.take("train", 76, 0)
    with pytest.raises(InputError, match="step 77"):
        feed.take("train", 77, 0)


def test_threads_change_no_weight(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny, accumulate=2, eval_every=5)
    list(runs.run(config, tmp_path / "plain", runs.Stop()))
    monkeypatch.setattr(labs, "Feed", lambda *of: Feed(*of, threads=3))
    for step in runs.run(config, tmp_path / "threads", runs.Stop()):
        if step.step == 7:
            break
    list(runs.resume(tmp_path / "threads", runs.Stop()))
    a, b = (tmp_path / n / "step-000012" / "model.safetensors" for n in ("plain", "threads"))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_come_from_pinned_memory() -> None:
    device = torch.device("cuda")
    feed = Feed(Counted(), TrainConfig(steps=9), World(), device)
    assert feed.take("train", 0, 0)[0].device.type == "cuda"
    assert feed._make(("train", 1, 0))[0].is_pinned()
