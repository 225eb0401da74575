"""Numbers packed small for a page that shows them: 24 bits a value, in base64. Never for computing."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Json = dict[str, Any]

MISSING = 0xFFFFFF
_LEVELS = MISSING - 2  # of finite values; the two below MISSING and above are for zero on a log scale
_ZERO = MISSING - 1
WIDE = 100.0  # a positive column that spans more than this is spaced in logarithms


def pack(values: F64, *, log: bool = False) -> Json:
    """Pack values of any shape, row-major.

    Args:
        values: NaN where one is missing.
        log: space them in logarithms if none is negative; else only if they are positive and span more than WIDE.

    Returns:
        {"low", "high", "log", "data"}: value = low + (high - low) * code / 16777213, of logarithms if log; 16777214 is
        zero and 16777215 is missing; three bytes a code, the least first. The error is at most a 1/33554426th of
        the range, or of the logarithms' range: six figures, so that a page shows the same three as a terminal.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    known = np.isfinite(flat)
    zero = known & (flat == 0)
    rest = flat[known & ~zero]
    log = bool(rest.size and rest.min() > 0 and (log or rest.max() > WIDE * rest.min()))
    shown = known & ~zero if log else known
    scale = np.log(flat[shown]) if log else flat[shown]
    low, high = (float(scale.min()), float(scale.max())) if scale.size else (0.0, 0.0)
    codes = np.full(flat.shape, MISSING, dtype="<u4")
    if scale.size:
        unit = (scale - low) / (high - low) if high > low else np.zeros_like(scale)
        codes[shown] = np.round(unit * _LEVELS)
    if log:
        codes[zero] = _ZERO
    return {"low": low, "high": high, "log": log, "data": base64(codes.view(np.uint8).reshape(-1, 4)[:, :3])}


def unpack(packed: Mapping[str, Any]) -> F64:
    """Undo ``pack``, flat: what the page does."""
    from base64 import b64decode

    parts = np.frombuffer(b64decode(packed["data"]), dtype=np.uint8).reshape(-1, 3)
    codes = parts @ np.array([1, 1 << 8, 1 << 16], dtype=np.int64)
    values = packed["low"] + (packed["high"] - packed["low"]) * codes / _LEVELS
    values = np.exp(values) if packed["log"] else values
    return np.where(codes == MISSING, np.nan, np.where((codes == _ZERO) & packed["log"], 0.0, values))


def base64(codes: NDArray[Any]) -> str:
    """Return an array's bytes as text."""
    return b64encode(np.ascontiguousarray(codes).tobytes()).decode("ascii")


def spaced(count: int, most: int) -> list[int]:
    """Return at most ``most`` places of 0 .. count - 1, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)}) if most > 1 else [count - 1]


def log_spaced(count: int, most: int) -> list[int]:
    """Return at most ``most`` places of 0 .. count - 1, denser at the start."""
    if count <= most:
        return list(range(count))
    grid = np.unique(np.round(np.geomspace(1, count, most)).astype(int)) - 1
    return [int(i) for i in grid]
