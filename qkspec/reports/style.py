"""One style for every figure: small sans-serif type that stays legible at a column's width, quiet axes, no clutter."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from qkspec.clean import clean

COLUMN = 3.3  # inches: one column of a two-column paper, half of a page
DPI = 220
INK, FAINT, GRID, BAND, BASELINE = "#1f2328", "#6b7480", "#e3e7eb", "#c9ced4", "#b5dfcd"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "qkspec",
    "pdf.fonttype": 42,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style. A name in a script that the font lacks becomes boxes, without a warning for each."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*Matplotlib currently does not support.*", category=UserWarning)
        yield


def panels(
    count: int, *, across: int = 2, height: float = 2.35, share: bool = True, below: float = 0.0, wide: bool = False
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure of ``count`` panels, at most ``across`` beside each other: one a column wide, several a page.

    Args:
        count: at least 1.
        across: panels in a row.
        height: of a panel, in inches.
        share: one y axis for all.
        below: if positive, each panel has a lower one of this share of its height, on the same x axis.
        wide: one panel a row, as wide as the page.

    Returns:
        The figure, the panels, and the lower ones, which share a y axis of their own.
    """
    columns = 1 if wide else min(count, across)
    rows = -(-count // columns)
    width = COLUMN if columns == 1 and not wide else 2 * COLUMN
    figure = Figure(figsize=(width, height * rows * (1 + below)), layout="constrained")
    kinds = 2 if below else 1
    grid = figure.add_gridspec(rows * kinds, columns, height_ratios=[1.0, below][:kinds] * rows)
    found: list[list[Axes]] = [[], []]
    for i in range(count):
        row, column = divmod(i, columns)
        for kind in range(kinds):
            like = found[kind][0] if found[kind] and (share or kind) else None
            above = found[0][i] if kind else None
            axis = figure.add_subplot(grid[row * kinds + kind, column], sharex=above, sharey=like)
            if like is not None and column:
                axis.tick_params(labelleft=False)
            found[kind].append(axis)
    return figure, found[0], found[1]


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same report gives the same bytes, so no date is written."""
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    figure.savefig(path, dpi=DPI, metadata=undated.get(path.suffix))


def inert(name: object, limit: int = 40) -> str:
    """Return a name that is drawn as it stands: no mathematics in it, and no legend entry that hides."""
    text = clean(name, limit).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def step_axis(axis: Axes, steps: NDArray[np.int64], *, known: bool) -> None:
    """Label the steps, on a log axis (with its zero) if the run's checkpoints are spaced like that."""
    axis.set_xlabel("step" if known else "checkpoint")
    positive = steps[steps > 0]
    if len(positive) > 3 and steps[-1] >= 50 * positive[0]:
        axis.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.35)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(float(steps[0]), float(steps[-1] if steps[-1] > steps[0] else steps[0] + 1))
    axis.margins(x=0)


def log_values(axes: Sequence[Axes]) -> None:
    """Make the y axis that panels share logarithmic: labels at 1, 2, 5 where it spans little, else at powers of ten."""
    if not any(np.isfinite(axis.dataLim.minposy) for axis in axes):
        return  # nothing positive to draw, as of a model whose heads are all dead
    axis = axes[0]
    axis.set_yscale("log")
    axis.margins(y=0.1)
    low, high = axis.get_ylim()
    few = high < 300 * low
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}") if few else LogFormatterMathtext())
    axis.yaxis.set_minor_formatter(NullFormatter())


def _short(x: float) -> str:
    if x >= 1e6:
        return f"{x / 1e6:g}M"
    return f"{x / 1e3:g}k" if x >= 10_000 else f"{x:g}"
