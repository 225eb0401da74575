"""Bytes at an address: regular files opened without blocking and read by position, and the folders that hold them.

A reader sees only ``Blob`` and ``Folder``, so a local disk and a remote bucket are read by the same code. Nothing is
mapped into memory: a file that a trainer truncates under our hands is then an error message, not a bus error.
"""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from qkspec.errors import CheckpointError

CHUNK = 1 << 26  # bytes asked of the operating system at once; Linux returns at most 2 GiB a call
MAX_ENTRIES = 100_000  # names in one folder; a run of 10,000 checkpoints has 10,000


class Blob(ABC):
    """A readable stretch of bytes with a known size.

    ``path`` names it in messages, ``size`` is in bytes, ``bytes_read`` counts what was fetched so far.
    """

    path: str
    size: int
    bytes_read: int = 0

    def read(self, start: int, length: int) -> bytearray:
        """Return exactly ``length`` bytes from ``start``.

        Raises:
            CheckpointError: the range is outside the file, or the file changed or failed while it was read.
        """
        self._check(start, length)
        data = self._fetch(start, length)
        self._count(len(data), length)
        return data

    def _check(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size:
            raise CheckpointError(
                f"{self.path}: bytes {start} to {start + length} lie outside the file's {self.size}; "
                "it is damaged or incomplete, copy or save it again"
            )

    def _count(self, got: int, length: int) -> None:
        if got != length:
            raise CheckpointError(f"{self.path}: the file became shorter while it was read; try again when it is whole")
        self.bytes_read += length

    @abstractmethod
    def _fetch(self, start: int, length: int) -> bytearray:
        """Return up to ``length`` bytes from ``start``; fewer only at the end of the file."""

    @abstractmethod
    def stamp(self) -> str:
        """Return what tells one state of the file from another: see fingerprint.py for what it rests on."""

    def close(self) -> None:  # noqa: B027 - a window has nothing to release
        """Release the file or connection."""


class LocalBlob(Blob):
    """A regular file of the local file system, opened so that a FIFO or a device cannot hang us."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError(
                f"{self.path}: is not a regular file but {_kind(status.st_mode)}; give a file on disk"
            )
        self.size = status.st_size
        self._seen = _identity(status)

    def read_into(self, start: int, into: memoryview) -> None:
        """Fill memory with the bytes from ``start``, copied once; raises as ``read`` does."""
        self._check(start, len(into))
        self._count(self._fill(start, into), len(into))

    def _fetch(self, start: int, length: int) -> bytearray:
        data = bytearray(length)
        with memoryview(data) as view:
            done = self._fill(start, view)
        del data[done:]
        return data

    def _fill(self, start: int, into: memoryview) -> int:
        """Read until ``into`` is full or the file ends, and return how many bytes that were."""
        if self._fd < 0:
            raise CheckpointError(f"{self.path}: was closed before it was read; open the checkpoint again")
        done = 0
        try:
            while done < len(into):
                got = os.preadv(self._fd, [into[done : done + CHUNK]], start + done)
                if not got:
                    break
                done += got
            now = _identity(os.fstat(self._fd))
        except OSError as error:
            raise unreadable(self.path, error) from error
        if now[:3] != self._seen[:3]:
            raise CheckpointError(f"{self.path}: is being written to while it is read; try again when the save is done")
        return done

    def stamp(self) -> str:
        """Return its size, times and inode."""
        return " ".join(map(str, self._seen))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class Window(Blob):
    """A stretch of another blob, read as if it were a file of its own; the other blob stays its owner's to close."""

    def __init__(self, blob: Blob, start: int, size: int) -> None:
        self.path, self.size, self._blob, self._start = blob.path, size, blob, start
        if start < 0 or size < 0 or start + size > blob.size:
            raise CheckpointError(
                f"{blob.path}: holds {blob.size} bytes, but an index places {size} at {start}; "
                "save the checkpoint again"
            )

    def _fetch(self, start: int, length: int) -> bytearray:
        return self._blob.read(self._start + start, length)

    def stamp(self) -> str:
        """Return the whole file's stamp and the stretch."""
        return f"{self._blob.stamp()} {self._start} {self.size}"


class Folder(ABC):
    """A directory, local or remote, that holds named files and folders."""

    path: str

    @abstractmethod
    def entries(self) -> Mapping[str, bool]:
        """Return the names inside, each with whether it is a folder itself."""

    def missing(self, names: Collection[str]) -> list[str]:
        """Return, sorted, those of ``names`` that are no files here; [] where files cannot be listed."""
        entries = self.entries()
        return sorted(name for name in names if entries.get(name) is not False)

    @abstractmethod
    def blob(self, name: str) -> Blob:
        """Open a file by its bare name."""

    @abstractmethod
    def folder(self, name: str) -> "Folder":
        """Return a folder inside this one; nothing is read yet."""

    @abstractmethod
    def join(self, name: str) -> str:
        """Return the full path of a name in this folder."""

    @abstractmethod
    def again(self) -> "Folder":
        """Return the same folder as it is now: entries are listed once."""

    @abstractmethod
    def same_as(self, name: str) -> str:
        """Return what two names of one file or folder have in common (a link and its target)."""


class LocalFolder(Folder):
    """A directory of the local file system; links of files and folders are followed, and a caller bounds the depth."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._entries: dict[str, bool] | None = None

    def entries(self) -> Mapping[str, bool]:
        """Return the names inside; CheckpointError when it cannot be listed."""
        if self._entries is None:
            found: dict[str, bool] = {}
            try:
                with os.scandir(self.path) as scan:
                    for entry in scan:
                        found[entry.name] = _is_folder(entry)
                        if len(found) > MAX_ENTRIES:
                            raise CheckpointError(
                                f"{self.path}: holds more than {MAX_ENTRIES} names, so it is no folder of checkpoints"
                            )
            except (OSError, ValueError) as error:
                raise unreadable(self.path, error) from error
            self._entries = found
        return self._entries

    def blob(self, name: str) -> Blob:
        """Open a file by its bare name."""
        return LocalBlob(self.join(name))

    def folder(self, name: str) -> Folder:
        """Return a folder inside this one."""
        return LocalFolder(self.join(name))

    def join(self, name: str) -> str:
        """Return the full path of a name."""
        return os.path.join(self.path, name)  # noqa: PTH118 - Path() would drop the "./" the user typed

    def again(self) -> Folder:
        """Return the same folder as it is now."""
        return LocalFolder(self.path)

    def __getstate__(self) -> dict[str, Any]:  # a worker process lists anew
        return {"path": self.path, "_entries": None}

    def same_as(self, name: str) -> str:
        """Return device and inode."""
        try:
            status = Path(self.join(name)).stat()
        except (OSError, ValueError):
            return self.join(name)
        return f"{status.st_dev}:{status.st_ino}"


_REASONS = {
    errno.ENOENT: "does not exist; check the path",
    errno.ENOTDIR: "does not exist; check the path",
    errno.EACCES: "may not be read by this user; change its permissions",
    errno.EPERM: "may not be read by this user; change its permissions",
    errno.EISDIR: "is a folder where a file was expected",
    errno.ELOOP: "is a link that leads back to itself; remove it",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.ENAMETOOLONG: "is too long for a path; check it",
    errno.ENXIO: "is a socket or device, not a file; give a file on disk",
    errno.EIO: "the disk or network share failed; check it and try again",
    errno.ESTALE: "the network share replaced it while it was read; try again",
}


def unreadable(path: str, error: OSError | ValueError) -> CheckpointError:
    """Return the message for an operating system's refusal, in one line."""
    if isinstance(error, OSError) and error.errno in _REASONS:
        return CheckpointError(f"{path}: {_REASONS[error.errno]}")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return CheckpointError(f"{path}: cannot be read: {' '.join(reason.split())}; check it and try again")


def digest(text: str | bytes | bytearray) -> str:
    """Return 128 bits of BLAKE2b as 32 hexadecimal digits."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return blake2b(data, digest_size=16).hexdigest()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # size and mtime come first: a link, a rename or a chmod during reading moves ctime and harms nobody.
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((text for test, text in kinds if test(mode)), "a device")
