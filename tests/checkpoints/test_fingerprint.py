"""A cache's key moves with every change; provenance's digest moves with content alone."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkspec.checkpoints.sequence import Source, find_runs
from qkspec.errors import CheckpointError


def source(path: Path) -> Source:
    return find_runs([str(path)])[0].sources[0]


def model(folder: Path) -> Path:
    folder.mkdir()
    save_file({"q": torch.arange(400_000.0).reshape(500, 800)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    first = source(folder)
    key, content = first.fingerprint(), first.digest()
    first.open().store.read("q")
    assert (source(folder).fingerprint(), source(folder).digest()) == (key, content)
    assert len(key) == 32
    assert content.startswith("blake2b-sampled:")


def test_a_change_in_place_that_hides_its_time_moves_the_key(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    path, first = folder / "model.safetensors", source(folder)
    key, status = first.fingerprint(), path.stat()
    with path.open("r+b") as file:
        file.seek(777_777)
        file.write(b"\x01")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert first.fingerprint() != key


def test_config_and_replacement_move_the_key(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    keys = [source(folder).fingerprint()]
    (folder / "config.json").write_text('{"n_head": 2}')
    keys.append(source(folder).fingerprint())
    shutil.copy2(folder / "model.safetensors", tmp_path / "copy")
    (tmp_path / "copy").replace(folder / "model.safetensors")
    keys.append(source(folder).fingerprint())
    assert len(set(keys)) == 3


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert source(folder).digest() == source(tmp_path / "elsewhere").digest()
    assert source(folder).fingerprint() != source(tmp_path / "elsewhere").fingerprint()
    path = tmp_path / "elsewhere" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert source(folder).digest() != source(tmp_path / "elsewhere").digest()


def test_single_files_and_missing_ones(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "ckpt_1.pt")
    one = source(tmp_path / "ckpt_1.pt")
    assert one.fingerprint() == one.fingerprint()
    (tmp_path / "ckpt_1.pt").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        one.fingerprint()
