"""The zip file that ``torch.save`` writes: its directory checked, its records as byte ranges.

torch stores every record uncompressed, once, so that a tensor is a plain byte range. Whatever differs (a deflated
record that unpacks to a thousand times its size, two records with one name, records that overlap) was not written by
torch and is refused.
"""

import struct
from dataclasses import dataclass
from typing import NoReturn

from qkspec.checkpoints.files import Blob, Window
from qkspec.errors import CheckpointError

ZIP = b"PK\x03\x04"  # how files of torch 1.6 and later begin, and how those before did: a pickled number
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
MAX_DIRECTORY = 32 << 20  # bytes; a record takes about 100
MAX_RECORDS = 200_000
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


@dataclass(frozen=True, slots=True)
class Record:
    """A file in the archive: where its local header starts, its size in bytes, and whether it is stored as it is."""

    header: int
    size: int
    plain: bool


class Archive:
    """The records of a torch zip file by name, without the archive's top folder ("data.pkl", "data/0")."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        entries, start, length = _find_directory(blob)
        named = _read_directory(blob, bytes(blob.read(start, length)), entries)
        _check_overlap(blob, named, start)
        tops = {name.partition("/")[0] for name in named}
        if len(tops) != 1 or f"{next(iter(tops))}/data.pkl" not in named:
            _refuse(blob, "is a zip file, but none that torch.save wrote")
        cut = len(next(iter(tops))) + 1
        self.records = {name[cut:]: record for name, record in named.items()}

    def window(self, name: str) -> Window:
        """Return a record's bytes as a blob; CheckpointError if there is no such record."""
        record = self.records.get(name)
        if record is None:
            _refuse(self.blob, f"has no record {name[:80]!r}")
        if not record.plain:
            _refuse(self.blob, f"its record {name[:80]!r} is compressed or encrypted, which torch.save never does")
        head = bytes(self.blob.read(record.header, 30))
        if head[:4] != ZIP:
            _refuse(self.blob, f"has no record where its directory places {name[:80]!r}")
        names, extra = struct.unpack("<HH", head[26:30])
        return Window(self.blob, record.header + 30 + names + extra, record.size)

    def text(self, name: str, limit: int = 64) -> str:
        """Return a short record as text; "" if there is none."""
        if name not in self.records or self.records[name].size > limit:
            return ""
        window = self.window(name)
        return window.read(0, window.size).decode("ascii", "replace")


def _find_directory(blob: Blob) -> tuple[int, int, int]:
    """Return the number of entries, and where the central directory starts and how long it is."""
    if blob.size < 22:
        _refuse(blob, "is too short for a zip file")
    tail = bytes(blob.read(max(0, blob.size - 42), min(42, blob.size)))
    if tail[-22:-18] != _END:  # a comment may follow the end record; torch writes none
        length = min(blob.size, 22 + (1 << 16))
        tail = bytes(blob.read(blob.size - length, length))
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        _refuse(blob, "is a zip file without its directory")
    entries, length, start = struct.unpack("<HII", tail[at + 10 : at + 20])
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        where = int.from_bytes(tail[at - 12 : at - 4], "little")
        end64 = bytes(blob.read(where, 56)) if where + 56 <= blob.size else b""
        if end64[:4] != _END64:
            _refuse(blob, "is a zip file with a broken directory")
        entries, length, start = struct.unpack("<QQQ", end64[32:56])
    if entries > MAX_RECORDS or length > MAX_DIRECTORY:
        _refuse(blob, f"claims {entries} records, more than the {MAX_RECORDS} that are read")
    if start + length > blob.size:
        _refuse(blob, "is a zip file whose directory lies outside it")
    return entries, start, length


def _read_directory(blob: Blob, data: bytes, entries: int) -> dict[str, Record]:
    named: dict[str, Record] = {}
    at = 0
    for _ in range(entries):
        head = data[at : at + 46]
        if len(head) < 46 or head[:4] != b"PK\x01\x02":
            _refuse(blob, "is a zip file with a broken directory")
        flags, method = struct.unpack("<HH", head[8:12])
        stored, size, names, extra, comment = struct.unpack("<IIHHH", head[20:34])
        header = int.from_bytes(head[42:46], "little")
        name = data[at + 46 : at + 46 + names].decode("utf-8", "replace")
        more = data[at + 46 + names : at + 46 + names + extra]
        if 0xFFFFFFFF in (stored, size, header):
            size, stored, header = _wide(blob, more, size, stored, header)
        if name in named:
            _refuse(blob, f"holds two records named {name[:80]!r}")
        named[name] = Record(header, size, plain=not method and not flags & 1 and stored == size)
        at += 46 + names + extra + comment
    return named


def _wide(blob: Blob, extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Return the 64-bit fields that replace those set to 0xFFFFFFFF, in the order that zip64 lists them."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            values = []
            for value in (size, stored, header):
                if value == 0xFFFFFFFF:
                    value, field = int.from_bytes(field[:8], "little"), field[8:]  # noqa: PLW2901
                values.append(value)
            return values[0], values[1], values[2]
        at += 4 + length
    return _refuse(blob, "is a zip file with a broken directory")


def _check_overlap(blob: Blob, named: dict[str, Record], end: int) -> None:
    last = 0
    plain = ((name, record) for name, record in named.items() if record.plain)
    for header, size, name in sorted((record.header, record.size, name) for name, record in plain):
        if header < last or header + 30 + size > end:
            _refuse(blob, f"its record {name[:80]!r} lies on another one or outside the file")
        last = header + 30 + size


def _refuse(blob: Blob, what: str) -> NoReturn:
    raise CheckpointError(f"{blob.path}: {what}; it is damaged or incomplete, copy or save it again")
