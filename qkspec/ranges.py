"""Whole numbers as users write them: "0,2,8-11"."""

from qkspec.errors import UsageError

MAX_RANGE = 100_000


def whole_numbers(value: object, name: str) -> frozenset[int]:
    """Parse "0,2,8-11", a whole number or a list of whole numbers to a set; nothing to the empty set.

    Args:
        value: what was given.
        name: what it is called in messages.

    Raises:
        UsageError: it is none of these, holds a negative number, or a range from a higher to a lower one.
    """
    if value is None:
        return frozenset()
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        return frozenset(items)
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}: give whole numbers")
    out: set[int] = set()
    for part in (part.strip() for part in value.split(",")):
        low, dash, high = part.partition("-")
        if not _plain(low) or (dash and not _plain(high)):
            raise UsageError(f"{name} {value!r} is not a list of numbers; write for example 0,2,8-11")
        last = int(high or low)
        if not 0 <= last - int(low) <= MAX_RANGE:
            raise UsageError(f"{name} {value!r}: {part} is not a range from a lower to a higher number")
        out.update(range(int(low), last + 1))
    return frozenset(out)


def _plain(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) < 10  # "²" is a digit too, and no number
