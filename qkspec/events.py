"""Scalars of TensorBoard event files, without TensorBoard: TFRecord frames around protocol buffers.

A frame is a length (8 bytes), its checksum (4), the bytes, their checksum (4). Of the Event message, field 2 is the
step and field 5 the summary; of its values, field 1 is the tag, 2 a float, and 8 a tensor, where newer writers put it.
"""

import struct
from collections.abc import Iterator

Field = tuple[int, int, bytes | int]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FLOAT, DOUBLE = 1, 2


def scalars(data: bytes) -> Iterator[tuple[str, int, float]]:
    """Yield (tag, step, value) of every scalar; a frame that is cut short, or being written, ends it.

    Raises:
        ValueError: the bytes are no event file.
    """
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        start, stop = at + 12, at + 12 + length
        if stop + 4 > len(data):
            return
        yield from _event(data[start:stop])
        at = stop + 4


def _event(data: bytes) -> Iterator[tuple[str, int, float]]:
    step, summaries = 0, []
    for number, kind, value in _fields(data):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and kind == BYTES and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, kind, value in _fields(summary):
            if number == 1 and kind == BYTES and isinstance(value, bytes):
                yield from _value(value, step)


def _value(data: bytes, step: int) -> Iterator[tuple[str, int, float]]:
    tag, found = "", None
    for number, kind, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == 2 and kind == FIXED32 and isinstance(value, bytes):
            (found,) = struct.unpack("<f", value)
        elif number == 8 and isinstance(value, bytes):
            found = _tensor(value)
    if found is not None:
        yield tag, step, float(found)


def _tensor(data: bytes) -> float | None:
    """Return the one number of a scalar tensor: raw content (4), or a list of floats (5) or doubles (6)."""
    dtype, content, number_ = 0, b"", None
    for number, kind, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 4 and isinstance(value, bytes):
            content = value
        elif number in (5, 6) and isinstance(value, bytes):
            layout = "<f" if number == 5 else "<d"
            if kind in (FIXED32, FIXED64, BYTES) and len(value) == struct.calcsize(layout):
                (number_,) = struct.unpack(layout, value)
    layout = {FLOAT: "<f", DOUBLE: "<d"}.get(dtype, "")
    if layout and len(content) == struct.calcsize(layout):
        (number_,) = struct.unpack(layout, content)
    return number_


def _fields(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"no event file: field {number} is of kind {kind}")
        if at + size > len(data):
            raise ValueError("no event file: a field is cut short")
        yield number, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError("no event file: a number is cut short")
