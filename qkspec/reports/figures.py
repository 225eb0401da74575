"""The figures of a report, for a paper or a pull request: trajectories, SEC curves, and the layer x head map."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.metrics import random_init, sec
from qkspec.reports.palette import LOOKS, SERIES
from qkspec.reports.style import FAINT, INK, inert, log_values, panels, save, step_axis, styled
from qkspec.reports.view import QUIET, RunView, head_name, views
from qkspec.theorem import GRAVITY, Verdict

F64 = NDArray[np.float64]

MAX_RUNS = 6  # runs drawn; the tables have all of them
MAX_LINES = 400  # quiet heads drawn in a panel of trajectories, evenly taken; troubled ones are all drawn
MAX_CURVES = 32  # heads of a layer whose own SEC curve is drawn thin beside the median
_CROSSING: dict[str, Any] = {
    "marker": "o", "linestyle": "none", "markersize": 3.2, "markeredgewidth": 0.7, "markerfacecolor": "white",
    "markeredgecolor": INK,
}  # fmt: skip
LETTERED = 40  # heads in a layer up to which each cell of the map carries its verdict's letter


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


def sigma1_trajectories(report: Report) -> Figure:
    """σ_1 of every head over the steps, one panel a run."""
    return _trajectories(report, "sigma1", r"$\sigma_1(W_q^\top W_k)$", ())


def freezing_trajectories(report: Report) -> Figure:
    """The freezing ratio κ of every head over the steps, with the limits that it is judged by."""
    limits = ((report.limits.freezing, "large"), (report.limits.certain, "frozen"))
    return _trajectories(report, "freezing_ratio", r"freezing ratio $\kappa$", limits)


def sec_curves(report: Report) -> Figure:
    """SEC(d_q, s) over s as in the paper's figure 4: every head thin and their median, early, middle and late."""
    runs = list(islice(views(report), MAX_RUNS))
    depths = sorted({0, (len(runs[0].modules()) - 1) // 2, len(runs[0].modules()) - 1})
    figure, axes = panels(len(depths), across=3, height=2.45)
    for axis, depth in zip(axes, depths, strict=True):
        widths = [_draw_sec(axis, view, depth, depths, SERIES[i % len(SERIES)]) for i, view in enumerate(runs)]
        axis.set_xscale("log", base=2)
        axis.set_xlim(1, max(widths))
        axis.set_ylim(0, 1.02)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_xlabel("$s$, directions")
        _, layer, _, _ = runs[0].modules()[depth]
        axis.set_title(f"layer {layer}")
    axes[0].set_ylabel(r"SEC$(d_q, s)$")
    handles = [
        Line2D([], [], color=SERIES[i % len(SERIES)], label=inert(f"{view.name}, {view.at(-1)}", 48))
        for i, view in enumerate(runs)
    ]
    if any(len(view.grid) > 1 for view in runs):
        handles.append(Line2D([], [], color=FAINT, linestyle=(0, (3, 2)), linewidth=0.9, label="the same at its start"))
    handles.append(Line2D([], [], color=FAINT, linewidth=0.5, label="one head (thick: their median)"))
    handles.append(Line2D([], [], color="#c9ced4", linewidth=5, label="random weights, 5–95 %"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2))
    return figure


def head_map(report: Report) -> Figure:
    """The freezing ratio of every head at the last checkpoint, layer by head, with the letter of its verdict."""
    runs = list(islice(views(report), MAX_RUNS))
    tallest = max(len(view.modules()) for view in runs)
    figure, axes = panels(len(runs), height=min(max(1.5 + 0.17 * tallest, 2.0), 8.0), share=False)
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
        axis.set_xticks(range(0, grid.shape[1], -(-grid.shape[1] // 12)))
    assert image is not None
    bar = figure.colorbar(image, ax=axes, label=r"freezing ratio $\kappa$", fraction=0.05, pad=0.02, extend="both")
    bar.set_ticks([0.02, 0.1, report.limits.freezing, report.limits.certain, 3.0])
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    present = {verdict for view in runs for verdict in view.counts()}
    text = "   ".join(f"{LOOKS[v].letter} {v.value}" for v in GRAVITY if v in present and v not in QUIET)
    figure.supxlabel(text or "every head healthy", fontsize=6.8)
    return figure


FIGURES: tuple[tuple[str, Callable[[Report], Figure]], ...] = (
    ("sigma1", sigma1_trajectories),
    ("freezing", freezing_trajectories),
    ("sec", sec_curves),
    ("heads", head_map),
)


def _trajectories(report: Report, metric: str, label: str, limits: tuple[tuple[float, str], ...]) -> Figure:
    runs = list(islice(views(report), MAX_RUNS))
    figure, axes = panels(len(runs))
    present: set[Verdict] = set()
    for axis, view in zip(axes, runs, strict=True):
        present |= _draw_lines(axis, view, view.metric(metric))
        step_axis(axis, view.steps, known=view.has_steps)
        axis.set_title(inert(view.name))
        for limit, word in limits:
            axis.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
            axis.annotate(
                f"{word}: {limit:g}", (0, limit), xycoords=("axes fraction", "data"), xytext=(3, 2),
                textcoords="offset points", ha="left", fontsize=6.2, color=INK,
            ).set_in_layout(False)  # fmt: skip
    log_values(axes)
    axes[0].set_ylabel(label)
    handles = [Line2D([], [], color=LOOKS[v].light, linewidth=1.4, label=v.value) for v in GRAVITY if v in present]
    if Verdict.MALIGNANT in present:
        handles.append(Line2D([], [], label="turns malignant", **_CROSSING))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _draw_lines(axis: Axes, view: RunView, values: F64) -> set[Verdict]:
    """Draw every head's line in its last verdict's colour, quiet ones first, and mark where heads turned malignant."""
    codes = view.codes()
    last = codes[-1]
    quiet = [GRAVITY.index(v) for v in QUIET]
    calm = np.flatnonzero(np.isin(last, quiet))
    for column in calm[:: max(-(-len(calm) // MAX_LINES), 1)]:
        _line(axis, view, values[:, column], LOOKS[GRAVITY[last[column]]].light, 0.7, 2)
    for column in np.flatnonzero(~np.isin(last, quiet) & (last >= 0)):
        _line(axis, view, values[:, column], LOOKS[GRAVITY[last[column]]].light, 0.8, 3)
    malignant = codes == GRAVITY.index(Verdict.MALIGNANT)
    turned = np.flatnonzero(malignant.any(axis=0))
    places = malignant[:, turned].argmax(axis=0)
    if (
        turned.size
    ):  # an empty unclipped line would have a box at the figure's corner, and the layout would make room for it
        axis.plot(view.steps[places], values[places, turned], zorder=6, clip_on=False, **_CROSSING)
    _draw_worst(axis, view, values)
    return {GRAVITY[code] for code in np.unique(last) if code >= 0}


def _draw_worst(axis: Axes, view: RunView, values: F64) -> None:
    """Draw the gravest head's line once more, thick, and name it at its end."""
    worst = view.worst()
    if not worst:
        return
    row = worst[0]
    column = int(np.flatnonzero(view.grid[-1] == row)[0])
    colour = LOOKS[view.verdict(row)].light
    _line(axis, view, values[:, column], colour, 1.9, 5)
    if values[-1, column] > 0:
        axis.annotate(
            inert(head_name(view, row)), (view.steps[-1], values[-1, column]), xytext=(-3, 4),
            textcoords="offset points", ha="right", va="bottom", fontsize=6.5, color=colour, weight="bold", zorder=7,
        ).set_in_layout(False)  # fmt: skip


def _line(axis: Axes, view: RunView, values: F64, colour: str, width: float, order: int) -> None:
    shown = np.where(values > 0, values, np.nan)
    marker = "." if np.isfinite(shown).sum() == 1 else ""
    axis.plot(view.steps, shown, color=colour, linewidth=width, zorder=order, marker=marker)


def _draw_sec(axis: Axes, view: RunView, depth: int, depths: list[int], colour: str) -> int:
    """Draw one run's curves at one depth; return d_q."""
    modules = view.modules()
    at = round(depth * (len(modules) - 1) / max(depths[-1], 1))
    _, _, module, columns = modules[at]
    row = int(view.grid[:, columns[0]].max())
    d, d_q = (int(view.report.readings[name][row]) for name in ("d_model", "d_q"))
    sizes = sorted({d_q, *(round(2 ** (i / 2)) for i in range(2 * d_q.bit_length() - 1))})
    band = np.array([random_init(d, d, d_q, s)[:2] for s in sizes])
    axis.fill_between(sizes, band[:, 0], band[:, 1], color="#c9ced4", linewidth=0, zorder=1)
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
    modules = view.modules()
    widest = max(len(columns) for *_, columns in modules)
    grid = np.full((len(modules), widest), np.nan)
    verdicts: list[list[Verdict | None]] = [[None] * widest for _ in modules]
    ratio = view.metric("freezing_ratio")[-1]
    for i, (*_, columns) in enumerate(modules):
        grid[i, : len(columns)] = ratio[columns]
        for j, column in enumerate(columns):
            row = int(view.grid[-1, column])
            verdicts[i][j] = view.verdict(row) if row >= 0 else None
    return grid, verdicts


def _letter_cells(axis: Axes, grid: F64, verdicts: list[list[Verdict | None]]) -> None:
    small = grid.shape[1] > LETTERED
    for (i, j), value in np.ndenumerate(grid):
        verdict = verdicts[i][j]
        if verdict is None or verdict in QUIET or small:
            continue
        colour = "white" if not np.isfinite(value) or value < 0.2 else "black"
        size = min(7.0, 190 / grid.shape[1])
        axis.text(j, i, LOOKS[verdict].letter, ha="center", va="center", fontsize=size, color=colour, weight="bold")
