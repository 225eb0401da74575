"""Put a finished directory in place of another in one step, so that every moment shows the old one or the new one."""

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux: renameat2
_RENAME_SWAP = 2  # macOS: renamex_np
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def publish(new: Path, out: Path) -> Path | None:
    """Make the directory ``new`` stand at ``out``.

    Where ``out`` exists the two change places in one system call, or, on a file system that cannot, in two renames with
    a moment between them at which ``out`` is missing and the old directory stands beside it.

    Args:
        new: finished, in the same file system.
        out: where it should stand; absent, or a directory that may be replaced.

    Returns:
        Where the old directory stands now, for the caller to delete; None if there was none.
    """
    try:
        new.rename(out)  # succeeds also over an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return None
    if _exchange(new, out):
        return new
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".qkspec-old", dir=out.parent))
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    return old


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        call, arguments = getattr(libc, "renamex_np", None), (os.fsencode(a), os.fsencode(b), _RENAME_SWAP)
    else:
        call = getattr(libc, "renameat2", None)
        arguments = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if call is None:
        return False
    if call(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(b))
