"""One file, whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qkspec.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Give a text file that takes the place of ``path`` when the block ends well.

    Raises:
        OutputError: it could not be written; what stood at ``path`` still does.
    """
    path = Path(os.path.realpath(path))
    scratch: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".qkspec-partial", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(0o666 & ~umask())
        Path(scratch).replace(path)
        scratch = None
    except OSError as error:
        raise OutputError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)


def umask() -> int:
    """Return the mode bits that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
