"""Opening: regular files only, exact ranges, changes noticed."""

import os
import pickle  # noqa: TID251 - our own objects, as worker processes get them
import socket
import time
from pathlib import Path

import pytest

from qkspec.checkpoints.files import LocalBlob, LocalFolder, Window
from qkspec.errors import CheckpointError


def test_exact_ranges_are_counted(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    blob = LocalBlob(tmp_path / "f")
    assert (bytes(blob.read(2, 3)), bytes(blob.read(10, 0)), blob.bytes_read, blob.size) == (b"234", b"", 3, 10)
    window = Window(blob, 4, 4)
    assert bytes(window.read(1, 3)) == b"567"
    for start, length in ((8, 3), (-1, 2), (0, -1)):
        with pytest.raises(CheckpointError, match="lie outside"):
            blob.read(start, length)
    with pytest.raises(CheckpointError, match="places 4 at 8"):
        Window(blob, 8, 4)
    blob.close()
    blob.close()
    with pytest.raises(CheckpointError, match="was closed"):
        blob.read(0, 1)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        start = time.monotonic()
        for name, message in {
            "pipe": "a pipe",
            "loop": "leads back to itself",
            "gone": "does not exist",
            "folder": "a folder",
            "socket": "a socket or device",
            "x" * 300: "too long",
        }.items():
            with pytest.raises(CheckpointError, match=message):
                LocalBlob(tmp_path / name)
        with pytest.raises(CheckpointError, match="a device"):
            LocalBlob("/dev/zero")
        with pytest.raises(CheckpointError, match="cannot be read"):
            LocalBlob("a\0b")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("change", ["truncate", "grow", "rewrite"])
def test_a_file_that_changes_while_it_is_read_is_an_error_not_a_signal(tmp_path: Path, change: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(1 << 16))
    blob = LocalBlob(path)
    blob.read(0, 10)
    with path.open("r+b") as file:
        if change == "truncate":
            file.truncate(100)
        else:
            file.seek(0, os.SEEK_END if change == "grow" else os.SEEK_SET)
            file.write(b"more")
    os.utime(path, ns=(1, 2))
    with pytest.raises(CheckpointError, match=r"written to while|became shorter"):
        blob.read(0, 1 << 16)


def test_a_replaced_file_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    blob = LocalBlob(path)
    (tmp_path / "new").write_bytes(b"other")
    (tmp_path / "new").replace(path)
    assert bytes(blob.read(0, 3)) == b"old"


def test_a_folder_lists_once_and_again_on_request(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("sub")
    folder = LocalFolder(tmp_path)
    assert folder.entries() == {"sub": True, "loop": False, "link": True}
    assert folder.same_as("sub") == folder.same_as("link") != folder.same_as("loop")
    (tmp_path / "new").touch()
    assert "new" not in folder.entries()
    assert "new" in folder.again().entries()
    assert "new" in pickle.loads(pickle.dumps(folder)).entries()
    assert folder.missing({"new", "sub", "nothing"}) == ["new", "nothing", "sub"]
    with pytest.raises(CheckpointError, match="does not exist"):
        LocalFolder(tmp_path / "none").entries()
