"""Checkpoints at a URL (s3://, gs://, hf://, http(s)://), read through fsspec by byte ranges.

One request is under way at a time in a process, so connections stay bounded; each is tried again with growing pauses.
Nothing is downloaded to disk. fsspec and its backends come with the extra ``qkspec[remote]`` and are imported when a
URL is opened, never before.
"""

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from functools import cache
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urljoin

from qkspec.checkpoints.config import CONFIGS, STATES
from qkspec.checkpoints.files import MAX_ENTRIES, Blob, Folder
from qkspec.checkpoints.names import says_step
from qkspec.errors import CheckpointError, InputError, QkspecError, UsageError

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_AHEAD = 1 << 14  # bytes fetched with a file's first ones, so that most headers take one request
_PAUSES = (0.2, 1.0, 3.0)  # seconds before the second, third and fourth attempt
_CONNECT, _READ = 10, 60  # seconds until a silent server counts as failed
# A web server lists no folders: these names are asked for.
_WEB_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    ".metadata",
    *CONFIGS[:2],
    *STATES[:1],
)
MAX_PAGE = 4 << 20  # bytes of a web server's index page that are looked at
_LINK = re.compile(r"""href=["']([^"'<>]{1,512})["']""", re.I)
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|th|index\.json)$", re.I)
_PATIENT = ("s3", "hf")  # their clients try several times themselves
# These file systems fetch a whole file to cut a range out of it, unless it is opened without a cache.
_BY_FILE = ("http", "https", "hf")
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError)


def is_url(path: str) -> bool:
    """Say whether a path is a URL."""
    return _URL.match(path) is not None


class RemoteBlob(Blob):
    """A remote file; only the ranges that are asked for travel, and the first 16 KiB."""

    def __init__(self, url: str) -> None:
        self.path = url
        info = _attempt(url, lambda: _filesystem(_protocol(url)).info(_inside(url)))
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise CheckpointError(f"{url}: the server does not say how long it is; download it and give the file")
        self.size = info["size"]
        self._stamp = " ".join(f"{key}={info[key]}" for key in sorted(_STAMPS & info.keys()))
        self._head = b""

    def _fetch(self, start: int, length: int) -> bytearray:
        if not self._head and start + length <= _AHEAD:
            self._head = self._get(0, min(_AHEAD, self.size))
            self.bytes_read += len(self._head)
        if start + length <= len(self._head):
            self.bytes_read -= length  # read() counts what it returns; these bytes were counted above
            return bytearray(self._head[start : start + length])
        return bytearray(self._get(start, length))

    def _get(self, start: int, length: int) -> bytes:
        if not length:
            return b""
        fs, inside = _filesystem(_protocol(self.path)), _inside(self.path)
        if _protocol(self.path) in _BY_FILE:
            data = _attempt(self.path, lambda: _range(fs, inside, self.size, start, length))
        else:
            data = _attempt(self.path, lambda: fs.cat_file(inside, start=start, end=start + length))
        if len(data) != length:
            raise CheckpointError(
                f"{self.path}: the server sent {len(data)} bytes where {length} were asked for; try again"
            )
        return bytes(data)

    def stamp(self) -> str:
        """Return the size, and the entity tag, version or time that the server gives."""
        return self._stamp


_STAMPS = {
    "size",
    "ETag",
    "etag",
    "LastModified",
    "mtime",
    "generation",
    "md5Hash",
    "crc32c",
    "blob_id",
    "last_commit",
    "url",
}


class RemoteFolder(Folder):
    """A prefix of a bucket, or a revision of a repository."""

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")
        self._entries: dict[str, bool] | None = None

    def entries(self) -> Mapping[str, bool]:
        """Return the names inside; CheckpointError when it cannot be listed."""
        if self._entries is None:
            found = _attempt(self.path, lambda: _filesystem(_protocol(self.path)).ls(_inside(self.path), detail=True))
            if len(found) > MAX_ENTRIES:
                raise CheckpointError(
                    f"{self.path}: holds more than {MAX_ENTRIES} names, so it is no folder of checkpoints"
                )
            own = _inside(self.path).strip("/")
            names = {item["name"].strip("/"): item["type"] == "directory" for item in found}
            self._entries = {name.rpartition("/")[2]: folder for name, folder in names.items() if name != own}
        return self._entries

    def blob(self, name: str) -> Blob:
        """Open a file by its bare name."""
        return RemoteBlob(self.join(name))

    def folder(self, name: str) -> Folder:
        """Return a folder inside this one."""
        return type(self)(self.join(name))

    def join(self, name: str) -> str:
        """Return the URL of a name in this folder."""
        return f"{self.path}/{name}"

    def again(self) -> Folder:
        """Return the same folder as it is now."""
        _filesystem(_protocol(self.path)).invalidate_cache()
        return type(self)(self.path)

    def same_as(self, name: str) -> str:
        """Return the URL: remote stores have no links."""
        return self.join(name)


class WebFolder(RemoteFolder):
    """A folder of a web server: the names that checkpoints have are asked for, then its index page, if it has one."""

    def entries(self) -> Mapping[str, bool]:
        """Return those of the usual names that the server has; where it has none, the checkpoints that it links to."""
        if self._entries is None:
            self._entries = {name: False for name in _WEB_NAMES if self._has(name)} or self._linked()
        return self._entries

    def _linked(self) -> dict[str, bool]:
        """Return the weight files, and the folders whose names say a step, that an index page links to."""
        fs = _filesystem(_protocol(self.path))
        try:
            page = _attempt(self.path, lambda: _beginning(fs, f"{self.path}/"))
        except _MissingError:
            return {}
        links = dict.fromkeys(urljoin(f"{self.path}/", href) for href in _LINK.findall(page))
        inside = {
            link.removeprefix(f"{self.path}/").rstrip("/"): link.endswith("/")
            for link in islice(links, MAX_ENTRIES)
            if link.startswith(f"{self.path}/")
        }
        told = {name: folder for name, folder in inside.items() if not {"/", "?", "#"} & set(name)}
        return {name: folder for name, folder in told.items() if (says_step if folder else _WEIGHTS.search)(name)}

    def _has(self, name: str) -> bool:
        try:
            _attempt(self.path, lambda: _filesystem(_protocol(self.path)).info(self.join(name)))
        except _MissingError:
            return False
        return True

    def missing(self, names: Collection[str]) -> list[str]:  # noqa: ARG002
        """Return []: a shard that is not there shows when it is read."""
        return []


def _beginning(fs: Any, url: str) -> str:
    """Return the first MAX_PAGE bytes of a web page."""
    with fs.open(url, "rb", block_size=0) as page:  # 0: as a stream, whatever size the server claims
        return str(page.read(MAX_PAGE).decode("utf-8", "replace"))


def locate(url: str) -> tuple[Folder, str]:
    """Return the folder and the file that a URL means; the file is "" when the URL is a folder.

    Raises:
        UsageError: no backend for such URLs is installed.
        CheckpointError: there is nothing at the URL, or the server does not answer.
    """
    protocol, clean = _protocol(url), url.rstrip("/")
    head, _, tail = clean.rpartition("/")
    if protocol in ("http", "https"):
        return (WebFolder(head), tail) if _WEIGHTS.search(tail) else (WebFolder(clean), "")
    kind = _attempt(url, lambda: _filesystem(protocol).info(_inside(clean)))["type"]
    return (RemoteFolder(head), tail) if kind == "file" else (RemoteFolder(clean), "")


def refresh(url: str) -> None:
    """Forget what a store was seen to hold, so that what came since is found."""
    _filesystem(_protocol(url)).invalidate_cache()


def revisions(url: str, pattern: str) -> list[str]:
    """Return the URLs of a Hugging Face repository's branches and tags whose names match a shell pattern.

    Raises:
        InputError: the URL is no hf:// repository, or none matches.
    """
    if _protocol(url) != "hf":
        raise InputError(f"{url}: revisions are a matter of Hugging Face repositories; give hf://org/model")
    repository = _inside(url).partition("@")[0].strip("/")
    refs = _attempt(url, lambda: _filesystem("hf")._api.list_repo_refs(repository))
    names = sorted({ref.name for ref in (*refs.branches, *refs.tags)})
    found = [f"hf://{repository}@{name.replace('/', '%2F')}" for name in names if fnmatch(name, pattern)]
    if not found:
        raise InputError(
            f"{url}: no revision matches {pattern!r}; it has {', '.join(names[:5])} and {len(names)} in all"
        )
    return found


@cache
def _filesystem(protocol: str) -> Any:
    """Return fsspec's file system for a protocol; UsageError when it is not installed."""
    options: dict[str, Any] = {}
    try:
        import fsspec

        if protocol in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=_CONNECT, sock_read=_READ)}
        elif protocol == "s3":
            options["config_kwargs"] = {"connect_timeout": _CONNECT, "read_timeout": _READ, "max_pool_connections": 4}
        elif protocol in ("gs", "gcs"):
            logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns at every request of a user without an account
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{protocol}:// URLs cannot be read here; install the extra with `pip install 'qkspec[remote]'`"
        ) from error


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()


def _inside(url: str) -> str:
    """Return a URL as its file system names it."""
    return url if _protocol(url) in ("http", "https") else url.partition("://")[2]


class _MissingError(CheckpointError):
    """There is nothing at the URL."""


def _range(fs: Any, inside: str, size: int, start: int, length: int) -> bytes:
    """Read a range of a file that is opened without read-ahead."""
    with fs.open(inside, "rb", block_size=_AHEAD, cache_type="none", size=size) as file:
        file.seek(start)
        data: bytes = file.read(length)
    return data


def _attempt(url: str, action: Callable[[], T]) -> T:
    """Run a request, again after a pause when it fails for a reason that may pass."""
    pauses = _PAUSES[:1] if _protocol(url) in _PATIENT else _PAUSES
    for pause in (*pauses, None):
        try:
            return action()
        except QkspecError:
            raise
        except Exception as error:  # every backend has its own tree of errors
            cause = _cause(error)
            if isinstance(cause, FileNotFoundError):
                raise _MissingError(f"{url}: does not exist; check the URL") from error
            if pause is None or _is_final(cause):
                raise CheckpointError(f"{url}: {_reason(cause, _protocol(url))}") from error
            time.sleep(pause)
    raise AssertionError


def _cause(error: Exception) -> Exception:
    """Return what went wrong: fsspec says FileNotFoundError of a web file also when the server failed."""
    inner = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(inner, Exception) and _status(inner) not in (404, 410):
        return inner
    return error


def _status(error: Exception) -> object:
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status or getattr(error, "code", None)  # gcsfs


def _is_final(error: Exception) -> bool:
    status = _status(error)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, _FINAL) or _is_closed(error) or type(error).__name__ == "ValueError"


def _is_closed(error: Exception) -> bool:
    """Say whether a server refuses this user; gcsfs says so in the text alone."""
    told = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    return told or type(error).__name__ == "NoCredentialsError" or _status(error) in (401, 403)


_PUBLIC = {"s3": "FSSPEC_S3_ANON=true", "gs": "FSSPEC_GS_TOKEN=anon", "gcs": "FSSPEC_GCS_TOKEN=anon"}


def _reason(error: Exception, protocol: str) -> str:
    if _is_closed(error):
        public = f" (or {_PUBLIC[protocol]} for a public bucket)" if protocol in _PUBLIC else ""
        return f"access was refused; set the credentials of its service{public}"
    if "range requests" in str(error):
        return "the server does not offer byte ranges; download it and give the file"
    text = " ".join(str(error).split())[:160] or type(error).__name__
    return f"cannot be reached ({text}); check the URL and the network, then try again"
