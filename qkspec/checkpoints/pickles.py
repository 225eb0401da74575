"""A pickle read as data: nothing is imported, nothing is called, so nothing in it can run.

A pickle is a program for a small stack machine. This reader runs the part of it that builds plain values; a global
becomes a ``Symbol`` (its name, never the object), an instance becomes an ``Instance`` (its class's name and its
state), and a call is carried out only by the handlers that the caller lists. Any other call is refused by name.
torch's ``weights_only`` reader also runs no foreign code, but it allocates what a file claims, and it must read or
map a whole file to return one matrix of it.
"""

import pickletools
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from qkspec.errors import CheckpointError

# Two million operations are 50,000 tensors, take 3 s, and build at most 300 MB however they are chosen.
MAX_OPERATIONS = 2_000_000
MAX_BLOCKS = 2_500_000  # values in memory, of at most 112 bytes in the mean: dicts of one item
MAX_PICKLE = 32 << 20  # bytes
_MAX_SYMBOLS = 10_000
_MAX_INT = 1 << 31  # larger dict keys could be chosen to collide


@dataclass(frozen=True, slots=True)
class Symbol:
    """A global that a pickle names. It is never imported."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Instance:
    """An object of a class that is not imported: the class's name, constructor arguments and state."""

    cls: Symbol
    args: tuple[Any, ...] = ()
    state: Any = None


class _Mark:
    """Separates the items of an unfinished collection on the stack."""


_MARK = _Mark()
Handlers = Mapping[str, Callable[..., Any]]


def keep(cls: str) -> Callable[..., Instance]:
    """Return a handler for a call that only makes a value: it is kept as an Instance."""
    module, _, name = cls.rpartition(".")
    return lambda *args: Instance(Symbol(module, name), args)


def mapping(*args: Any) -> dict[Any, Any]:
    """Stand in for OrderedDict, defaultdict and Counter: a dict of the pairs given, if any."""
    pairs = args[-1] if args else ()
    if isinstance(pairs, dict):
        return dict(pairs)
    return {_key(pair[0]): pair[1] for pair in pairs} if isinstance(pairs, list | tuple) else {}


# Calls that build plain values in the pickles of torch, numpy and their users; each result is inert.
PLAIN: Handlers = {
    "collections.OrderedDict": mapping,
    "collections.defaultdict": mapping,
    "collections.Counter": mapping,
    "collections.deque": lambda items=(), *_: list(items),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": keep("torch.device"),
    "torch.serialization._get_layout": keep("torch.layout"),
    **{
        f"{home}.{name}": list for home in ("builtins", "__builtin__") for name in ("set", "frozenset", "list", "tuple")
    },
    **{
        path: keep(path)
        for path in (
            *(
                f"{home}.{name}"
                for home in ("builtins", "__builtin__")
                for name in ("complex", "slice", "range", "bytes", "bytearray")
            ),
            *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
            *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")),
            *(f"numpy.{home}.multiarray.{name}" for home in ("core", "_core") for name in ("scalar", "_reconstruct")),
            *("numpy.dtype", "numpy.ndarray", "_codecs.encode", "datetime.datetime", "datetime.timedelta"),
            *("torch._C.Generator", "torch.torch_version.TorchVersion", "uuid.UUID", "decimal.Decimal"),
        )
    },
}


Step = Callable[["Reader", Any], None]


class Reader:
    """Reads one pickle.

    Args:
        path: the file, for messages.
        handlers: what may be called, by dotted name, and what stands in for it. Handlers get data only.
        persistent: turns a persistent identifier (torch's storages) into a value; None refuses them.
        packers: what to keep of an instance's state, by the class's name; its dict is emptied.
        limit: how many steps the pickle may take.
    """

    def __init__(
        self,
        path: str,
        handlers: Handlers,
        persistent: Callable[[Any], Any] | None = None,
        *,
        packers: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
        limit: int = MAX_OPERATIONS,
    ) -> None:
        self.path, self.handlers, self.persistent = path, handlers, persistent
        self.packers, self.limit = packers or {}, limit
        self.stack: list[Any] = []
        self.memo: list[Any] = []  # of what is remembered in order, as every pickler does; a tenth of a dict's memory
        self.astray: dict[int, Any] = {}
        self.symbols: dict[tuple[str, str], Symbol] = {}

    def load(self, stream: BytesIO) -> Any:
        """Return the value of the pickle that starts at the stream's position, and leave the position behind it.

        Raises:
            CheckpointError: it is damaged, too long, or calls something that is not among the handlers.
        """
        self.stack, self.memo, self.astray = [], [], {}
        try:
            with warnings.catch_warnings():  # of escape sequences in the text of very old pickles
                warnings.simplefilter("ignore")
                return self._run(stream)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: its pickle is damaged or incomplete; copy or save it again") from error

    def _run(self, stream: BytesIO) -> Any:
        most = sys.getallocatedblocks() + MAX_BLOCKS
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count > self.limit or (not count % 1024 and sys.getallocatedblocks() > most):
                raise CheckpointError(
                    f"{self.path}: its pickle takes more than {self.limit} steps or {MAX_BLOCKS} values; "
                    "save only the weights"
                )
            if opcode.name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise CheckpointError(
                    f"{self.path}: its pickle uses {opcode.name}, which no checkpoint needs; load it nowhere"
                )
            step(self, arg)
        raise ValueError

    def items(self) -> list[Any]:
        """Pop the values above the last mark."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def call(self, function: Any, args: Any) -> Any:
        """Carry out a listed call; refuse any other."""
        if not isinstance(function, Symbol) or not isinstance(args, tuple):
            raise CheckpointError(
                f"{self.path}: its pickle calls something that is no function; do not load it elsewhere"
            )
        handler = self.handlers.get(function.path)
        if handler is None:
            raise CheckpointError(
                f"{self.path}: unpickling it would call {function.path[:120]!r}, which qkspec never does; "
                "if you trust the file, save its weights alone as safetensors"
            )
        return handler(*args)

    def pop(self, count: int) -> list[Any]:
        """Pop the topmost values, lowest first; they may not reach below the last mark."""
        values = self.stack[len(self.stack) - count :]
        if len(values) != count or _MARK in values:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        return values

    def symbol(self, module: Any, name: Any) -> Symbol:
        """Return the Symbol for a global; equal names share one."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        if len(self.symbols) > _MAX_SYMBOLS:
            raise CheckpointError(
                f"{self.path}: its pickle names more than {_MAX_SYMBOLS} classes; save only the weights"
            )
        return self.symbols.setdefault((module, name), Symbol(module, name))

    def instance(self, cls: Any, args: Any) -> Instance:
        """Return what stands for an object of a class that is not imported."""
        if not isinstance(cls, Symbol) or not isinstance(args, tuple):
            raise TypeError
        return Instance(cls, args)

    def memoize(self, index: int) -> None:
        """Remember the top of the stack."""
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        else:
            self.astray[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push what was remembered."""
        self.stack.append(self.memo[index] if 0 <= index < len(self.memo) else self.astray[index])

    def fill(self, target: Any, pairs: list[Any]) -> None:
        """Put alternating keys and values into the dict or the instance on the stack."""
        values = zip(pairs[::2], pairs[1::2], strict=True)
        if isinstance(target, Instance):  # a subclass of dict
            target.state = target.state if isinstance(target.state, dict) else {}
            target = target.state
        if not isinstance(target, dict):
            raise TypeError
        target.update((_key(key), value) for key, value in values)

    def extend(self, target: Any, values: list[Any]) -> None:
        """Append to the list (or set, which is a list here) on the stack."""
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Instance):
            raise TypeError

    def build(self, state: Any) -> None:
        """Give an instance its state; on plain values (an OrderedDict's attributes) it is dropped."""
        made = self.stack[-1]
        if isinstance(made, Instance):
            pack = self.packers.get(made.cls.name)
            made.state = state if pack is None else pack(state)
            if pack is not None:
                self._forget(state)

    def _forget(self, value: Any) -> None:
        """Let go of a value that picklers remember, as they do every value, and that nobody will ask for."""
        for index in range(len(self.memo) - 1, max(len(self.memo) - 32, -1), -1):
            if self.memo[index] is value:
                self.memo[index] = None
                return

    def persist(self, identifier: Any) -> Any:
        """Resolve a persistent identifier."""
        if self.persistent is None:
            raise CheckpointError(f"{self.path}: its pickle refers to storage outside itself; it is no metadata")
        return self.persistent(identifier)


_KEY = Symbol("", "key")


def _key(key: Any) -> Any:
    # Text is hashed with a secret, small numbers spread well; other keys could be chosen to make a dict quadratic.
    if isinstance(key, str) or (isinstance(key, int) and abs(key) < _MAX_INT):
        return key
    return Instance(_KEY, (key,))


def _tuple(count: int) -> Step:
    return lambda reader, _: reader.stack.append(tuple(reader.pop(count)))


def _two(action: Callable[[Reader, Any, Any], Any]) -> Step:
    """Replace the two topmost values by what ``action`` makes of them."""

    def step(reader: Reader, _: Any) -> None:
        below, top = reader.pop(2)
        reader.stack.append(action(reader, below, top))

    return step


def _one_into(count: int, method: Callable[[Reader, Any, list[Any]], None]) -> Step:
    """Put the ``count`` topmost values into the collection below them."""

    def step(reader: Reader, _: Any) -> None:
        values = reader.pop(count)
        method(reader, reader.stack[-1], values)

    return step


def _all_into(method: Callable[[Reader, Any, list[Any]], None]) -> Step:
    """Put the values above the mark into the collection below it."""

    def step(reader: Reader, _: Any) -> None:
        values = reader.items()
        method(reader, reader.stack[-1], values)

    return step


def _dict(reader: Reader, _: Any) -> None:
    target: dict[Any, Any] = {}
    reader.fill(target, reader.items())
    reader.stack.append(target)


def _instance_with_names(reader: Reader, _: Any) -> None:
    cls, args, _names = reader.pop(3)
    reader.stack.append(reader.instance(cls, args))


def _constant(make: Callable[[], Any]) -> Step:
    return lambda reader, _: reader.stack.append(make())


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8"),
)
_STEPS: dict[str, Step] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    **dict.fromkeys(_VALUES, lambda r, arg: r.stack.append(arg)),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_SET": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "MARK": _constant(lambda: _MARK),
    "TUPLE": lambda r, _: r.stack.append(tuple(r.items())),
    "LIST": lambda r, _: r.stack.append(r.items()),
    "FROZENSET": lambda r, _: r.stack.append(r.items()),
    "DICT": _dict,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _one_into(1, Reader.extend),
    "APPENDS": _all_into(Reader.extend),
    "ADDITEMS": _all_into(Reader.extend),
    "SETITEM": _one_into(2, Reader.fill),
    "SETITEMS": _all_into(Reader.fill),
    "GLOBAL": lambda r, arg: r.stack.append(r.symbol(*arg.split(" ", 1))),
    "STACK_GLOBAL": _two(Reader.symbol),
    "REDUCE": _two(Reader.call),
    "NEWOBJ": _two(Reader.instance),
    "NEWOBJ_EX": _instance_with_names,
    "BUILD": lambda r, _: r.build(r.stack.pop()),
    "BINPERSID": lambda r, _: r.stack.append(r.persist(r.stack.pop())),
    "PUT": lambda r, arg: r.memoize(arg),
    "BINPUT": lambda r, arg: r.memoize(arg),
    "LONG_BINPUT": lambda r, arg: r.memoize(arg),
    "MEMOIZE": lambda r, _: r.memoize(len(r.memo) + len(r.astray)),
    "GET": lambda r, arg: r.recall(arg),
    "BINGET": lambda r, arg: r.recall(arg),
    "LONG_BINGET": lambda r, arg: r.recall(arg),
}
