"""Shards: with transformers' index, without one, and with an index that points elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.checkpoints.union import is_bare
from qkspec.errors import CheckpointError


def shards(folder: Path, suffix: str = "safetensors", *, index: bool = True) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    tensors = {f"layers.{i}.q": torch.randn(3, 2) for i in range(4)}
    places = {}
    for part in (0, 1):
        name = f"{stem}-{part + 1:05}-of-00002.{suffix}"
        half = {key: value for i, (key, value) in enumerate(tensors.items()) if i % 2 == part}
        save_file(half, folder / name) if suffix == "safetensors" else torch.save(half, folder / name)
        places |= dict.fromkeys(half, name)
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(
            json.dumps({"metadata": {"total_size": 96}, "weight_map": places})
        )
    return tensors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_read_as_one(tmp_path: Path, suffix: str, index: bool) -> None:
    tensors = shards(tmp_path / "m", suffix, index=index)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert set(checkpoint.store.names()) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.store.read(name), tensor.numpy())
        np.testing.assert_array_equal(checkpoint.store.read(name, slice(1, 2)), tensor[1:2].numpy())
        assert checkpoint.store.shape(name) == (3, 2)
        assert checkpoint.store.dtype(name) == "float32"
    checkpoint.store.close()


def test_the_index_may_be_given_itself(tmp_path: Path) -> None:
    tensors = shards(tmp_path / "m")
    assert set(open_checkpoint(tmp_path / "m" / "model.safetensors.index.json").store.names()) == set(tensors)


def test_a_shard_is_opened_when_it_is_needed(tmp_path: Path) -> None:
    shards(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00002.safetensors").write_bytes(b"broken")
    store = open_checkpoint(tmp_path / "m").store
    assert store.bytes_read == 0
    store.read("layers.0.q")
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        store.read("layers.1.q")


def test_shards_through_links_as_in_a_hub_cache(tmp_path: Path) -> None:
    tensors = shards(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert set(open_checkpoint(tmp_path / "snapshot").store.names()) == set(tensors)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        5,
        None,
        ["x"],
        "x" * 300,
    ],
)
def test_an_index_may_only_name_its_neighbours(tmp_path: Path, name: object) -> None:
    shards(tmp_path / "m")
    save_file({"q": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"q": name}}))
    with pytest.raises(CheckpointError, match="plain file name"):
        open_checkpoint(tmp_path / "m")
    assert not isinstance(name, str) or not is_bare(name)


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    shards(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "ghost": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="does not hold it"):
        open_checkpoint(tmp_path / "m").store.shape("ghost")
    index.write_text(json.dumps({"weight_map": {"q": "model-00009-of-00009.safetensors"}}))
    with pytest.raises(CheckpointError, match="1 of 1 shards are not there"):
        open_checkpoint(tmp_path / "m")
    index.unlink()
    save_file({"layers.1.q": torch.ones(1)}, tmp_path / "m" / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="same tensor"):
        open_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are not there"):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_wrappers_leave_the_names_of_shards_and_single_files(tmp_path: Path, suffix: str) -> None:
    names = ["module._orig_mod.a", "module._orig_mod.b"]
    places = {}
    for part, name in enumerate(names, 1):
        file = f"model-{part:05}-of-00002.{suffix}"
        tensors = {name: torch.full((2, 2), float(part))}
        save_file(tensors, tmp_path / file) if suffix == "safetensors" else torch.save(tensors, tmp_path / file)
        places[name] = file
    (tmp_path / f"model.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    store = open_checkpoint(tmp_path).store
    assert list(store.names()) == ["a", "b"]
    assert (store.shape("b"), store.dtype("b")) == ((2, 2), "float32")
    np.testing.assert_array_equal(store.read("b", slice(0, 1)), np.full((1, 2), 2.0))
    assert store.bytes_read is not None
    store.close()
