"""Commands whose plain words are taken as they are.

To convert anything, even an option that was left out, Typer imports pydantic and builds a validator: an eighth of a
whole analysis of GPT-2. A text, one of an enum's words and a whole number need none. What is left, and all that is
wrong, goes Typer's way.
"""

from collections.abc import Callable
from enum import StrEnum
from inspect import signature
from types import NoneType
from typing import Any, get_args

from typer.core import TyperCommand, TyperGroup

from qkspec.cli.sections import Sectioned

Convert = Callable[[Any, Any], Any]  # (context, what was given) to what the command is called with


class Interrupted(BaseException):
    """Ctrl-C while a command ran: Typer would make an exit of it that says nothing."""


class Command(Sectioned):
    """One command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does."""
        _spare(self, ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run it as Typer does."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


class Group(TyperGroup):
    """The commands together."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does."""
        _spare(self, ctx)
        return super().parse_args(ctx, args)


def _spare(command: TyperCommand | TyperGroup, ctx: Any) -> None:
    """Put our conversion before Typer's in each of a command's parameters."""
    known = signature(command.callback).parameters if command.callback else {}
    for param in command.get_params(ctx):
        kind, info = None, None
        if param.name in known:
            kind, info = get_args(known[param.name].annotation)  # of Annotated
        setattr(param, "process_value", _before(param.process_value, param, _inner(kind), info))  # noqa: B010


def _before(convert: Convert, param: Any, kind: Any, info: Any) -> Convert:
    many = param.multiple or param.nargs == -1

    def process(ctx: Any, given: Any) -> Any:
        if given is None and not param.required:
            nothing = () if many else None
            return nothing if param.callback is None else param.callback(ctx, param, nothing)
        if kind is None or given is None or param.callback is not None:
            return convert(ctx, given)
        found = [_plain(word, kind, info) for word in (given if many else (given,))]
        if None in found:
            return convert(ctx, given)
        return found if many else found[0]

    return process


def _inner(annotation: Any) -> Any:
    """Return str for str | None and for list[str] | None; whatever is not so simple is returned as it is."""
    inside = [part for part in get_args(annotation) if part is not NoneType]
    return _inner(inside[0]) if len(inside) == 1 else annotation


def _plain(word: Any, kind: Any, info: Any) -> str | int | None:
    """Return a word as a value of its parameter's kind, None where that is for Typer to say."""
    if not isinstance(word, str):
        return None
    if kind is str:
        return word
    if kind is int:
        plain = word.isascii() and word.isdigit() and len(word) < 10 and info.max is None
        return int(word) if plain and int(word) >= (info.min or 0) else None
    if isinstance(kind, type) and issubclass(kind, StrEnum) and word in list(kind):
        return kind(word)
    return None
