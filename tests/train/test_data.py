import dataclasses
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from qkspec.errors import InputError
from qkspec.train import data
from qkspec.train.config import TrainConfig


def test_a_batch_depends_on_its_coordinates_alone(tiny: TrainConfig) -> None:
    one, two = data.load(tiny), data.load(tiny)
    two.batch("train", 5, 0)
    assert all(torch.equal(a, b) for a, b in zip(one.batch("train", 3, 1), two.batch("train", 3, 1), strict=True))
    x = one.batch("train", 3, 1)[0]
    others = [("train", 3, 2), ("train", 4, 1), ("validation", 3, 1)]
    assert all(not torch.equal(x, one.batch(*other)[0]) for other in others)
    other = data.load(dataclasses.replace(tiny, seed=1))
    assert not torch.equal(x, other.batch("train", 3, 1)[0])
    assert torch.equal(one.batch("validation", 0, 1)[0], other.batch("validation", 0, 1)[0])


def test_targets_are_the_next_bytes_of_the_text(tiny: TrainConfig, corpus: Path) -> None:
    x, y = data.load(tiny).batch("train", 0, 0)
    assert x.shape == y.shape == (tiny.batch, tiny.context)
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = corpus.read_bytes()
    for row, following in zip(x.tolist(), y.tolist(), strict=True):
        assert bytes([*row, following[-1]]) in text


def test_the_last_tenth_is_never_trained_on(tiny: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "halves.txt"
    path.write_bytes(b"a" * 900 + b"b" * 100)
    loaded = data.load(dataclasses.replace(tiny, data=str(path)))
    assert set(loaded.batch("train", 0, 0)[1].flatten().tolist()) == {ord("a")}
    assert set(loaded.batch("validation", 0, 0)[0].flatten().tolist()) == {ord("b")}


def test_a_folder_is_read_in_sorted_order_without_hidden_or_binary_files(tiny: TrainConfig, tmp_path: Path) -> None:
    root = tmp_path / "folder"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("b/two.txt", "one.py", ".git/config.txt", ".hidden.txt", "picture.png"):
        (root / name).write_text(name * 40, encoding="utf-8")
    expected = b"one.py" * 40 + b"\n" + b"b/two.txt" * 40
    loaded = data.load(dataclasses.replace(tiny, data=str(root)))
    assert loaded.size == len(expected)
    single = tmp_path / "single.txt"
    single.write_bytes(expected)
    assert loaded.digest == data.load(dataclasses.replace(tiny, data=str(single))).digest


def test_nanogpt_tokens_are_read_as_uint16(tiny: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    (np.arange(1000, dtype="<u2") + 300).tofile(path)
    x, y = data.load(dataclasses.replace(tiny, data=str(path), vocab=1300)).batch("train", 0, 0)
    assert torch.equal(x + 1, y)
    assert x.min() >= 300
    with pytest.raises(InputError, match="--vocab 1300"):
        data.load(dataclasses.replace(tiny, data=str(path)))


def test_a_bin_is_hashed_without_a_copy_in_memory(tiny: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    (np.arange(8_000_000, dtype="<u2") % 256).tofile(path)
    tracemalloc.start()
    digest = data.load(dataclasses.replace(tiny, data=str(path))).digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert peak < 4_000_000  # of 16 MB


def test_the_standard_library_is_there_and_the_same_twice() -> None:
    one, two = data.load(TrainConfig()), data.load(TrainConfig())
    assert one.size > 3_000_000
    assert one.digest == two.digest


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 50])
def test_too_little_text_is_said_so(tiny: TrainConfig, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "little.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"little\.txt"):
        data.load(dataclasses.replace(tiny, data=str(path)))


def test_what_is_not_there_or_no_row_of_tokens_is_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"abc")
    with pytest.raises(InputError, match="uint16"):
        data.load(dataclasses.replace(tiny, data=str(odd)))
    with pytest.raises(InputError, match="no such file"):
        data.load(dataclasses.replace(tiny, data=str(tmp_path / "absent")))
