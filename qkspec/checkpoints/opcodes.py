"""The opcodes of a pickle, each as one function: what it takes from the bytes, and what it does to the reader's stack.

The standard library's tokenizer takes three times as long, which is a minute for the metadata of a thousand ranks.
Opcodes that no checkpoint needs (extension registry, INST, OBJ, POP, DUP, foreign buffers) have no function here.
"""

import pickletools
from collections.abc import Callable
from io import BytesIO
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkspec.checkpoints.pickles import Reader

Step = Callable[["Reader", int], int]  # the reader, the position behind the opcode ▸ the position behind its argument
STOP, MEMOIZE = ord("."), 0x94  # the reader's own loop takes these
_FLOAT, _INT = Struct(">d"), Struct("<i")


def _long(data: bytes | bytearray) -> int:
    """Return the number of a little-endian two's complement; nothing is 0."""
    return int.from_bytes(data, "little", signed=True)


def _constant(*, value: Any) -> Step:
    def step(reader: "Reader", at: int) -> int:
        reader.push(value)
        return at

    return step


def _empty(make: Callable[[], Any]) -> Step:
    def step(reader: "Reader", at: int) -> int:
        reader.push(make())
        return at

    return step


def _number(size: int) -> Step:
    def step(reader: "Reader", at: int) -> int:
        end = at + size
        reader.push(int.from_bytes(reader.data[at:end], "little"))
        return end

    return step


def _byte(reader: "Reader", at: int) -> int:
    reader.push(reader.data[at])
    return at + 1


def _signed(reader: "Reader", at: int) -> int:
    reader.push(_INT.unpack_from(reader.data, at)[0])
    return at + 4


def _float(reader: "Reader", at: int) -> int:
    reader.push(_FLOAT.unpack_from(reader.data, at)[0])
    return at + 8


def _run(width: int, make: Callable[[bytes | bytearray], Any]) -> Step:
    """Read a length of ``width`` bytes, then so many bytes."""

    def step(reader: "Reader", at: int) -> int:
        start = at + width
        end = start + int.from_bytes(reader.data[at:start], "little")
        if end > len(reader.data):
            raise ValueError
        value = make(reader.data[start:end])
        if type(value) is str and not value.isascii():
            reader.charge(4 * len(value))  # up to four bytes a character, in blocks that nobody counts
        reader.push(value)
        return end

    return step


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin(data: bytes | bytearray) -> str:
    return data.decode("latin-1")


def _lines(name: str, count: int = 1) -> Callable[["Reader", int], tuple[Any, int]]:
    """Return what reads an argument of the oldest protocols, which ends with a line."""
    argument = next(code.arg for code in pickletools.opcodes if code.name == name)
    assert argument is not None

    def read(reader: "Reader", at: int) -> tuple[Any, int]:
        end = at
        for _ in range(count):
            end = reader.data.index(b"\n", end) + 1
        return argument.reader(BytesIO(reader.data[at:end])), end

    return read


def _line(name: str) -> Step:
    read = _lines(name)

    def step(reader: "Reader", at: int) -> int:
        value, end = read(reader, at)
        reader.push(value)
        return end

    return step


def _tuple(count: int) -> Step:
    def step(reader: "Reader", at: int) -> int:
        stack = reader.stack
        bottom = len(stack) - count
        if bottom < reader.floor:
            raise IndexError
        stack[bottom:] = (tuple(stack[bottom:]),)
        return at

    return step


def _two(action: Callable[["Reader", Any, Any], Any]) -> Step:
    """Replace the two topmost values by what ``action`` makes of them."""

    def step(reader: "Reader", at: int) -> int:
        stack = reader.stack
        if len(stack) - 2 < reader.floor:
            raise IndexError
        top = stack.pop()
        stack[-1] = action(reader, stack[-1], top)
        return at

    return step


def _with_names(reader: "Reader", at: int) -> int:
    cls, args, _names = reader.pop(3)
    reader.push(reader.instance(cls, args))
    return at


def _into(count: int | None, action: Callable[["Reader", Any, list[Any]], None]) -> Step:
    """Put the ``count`` topmost values, or all above the mark, into the collection below them."""

    def step(reader: "Reader", at: int) -> int:
        values = reader.items() if count is None else reader.pop(count)
        if len(reader.stack) <= reader.floor:
            raise IndexError
        action(reader, reader.stack[-1], values)
        return at

    return step


def _collect(make: Callable[["Reader", list[Any]], Any]) -> Step:
    """Replace all values above the mark by what ``make`` makes of them."""

    def step(reader: "Reader", at: int) -> int:
        reader.push(make(reader, reader.items()))
        return at

    return step


def _dict(reader: "Reader", pairs: list[Any]) -> dict[Any, Any]:
    target: dict[Any, Any] = {}
    reader.fill(target, pairs)
    return target


def _mark(reader: "Reader", at: int) -> int:
    reader.mark()
    return at


def _put(width: int) -> Step:
    def step(reader: "Reader", at: int) -> int:
        end = at + width
        reader.put(int.from_bytes(reader.data[at:end], "little"))
        return end

    return step


def _get(reader: "Reader", at: int) -> int:
    reader.push(reader.memo[reader.data[at]])
    return at + 1


def _get_long(reader: "Reader", at: int) -> int:
    end = at + 4
    reader.push(reader.memo[int.from_bytes(reader.data[at:end], "little")])
    return end


_PUT_LINE, _GET_LINE, _GLOBAL_LINES = _lines("PUT"), _lines("GET"), _lines("GLOBAL", 2)


def _put_line(reader: "Reader", at: int) -> int:
    index, end = _PUT_LINE(reader, at)
    reader.put(index)
    return end


def _get_line(reader: "Reader", at: int) -> int:
    index, end = _GET_LINE(reader, at)
    reader.push(reader.memo[index])
    return end


def _global(reader: "Reader", at: int) -> int:
    names, end = _GLOBAL_LINES(reader, at)
    reader.push(reader.symbol(*names.split(" ", 1)))
    return end


def _build(reader: "Reader", at: int) -> int:
    if len(reader.stack) - 2 < reader.floor:
        raise IndexError
    reader.build(reader.stack.pop())
    return at


def _persistent(reader: "Reader", at: int) -> int:
    (identifier,) = reader.pop(1)
    reader.push(reader.persist(identifier))
    return at


def _skip(size: int) -> Step:
    return lambda _, at: at + size


_STEPS: dict[str, Step] = {
    "PROTO": _skip(1),
    "FRAME": _skip(8),
    "INT": _line("INT"),
    "BININT": _signed,
    "BININT1": _byte,
    "BININT2": _number(2),
    "LONG": _line("LONG"),
    "LONG1": _run(1, _long),
    "LONG4": _run(4, _long),
    "FLOAT": _line("FLOAT"),
    "BINFLOAT": _float,
    "STRING": _line("STRING"),
    "BINSTRING": _run(4, _latin),
    "SHORT_BINSTRING": _run(1, _latin),
    "BINBYTES": _run(4, bytes),
    "SHORT_BINBYTES": _run(1, bytes),
    "BINBYTES8": _run(8, bytes),
    "BYTEARRAY8": _run(8, bytearray),
    "UNICODE": _line("UNICODE"),
    "BINUNICODE": _run(4, _text),
    "SHORT_BINUNICODE": _run(1, _text),
    "BINUNICODE8": _run(8, _text),
    "NONE": _constant(value=None),
    "NEWTRUE": _constant(value=True),
    "NEWFALSE": _constant(value=False),
    "EMPTY_TUPLE": _constant(value=()),
    "EMPTY_LIST": _empty(list),
    "EMPTY_SET": _empty(list),
    "EMPTY_DICT": _empty(dict),
    "MARK": _mark,
    "TUPLE": _collect(lambda _, values: tuple(values)),
    "LIST": _collect(lambda _, values: values),
    "FROZENSET": _collect(lambda _, values: values),
    "DICT": _collect(_dict),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _into(1, lambda reader, target, values: reader.extend(target, values)),
    "APPENDS": _into(None, lambda reader, target, values: reader.extend(target, values)),
    "ADDITEMS": _into(None, lambda reader, target, values: reader.extend(target, values)),
    "SETITEM": _into(2, lambda reader, target, values: reader.fill(target, values)),
    "SETITEMS": _into(None, lambda reader, target, values: reader.fill(target, values)),
    "GLOBAL": _global,
    "STACK_GLOBAL": _two(lambda reader, module, name: reader.symbol(module, name)),
    "REDUCE": _two(lambda reader, function, args: reader.call(function, args)),
    "NEWOBJ": _two(lambda reader, cls, args: reader.instance(cls, args)),
    "NEWOBJ_EX": _with_names,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "PUT": _put_line,
    "BINPUT": _put(1),
    "LONG_BINPUT": _put(4),
    "GET": _get_line,
    "BINGET": _get,
    "LONG_BINGET": _get_long,
}
NAMES = {ord(code.code): code.name for code in pickletools.opcodes}


def _unknown(reader: "Reader", at: int) -> int:
    return reader.refuse_opcode(NAMES.get(reader.data[at - 1]))


# By the opcode's byte.
TABLE: tuple[Step, ...] = tuple(_STEPS.get(NAMES.get(code, ""), _unknown) for code in range(256))
