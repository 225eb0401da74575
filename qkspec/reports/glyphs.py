"""What a terminal can show: text and drawings in Unicode, or the same in ASCII where it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from qkspec.clean import clean, in_ascii

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"


@dataclass(frozen=True)
class Glyphs:
    """Renders for one terminal. ``unicode`` is False where its encoding has no more than ASCII to offer."""

    unicode: bool

    @classmethod
    def of(cls, console: Console) -> "Glyphs":
        """Choose by the console's encoding."""
        return cls(not console.options.ascii_only)

    def say(self, text: str) -> str:
        """Return text of ours as this terminal can show it."""
        return text if self.unicode else in_ascii(text)

    def name(self, value: object, limit: int = 300) -> str:
        """Return a name from a checkpoint, inert, as this terminal can show it."""
        return self.say(clean(value, limit))

    def sparkline(self, values: Sequence[float] | NDArray[np.float64], width: int) -> str:
        """Draw values as bars, on a log axis if they are positive and span more than a factor of 20.

        Args:
            values: in order; NaN is a gap.
            width: characters; more values than that are thinned by the largest of each run of neighbours.
        """
        bars = _BARS if self.unicode else _ASCII_BARS
        heights = thin(np.asarray(values, dtype=np.float64), width)
        known = heights[np.isfinite(heights)]
        if not known.size:
            return " " * len(heights)
        if known.min() > 0 and known.max() > 20 * known.min():
            heights, known = np.log(heights), np.log(known)
        span = known.max() - known.min()
        place = np.zeros(len(heights)) if span == 0 else (heights - known.min()) / span
        return "".join(bars[round(x * (len(bars) - 1))] if np.isfinite(x) else " " for x in place)


def thin(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return at most ``width`` values, each the largest of its run of neighbours; NaN where all of a run are."""
    if len(values) <= width:
        return np.where(np.isfinite(values), values, np.nan)
    parts = np.array_split(np.where(np.isfinite(values), values, -np.inf), max(width, 1))
    tops = np.array([part.max() for part in parts])
    return np.where(np.isfinite(tops), tops, np.nan)
