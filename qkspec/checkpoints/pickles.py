"""A pickle read as data: nothing is imported, nothing is called, so nothing in it can run.

A pickle is a program for a small stack machine. This reader runs the part of it that builds plain values; a global
becomes a ``Symbol`` (its name, never the object), an instance becomes an ``Instance`` (its class's name and its
state), and a call is carried out only by the handlers that the caller lists. Any other call is refused by name.
torch's ``weights_only`` reader also runs no foreign code, but it allocates what a file claims, and it must read or
map a whole file to return one matrix of it.
"""

import sys
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from struct import error as struct_error
from typing import Any, NoReturn

import numpy as np

from qkspec.checkpoints.opcodes import MEMOIZE, STOP, TABLE
from qkspec.errors import CheckpointError

# Two million operations are 50,000 tensors, take a second, and build at most 300 MB however they are chosen.
MAX_OPERATIONS = 2_000_000
MAX_BLOCKS = 2_500_000  # values in memory, of at most 112 bytes in the mean: dicts of one item
MAX_BULK = 128 << 20  # bytes of what is in memory and no such value: copies of collections, wide text
MAX_PICKLE = 32 << 20  # bytes
_SPARSE = 1 << 20  # bytes of a pickle from which on only what it asks for again is remembered
_WINDOW = 1 << 22  # bytes looked at together
_MAX_ASKED = 1 << 22
_MAX_SYMBOLS = 10_000
_MAX_INT = 1 << 31  # larger dict keys could be chosen to collide


@dataclass(frozen=True, slots=True)
class Symbol:
    """A global that a pickle names. It is never imported."""

    module: str
    name: str
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", f"{self.module}.{self.name}")  # a property would join it at every call


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


def _same_tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise TypeError
    return value


# Calls that build plain values in the pickles of torch, numpy and their users; each result is inert.
PLAIN: Handlers = {
    "collections.OrderedDict": mapping,
    "collections.defaultdict": mapping,
    "collections.Counter": mapping,
    "collections.deque": lambda items=(), *_: list(items),
    "torch.Size": lambda sizes=(): _same_tuple(sizes),
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


class Reader:
    """Reads one pickle.

    Args:
        path: the file, for messages.
        handlers: what may be called, by dotted name, and what stands in for it. Handlers get data only.
        persistent: turns a persistent identifier (torch's storages) into a value; None refuses them.
        packers: what to keep of an instance's state, by the class's name. The steps that built such a state do not
            count towards the limit, since nothing of them stays.
        sinks: where the alternating keys and values of a dict go instead of into it, by the class's name of the keys.
        limit: how many steps the pickle may take.
    """

    def __init__(
        self,
        path: str,
        handlers: Handlers,
        persistent: Callable[[Any], Any] | None = None,
        *,
        packers: Mapping[str, Callable[[Any], Any]] | None = None,
        sinks: Mapping[str, Callable[[list[Any]], None]] | None = None,
        limit: int = MAX_OPERATIONS,
    ) -> None:
        self.path, self.handlers, self.persistent = path, handlers, persistent
        self.packers, self.sinks, self.limit = packers or {}, sinks or {}, limit
        self.symbols: dict[tuple[str, str], Symbol] = {}
        self._clear(b"")

    def _clear(self, data: bytes | bytearray) -> None:
        self.data, self.end = data, 0
        self.stack: list[Any] = []
        self.push = self.stack.append
        self.floor = 0  # where the values above the last mark begin
        self._floors: list[int] = []
        self.memo: dict[int, Any] = {}
        self.count = self._next = 0  # values that were remembered in order, and the next of them that is kept
        self._asked: Iterator[int] = iter(())
        self._steps = self._free = self._bulk = 0
        self._open: tuple[Instance | None, int, int] = (None, 0, 0)

    def load(self, data: bytes | bytearray, start: int = 0) -> Any:
        """Return the value of the pickle that starts at ``start``, and leave the position behind it in ``end``.

        Raises:
            CheckpointError: it is damaged, too long, or calls something that is not among the handlers.
        """
        self._clear(data)
        try:
            with warnings.catch_warnings():  # of escape sequences in the text of very old pickles
                warnings.simplefilter("ignore")
                value, end = self._run(start)
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path}: its pickle is damaged or incomplete; copy or save it again") from error
        finally:
            self._clear(b"")
        self.end = end
        return value

    def _run(self, at: int) -> tuple[Any, int]:
        data, table = self.data, TABLE
        most = sys.getallocatedblocks() + MAX_BLOCKS
        for first in count(0, 1024):
            if first - self._free > self.limit or sys.getallocatedblocks() > most:
                break
            for self._steps in range(first, first + 1024):
                code = data[at]
                if code == MEMOIZE:
                    at += 1
                    if self.count == self._next:
                        self._keep()
                    self.count += 1
                elif code != STOP:
                    at = table[code](self, at + 1)
                else:
                    return self.pop(1)[0], at + 1
        return self._refuse(
            f"its pickle takes more than {self.limit} steps or {MAX_BLOCKS} values; save only the weights"
        )

    def charge(self, size: int) -> None:
        """Count bytes that a value takes beside its block."""
        self._bulk += size
        if self._bulk > MAX_BULK:
            self._refuse(f"its pickle copies or widens more than {MAX_BULK} bytes; save only the weights")

    def mark(self) -> None:
        """Begin a collection."""
        self._floors.append(self.floor)
        self.floor = len(self.stack)

    def items(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        values = self.stack[self.floor :]
        del self.stack[self.floor :]
        self.floor = self._floors.pop()
        return values

    def pop(self, count: int) -> list[Any]:
        """Pop the topmost values, lowest first; they may not reach below the last mark."""
        at = len(self.stack) - count
        if at < self.floor:
            raise IndexError
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def call(self, function: Any, args: Any) -> Any:
        """Carry out a listed call; refuse any other."""
        if not isinstance(function, Symbol) or not isinstance(args, tuple):
            self._refuse("its pickle calls something that is no function; do not load it elsewhere")
        handler = self.handlers.get(function.path)
        if handler is None:
            self._refuse(
                f"unpickling it would call {function.path[:120]!r}, which qkspec never does; "
                "if you trust the file, save its weights alone as safetensors"
            )
        if len(args) > 8:
            self.charge(8 * len(args))
        for arg in args:
            if type(arg) in _COPIED and len(arg) > 8:  # it may be there once and be copied a million times
                self.charge(_COPIED[type(arg)] * len(arg))
        return handler(*args)

    def symbol(self, module: Any, name: Any) -> Symbol:
        """Return the Symbol for a global; equal names share one."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_KEY:
            raise TypeError
        if len(self.symbols) > _MAX_SYMBOLS:
            self._refuse(f"its pickle names more than {_MAX_SYMBOLS} classes; save only the weights")
        found = self.symbols.get((module, name))
        return found or self.symbols.setdefault((module, name), Symbol(module, name))

    def instance(self, cls: Any, args: Any) -> Instance:
        """Return what stands for an object of a class that is not imported."""
        if not isinstance(cls, Symbol) or not isinstance(args, tuple):
            raise TypeError
        made = Instance(cls, args)
        if cls.name in self.packers:
            self._open = made, self._steps, len(self.memo)
        return made

    def build(self, state: Any) -> None:
        """Give an instance its state; on plain values (an OrderedDict's attributes) it is dropped."""
        made = self.stack[-1]
        if not isinstance(made, Instance):
            return
        pack = self.packers.get(made.cls.name)
        made.state = state if pack is None else pack(state)
        opened, since, kept = self._open
        if made is opened and kept == len(self.memo):  # all that was built since then is gone
            self._free += self._steps - since - 1
        self._open = None, 0, 0

    def _keep(self) -> None:
        """Remember the top of the stack, the next in order."""
        if self.count == 0:
            if self.memo:
                raise ValueError  # no pickler mixes both ways to remember
            self._asked = _asked_for(self.data)
            next(self._asked)
        self.memo[self.count] = self.stack[-1]
        self._next = next(self._asked, -1)

    def put(self, index: int) -> None:
        """Remember the top of the stack under a number."""
        if self.count or not 0 <= index < _MAX_INT or len(self.stack) <= self.floor:
            raise ValueError
        self.memo[index] = self.stack[-1]

    def fill(self, target: Any, pairs: list[Any]) -> None:
        """Put alternating keys and values into the dict or the instance on the stack."""
        if isinstance(target, Instance):  # a subclass of dict
            target.state = target.state if isinstance(target.state, dict) else {}
            target = target.state
        if not isinstance(target, dict) or len(pairs) % 2:
            raise TypeError
        if pairs and isinstance(pairs[0], Instance) and pairs[0].cls.name in self.sinks:
            self.sinks[pairs[0].cls.name](pairs)
            return
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[key if type(key) is str and len(key) <= _MAX_KEY else _key(key)] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        """Append to the list (or set, which is a list here) on the stack."""
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Instance):
            raise TypeError

    def persist(self, identifier: Any) -> Any:
        """Resolve a persistent identifier."""
        if self.persistent is None:
            self._refuse("its pickle refers to storage outside itself; it is no metadata")
        return self.persistent(identifier)

    def refuse_opcode(self, name: str | None) -> NoReturn:
        """Refuse an opcode that has no place in a checkpoint."""
        if name is None:
            raise ValueError
        self._refuse(f"its pickle uses {name}, which no checkpoint needs; load it nowhere")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}")


_DAMAGE = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct_error,
)
# Bytes that an item takes in a copy, or in a list made of it.
_COPIED: dict[type, int] = {list: 100, dict: 100, tuple: 100, str: 8, bytes: 8, bytearray: 8}
_KEY = Symbol("", "key")
_MAX_KEY = 4096  # characters


def _key(key: Any) -> Any:
    # Text is hashed with a secret, small numbers spread well; other keys could be chosen to make a dict quadratic. Long
    # text is compared letter by letter each time that it is set again.
    if (isinstance(key, str) and len(key) <= _MAX_KEY) or (isinstance(key, int) and abs(key) < _MAX_INT):
        return key
    return Instance(_KEY, (key,))


def _asked_for(data: bytes | bytearray) -> Iterator[int]:
    """Return, in order, the places of the memo that a pickle may ask for.

    Picklers remember every value, and few are asked for again: a large pickle would be held in memory as a whole.
    What only looks like the opcode inside a text counts too: one too many is harmless, one too few would not be.
    """
    if len(data) < _SPARSE:
        return count()
    found = np.arange(256)  # BINGET reaches these
    for start in range(0, len(data) - 4, _WINDOW):
        window = np.frombuffer(data, np.uint8, min(_WINDOW + 4, len(data) - start), start)
        spots = np.flatnonzero(window[:-4] == ord("j"))  # LONG_BINGET
        places = window[spots[:, None] + np.arange(1, 5)].view("<u4").ravel()
        found = np.union1d(found, places[places < len(data)])
        if len(found) > _MAX_ASKED:
            return count()
    return iter(array("q", found.astype(np.int64).tobytes()))
