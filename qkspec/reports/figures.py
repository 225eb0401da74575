"""The figures of a report, for a paper or a pull request: trajectories, SEC curves, and the layer x head map."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.energy import random_init, sec
from qkspec.reports.palette import LOOKS, SERIES
from qkspec.reports.style import BAND, FAINT, inert, panels, save, styled
from qkspec.reports.trajectories import MAX_RUNS, freezing_trajectories, sigma1_trajectories
from qkspec.reports.view import QUIET, RunView, maps_sentence, views
from qkspec.theorem import GRAVITY, Verdict

F64 = NDArray[np.float64]

MAX_CURVES = 32  # heads of a layer whose own SEC curve is drawn thin beside the median
CROWDED = 20  # heads in a layer beyond which a map takes the page's width
LETTERED = 64  # heads in a layer up to which each cell of the map carries its verdict's letter


def write(report: Report, folder: Path, *, plot_format: str = "png") -> None:
    """Draw every figure into a new folder.

    Args:
        report: the report.
        folder: is made.
        plot_format: png, svg or pdf.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES:
        with styled():
            save(draw(report), folder / f"{name}.{plot_format}")


def sec_curves(report: Report) -> Figure:
    """SEC(d_q, s) over s as in the paper's figure 4: every head thin and their median, early, middle and late."""
    runs = list(islice(views(report), MAX_RUNS))
    depths = sorted({0, (len(runs[0].modules()) - 1) // 2, len(runs[0].modules()) - 1})
    figure, axes, _ = panels(len(depths), across=3, height=2.45)
    for axis, depth in zip(axes, depths, strict=True):
        widths = [_draw_sec(axis, view, depth, depths, SERIES[i % len(SERIES)]) for i, view in enumerate(runs)]
        axis.set_xscale("log", base=2)
        axis.set_xlim(1, max(2, *widths))  # of heads of one dimension there is one point
        axis.set_ylim(0, 1.02)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_xlabel("$s$, directions")
        _, layer, _, _ = runs[0].modules()[depth]
        axis.set_title(f"layer {layer}")
        if not report.spectra:
            axis.annotate("the spectra were not kept", (0.5, 0.5), xycoords="axes fraction", ha="center", color=FAINT)
    axes[0].set_ylabel(r"SEC$(d_q, s)$")
    handles = [
        Line2D([], [], color=SERIES[i % len(SERIES)], label=inert(f"{view.name}, {view.at(-1)}", 48))
        for i, view in enumerate(runs)
    ]
    if any(len(view.grid) > 1 for view in runs):
        handles.append(Line2D([], [], color=FAINT, linestyle=(0, (3, 2)), linewidth=0.9, label="the same at its start"))
    handles.append(Line2D([], [], color=FAINT, linewidth=0.5, label="one head (thick: their median)"))
    handles.append(Line2D([], [], color=BAND, linewidth=5, label="random weights, 5–95 %"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2))
    return figure


def head_map(report: Report) -> Figure:
    """The freezing ratio of every head at the last checkpoint, layer by head, with the letter of its verdict."""
    runs = list(islice(views(report), MAX_RUNS))
    tallest = max(len(view.modules()) for view in runs)
    widest = max(len(view.table.numbers) for view in runs)
    height = min(max(1.5 + 0.17 * tallest, 2.0), 8.0)
    figure, axes, _ = panels(len(runs), height=height, share=False, wide=widest > CROWDED)
    norm = LogNorm(0.02, 3.0)
    image = None
    for axis, view in zip(axes, runs, strict=True):
        grid, verdicts = _last_map(view)
        image = axis.imshow(np.clip(grid, norm.vmin, norm.vmax), cmap="cividis", norm=norm, aspect="auto")
        _letter_cells(axis, grid, verdicts)
        axis.grid(visible=False)
        axis.set_xticks(np.arange(0.5, grid.shape[1] - 1), minor=True)
        axis.set_yticks(np.arange(0.5, grid.shape[0] - 1), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.6)
        axis.tick_params(which="minor", length=0)
        axis.set_title(inert(f"{view.name}, {view.at(-1)}", 48))
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        labels = [str(layer) for _, layer, _, _ in view.modules()]
        every = -(-len(labels) // 16)
        axis.set_yticks(range(0, len(labels), every), labels[::every])
        numbers = view.table.numbers
        every = -(-len(numbers) // 12)
        axis.set_xticks(range(0, len(numbers), every), [str(number) for number in numbers[::every]])
    assert image is not None
    bar = figure.colorbar(image, ax=axes, label=r"freezing ratio $\kappa$", fraction=0.05, pad=0.02, extend="both")
    bar.set_ticks([0.02, 0.1, report.limits.freezing, report.limits.certain, 3.0])
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    present = {verdict for view in runs for verdict in view.counts()}
    text = "   ".join(f"{LOOKS[v].letter} {v.value}" for v in GRAVITY if v in present and v not in QUIET)
    kinds = [kind for view in runs for kind in view.judged_map("entropy", view.last_rows().tolist())[1]]
    figure.supxlabel(f"{text or 'every head healthy'}   ({maps_sentence(kinds)})", fontsize=6.8)
    return figure


FIGURES: tuple[tuple[str, Callable[[Report], Figure]], ...] = (
    ("sigma1", sigma1_trajectories),
    ("freezing", freezing_trajectories),
    ("sec", sec_curves),
    ("heads", head_map),
)


def _draw_sec(axis: Axes, view: RunView, depth: int, depths: list[int], colour: str) -> int:
    """Draw one run's curves at one depth; return d_q."""
    modules = view.modules()
    at = round(depth * (len(modules) - 1) / max(depths[-1], 1))
    _, _, module, columns = modules[at]
    row = int(view.grid[:, columns[0]].max())
    d, d_q = (int(view.report.readings[name][row]) for name in ("d_model", "d_q"))
    sizes = sorted({d_q, *(round(2 ** (i / 2)) for i in range(2 * d_q.bit_length() - 1))})
    band = np.array([random_init(d, d, d_q, s)[:2] for s in sizes])
    axis.fill_between(sizes, band[:, 0], band[:, 1], color=BAND, linewidth=0, zorder=1)
    moments = [(0, 0.9, (0, (3, 2))), (len(view.grid) - 1, 1.4, "-")]
    for index, width, dashes in moments[1:] if len(view.grid) == 1 else moments:
        curves = _sec_of(view, index, module)
        if curves is None:
            continue
        x = np.arange(1, curves.shape[1] + 1)
        axis.plot(x, np.nanmedian(curves, axis=0), color=colour, linewidth=width, linestyle=dashes, zorder=4)
        if index == len(view.grid) - 1:
            axis.plot(x, curves[:MAX_CURVES].T, color=colour, linewidth=0.5, alpha=0.35, zorder=3)
    return d_q


def _sec_of(view: RunView, index: int, module: str) -> F64 | None:
    """Return SEC(d_q, s) for s = 1 .. d_q of one module's heads, (heads, d_q); None if there is nothing to draw."""
    sigma = view.report.spectra.get(f"{view.name}/{view.table.checkpoints[index]}/{module}")
    if sigma is None:
        return None
    curves = np.stack([sec(sigma, s) for s in range(1, sigma.shape[1] + 1)], axis=1)
    curves = curves[np.isfinite(curves).all(axis=1)]
    return curves if len(curves) else None


def _last_map(view: RunView) -> tuple[F64, list[list[Verdict | None]]]:
    """Return κ (layers, heads) at the last checkpoint, NaN where there is no head, and the verdicts beside it."""
    modules, places = view.modules(), {number: place for place, number in enumerate(view.table.numbers)}
    grid = np.full((len(modules), len(places)), np.nan)
    verdicts: list[list[Verdict | None]] = [[None] * len(places) for _ in modules]
    ratio = view.metric("freezing_ratio")[-1]
    for i, (*_, columns) in enumerate(modules):
        for column in columns:
            place, row = places[view.table.heads[column][1]], int(view.grid[-1, column])
            grid[i, place] = ratio[column]
            verdicts[i][place] = view.verdict(row) if row >= 0 else None
    return grid, verdicts


def _letter_cells(axis: Axes, grid: F64, verdicts: list[list[Verdict | None]]) -> None:
    small = grid.shape[1] > LETTERED
    for (i, j), value in np.ndenumerate(grid):
        verdict = verdicts[i][j]
        if verdict is None or verdict in QUIET or small:
            continue
        colour = "white" if not np.isfinite(value) or value < 0.2 else "black"
        size = min(7.0, (380 if grid.shape[1] > CROWDED else 130) / grid.shape[1])
        axis.text(j, i, LOOKS[verdict].letter, ha="center", va="center", fontsize=size, color=colour, weight="bold")
