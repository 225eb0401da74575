"""The figures over the steps: a metric of every head, with its limits, a baseline's band and the loss below."""

from itertools import islice
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.reports.bands import around
from qkspec.reports.losses import thinned
from qkspec.reports.palette import LOOKS
from qkspec.reports.style import BASELINE, FAINT, INK, inert, log_values, panels, step_axis
from qkspec.reports.view import QUIET, RunView, head_name, views
from qkspec.theorem import GRAVITY, Verdict

F64 = NDArray[np.float64]

MAX_RUNS = 6  # runs drawn; the tables have all of them
MAX_LINES = 80  # heads of a verdict drawn in a panel, evenly taken; more only fill it. The gravest is always drawn
MANY = 60  # troubled heads from which lines are thin, and markers of turns, which are thinned to about so many
WIDE = 20.0  # a loss that spans more than this is drawn on a log axis
_CROSSING: dict[str, Any] = {
    "marker": "o", "linestyle": "none", "markersize": 3.2, "markeredgewidth": 0.7, "markerfacecolor": "white",
    "markeredgecolor": INK,
}  # fmt: skip
_TROUBLE = {"not finite": "no longer finite", "rose": "rises for good", "parted": "parts from the other's"}


def sigma1_trajectories(report: Report) -> Figure:
    """σ_1 of every head over the steps, one panel a run, and the run's loss below it where it is known."""
    return _trajectories(report, "sigma1", r"$\sigma_1(W_q^\top W_k)$", (), losses=True)


def freezing_trajectories(report: Report) -> Figure:
    """The freezing ratio κ of every head over the steps, with the limits that it is judged by."""
    limits = ((report.limits.freezing, "large"), (report.limits.certain, "frozen"))
    return _trajectories(report, "freezing_ratio", r"freezing ratio $\kappa$", limits, losses=False)


def _trajectories(
    report: Report, metric: str, label: str, limits: tuple[tuple[float, str], ...], *, losses: bool
) -> Figure:
    runs = list(islice(views(report), MAX_RUNS))
    below = [view.story.loss if losses and view.story and view.has_steps else None for view in runs]
    known = any(loss is not None for loss in below)
    figure, axes, loss_axes = panels(len(runs), below=0.36 if known else 0.0)
    present: set[Verdict] = set()
    banded = False
    for axis, view in zip(axes, runs, strict=True):
        present |= _draw_lines(axis, view, view.metric(metric))
        banded |= _draw_band(axis, view, metric)
        axis.set_title(inert(view.name))
        for limit, word in limits:
            _draw_limit(axis, limit, word)
    for axis, lower, view in zip(axes, loss_axes or axes, runs, strict=True):
        step_axis(lower, view.steps, known=view.has_steps)
        if lower is not axis:
            _draw_loss(lower, axis, view)
    if known:
        _share_loss_scale(loss_axes)
    log_values(axes)
    axes[0].set_ylabel(label)
    handles = _legend(report, present, banded=banded)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 if len(runs) == 1 else 5))
    return figure


def _legend(report: Report, present: set[Verdict], *, banded: bool) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=LOOKS[v].light, linewidth=1.4, label=v.value) for v in GRAVITY if v in present
    ]
    if Verdict.MALIGNANT in present:
        handles.append(Line2D([], [], label="turns malignant", **_CROSSING))
    if banded and report.bands is not None:
        handles.append(Patch(color=BASELINE, label=f"baseline {inert(report.bands.name, 28)}"))
    return handles


def _draw_limit(axis: Axes, limit: float, word: str) -> None:
    axis.axhline(limit, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axis.annotate(
        f"{word}: {limit:g}", (0, limit), xycoords=("axes fraction", "data"), xytext=(3, 2),
        textcoords="offset points", ha="left", fontsize=6.2, color=INK,
    ).set_in_layout(False)  # fmt: skip


def _draw_band(axis: Axes, view: RunView, metric: str) -> bool:
    """Fill what a baseline's heads showed, all layers together; whether there is such a band."""
    bands = view.report.bands
    band = around(bands, metric) if bands is not None else None
    if band is None:
        return False
    shown = (band if view.has_steps else band.flat()).over(int(view.steps[0]), int(view.steps[-1]))
    axis.fill_between(shown.steps, shown.low, shown.high, color=BASELINE, linewidth=0, zorder=1)
    return True


def _draw_loss(axis: Axes, above: Axes, view: RunView) -> None:
    """Draw a run's loss on the step axis of the panel above it, and from where it went wrong."""
    above.tick_params(labelbottom=False)
    story = view.story
    if story is None or story.loss is None:
        axis.annotate("no loss was found", (0.5, 0.5), xycoords="axes fraction", ha="center", color=FAINT, fontsize=6.5)
        return
    steps, values = thinned(story.loss)
    axis.plot(steps, values, color=INK, linewidth=0.9, zorder=3)
    if view.steps[0] == view.steps[-1] and len(steps):
        axis.set_xlim(min(float(steps[0]), float(view.steps[0])), max(float(steps[-1]), float(view.steps[0])) + 1)
    if story.trouble is not None:
        at = story.trouble.step
        axis.axvline(at, color=LOOKS[Verdict.MALIGNANT].light, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
        early = axis.transAxes.inverted().transform(axis.transData.transform((at, 1.0)))[0] < 0.5
        axis.annotate(  # a loss falls: it leaves the upper right and the lower left free
            f"{_TROUBLE.get(story.trouble.kind, story.trouble.kind)} at step {at}", (at, 1 if early else 0),
            xytext=(3, -2) if early else (-3, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="left" if early else "right", va="top" if early else "bottom", fontsize=6.2,
            color=LOOKS[Verdict.MALIGNANT].light,
        ).set_in_layout(False)  # fmt: skip


def _share_loss_scale(axes: list[Axes]) -> None:
    """Give every loss one scale, in logarithms if they span much; the first panel of each row says it."""
    axes[0].set_ylabel("loss")
    shown = np.concatenate(
        [np.empty(0), *(np.asarray(line.get_ydata(), dtype=float) for a in axes for line in a.lines[:1])]
    )
    if shown.size and shown.min() > 0 and shown.max() > WIDE * shown.min():
        axes[0].set_yscale("log")


def _draw_lines(axis: Axes, view: RunView, values: F64) -> set[Verdict]:
    """Draw every head's line in its last verdict's colour, quiet ones first, and mark where heads turned malignant."""
    codes = view.codes()
    last = codes[-1]
    quiet = [GRAVITY.index(v) for v in QUIET]
    calm = np.flatnonzero(np.isin(last, quiet))
    for column in _few(calm):
        _line(axis, view, values[:, column], LOOKS[GRAVITY[last[column]]].light, 0.7, 2)
    troubled = np.flatnonzero(~np.isin(last, quiet) & (last >= 0))
    for column in np.concatenate([_few(troubled[last[troubled] == code]) for code in range(len(GRAVITY))]):
        _line(
            axis, view, values[:, column], LOOKS[GRAVITY[last[column]]].light, 0.8 if len(troubled) < MANY else 0.3, 3
        )
    malignant = codes == GRAVITY.index(Verdict.MALIGNANT)
    turned = np.flatnonzero(malignant.any(axis=0))
    turned = turned[:: max(len(turned) // MANY, 1)]
    places = malignant[:, turned].argmax(axis=0)
    if turned.size:  # an empty unclipped line would have a box at the figure's corner, for which the layout makes room
        axis.plot(view.steps[places], values[places, turned], zorder=6, clip_on=False, **_CROSSING)
    _draw_worst(axis, view, values)
    return {GRAVITY[code] for code in np.unique(last) if code >= 0}


def _few(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most MAX_LINES of some heads, evenly taken: more lines would only fill the panel."""
    return columns[:: max(-(-len(columns) // MAX_LINES), 1)]


def _draw_worst(axis: Axes, view: RunView, values: F64) -> None:
    """Draw the gravest head's line once more, thick, and name it at its end."""
    worst = view.worst()
    if not worst:
        return
    row = worst[0]
    column = int(np.flatnonzero(view.grid[-1] == row)[0])
    colour = LOOKS[view.verdict(row)].light
    _line(axis, view, values[:, column], "white", 3.2, 4)
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
