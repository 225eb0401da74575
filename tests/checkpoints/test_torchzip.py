"""The zip directory that torch writes, in both widths."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from qkspec.checkpoints.files import LocalBlob
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.checkpoints.torchzip import Archive
from qkspec.errors import CheckpointError


def test_records_are_the_zip_modules(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(7, 5), "b": torch.ones(3)}, tmp_path / "x.pt")
    archive = Archive(LocalBlob(tmp_path / "x.pt"))
    with zipfile.ZipFile(tmp_path / "x.pt") as reference:
        assert {f"x/{name}" for name in archive.records} == set(reference.namelist())
        for name in archive.records:
            window = archive.window(name)
            assert bytes(window.read(0, window.size)) == reference.read(f"x/{name}")
    assert archive.text("byteorder") == "little"
    assert archive.text("nothing") == ""
    with pytest.raises(CheckpointError, match="no record"):
        archive.window("nothing")


def test_the_wide_directory_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.arange(50.0)}, tmp_path / "x.pt")
    stream = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(stream, "w") as target:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # writes 64-bit fields as for records over 4 GB
        for item in source.infolist():
            target.writestr(item.filename, source.read(item.filename))
    (tmp_path / "wide.pt").write_bytes(stream.getvalue())
    assert b"PK\x06\x06" in stream.getvalue()
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "wide.pt").store.read("a"), np.arange(50.0))
