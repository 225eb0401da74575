"""What is to be said of a run beside its verdict: how sure, what its heads did, a forecast, a baseline, offsets."""

import math
from collections.abc import Iterator

import numpy as np

from qkspec.reports.view import QUIET, RunView, condition_text, head_name, loss_sentence, surge_sentence
from qkspec.theorem import CERTAIN, SUSPECT, Verdict

EVEN = 0.95  # entropy / ln T of a real map from which it is nearly a mean over tokens
Note = tuple[str, str]  # a word, and a sentence of what it names


def notes(view: RunView) -> list[Note]:
    """Return what is to be said of one run, as (word, sentence)."""
    parts = (_confidence, _surge, _loss, _flags, _forecast, _baseline, _offsets, _real_maps)
    return [note for part in parts for note in part(view)]


def _confidence(view: RunView) -> Iterator[Note]:
    """Say how sure the malignant heads of the last checkpoint are, where some of them are not measured."""
    last = view.last_rows()
    bad = last[view.report.verdicts[last] == Verdict.MALIGNANT]
    sure = view.report.confidence()[bad]
    certain, suspect = (int((sure == word).sum()) for word in (CERTAIN, SUSPECT))
    if certain or suspect:
        measured = len(bad) - certain - suspect
        rest = (f", {suspect} suspect" if suspect else "") + (f", {measured} measured" if measured else "")
        yield (
            "sure",
            f"by weights alone {certain} of {len(bad)} malignant heads are certain"
            f" (κ ≥ {view.report.limits.certain:g}){rest}{'' if _asked(view) else _ADVICE}",
        )


_ADVICE = "; --text measures maps where the model can run"


def _asked(view: RunView) -> bool:
    """Whether real maps were asked for, though some could not be had."""
    return any(f"{kind}_entropy" in view.report.readings.metrics for kind in ("random", "measured"))


def _surge(view: RunView) -> Iterator[Note]:
    if sentence := surge_sentence(view):
        yield "surge", sentence


def _loss(view: RunView) -> Iterator[Note]:
    if sentence := loss_sentence(view):
        yield "loss", sentence


def _flags(view: RunView) -> Iterator[Note]:
    """Say which heads surged, which kept their spectrum, and when growth set in of those that are in trouble now.

    Growth that set in and ended well is learning: of healthy heads nothing is said.
    """
    if view.story is None or not view.has_steps:
        return
    course, said = view.story.courses, []
    last = view.grid[-1]
    bad = np.array([row >= 0 and view.verdict(int(row)) not in QUIET for row in last], dtype=bool)
    every = np.ones(len(last), dtype=bool)
    for what, since, among, steps in (
        ("surged", "by", every, course.surge),
        ("began to grow faster", "by", bad, course.onset.step),
        ("began to grow faster in κ", "by", bad, course.onset_freezing.step),
        ("kept the shape of their spectrum", "from", every, course.stagnant),
    ):
        known = np.isfinite(steps) & among
        if known.any():
            first = int(np.nanargmin(np.where(known, steps, np.nan)))
            of = f"{among.sum()} heads" if among is every else f"{among.sum()} heads that stand out"
            start = f"{known.sum()} of {of} {what}"
            said.append(f"{start}, {_head(view, view.story.heads[first])} first, {since} step {steps[first]:.0f}")
    if said:
        yield "also", "; ".join(said)


def _forecast(view: RunView) -> Iterator[Note]:
    """Say when the next head will be large if its trend goes on."""
    if view.story is None or not np.isfinite(view.story.courses.forecast.step).any():
        return
    forecast = view.story.courses.forecast
    head = int(np.nanargmin(forecast.step))
    until = f"to {forecast.high[head]:.0f}" if math.isfinite(forecast.high[head]) else "or never"
    when = f"by step {forecast.step[head]:.0f}" if forecast.step[head] > view.steps[-1] else "at any moment"
    yield (
        "trend",
        f"if it goes on, {_head(view, view.story.heads[head])} is large (κ ≥ {view.report.limits.freezing:g}) {when}"
        f" ({forecast.low[head]:.0f} {until} by the scatter of {forecast.points} checkpoints)",
    )


def _baseline(view: RunView) -> Iterator[Note]:
    """Say how many heads leave the bands of the baseline, and which did first."""
    bands = view.report.bands
    if bands is None:
        return
    outside = bands.outside(view.report.readings)
    last = view.last_rows()
    start = f"{int(outside[last].sum())} of {len(last)} heads outside the bands of {bands.name} at the end"
    left = np.argwhere((view.grid >= 0) & outside[view.grid])
    if not len(left):
        yield "baseline", f"{start}, and none on the way"
        return
    index, column = left[0]
    row = int(view.grid[index, column])
    beyond = next(condition for condition in view.report.against_baseline(row) if condition.holds)
    yield "baseline", f"{start}; first {head_name(view, row)} at {view.at(int(index))}: {condition_text(beyond)}"


def _offsets(view: RunView) -> Iterator[Note]:
    """Say how σ_1 changes with rotary offsets, over the last checkpoint's heads."""
    names = [name for name in view.report.readings.metrics if name.startswith("sigma1_at_")]
    if not names:
        return
    parts = []
    for name in names:
        values = view.report.readings.metric(name)[view.last_rows()]
        known = values[np.isfinite(values)]
        if known.size:
            parts.append(f"{name.removeprefix('sigma1_at_')}: {np.median(known):.3g} (max {known.max():.3g})")
    yield "offsets", "σ1 at rotary offsets, median over heads: " + (", ".join(parts) or "no rotary position here")


def _real_maps(view: RunView) -> Iterator[Note]:
    """Say how the predicted maps compare with those of a running model, and where most of those are even at the end.

    Even maps are no collapse of W_q'W_k, yet a post-LN model whose heads never started sits at its unigram loss so.
    """
    rows = view.grid[view.grid >= 0]
    said = view.report.readings.metric("predicted_entropy")[rows]
    for kind, what in (("measured", "real activations"), ("random", "random tokens through the model")):
        real = view.report.readings.metric(f"{kind}_entropy")[rows]
        both = np.isfinite(real) & np.isfinite(said)
        if both.any():
            bias = float(np.mean(said[both] - real[both]))
            yield "maps", f"{both.sum()} maps measured on {what}: predicted entropy lies {bias:+.2f} from theirs"
            now = view.report.readings.metric(f"{kind}_entropy")[view.last_rows()]
            even, known = int((now >= EVEN).sum()), int(np.isfinite(now).sum())
            if even > known / 2:
                yield (
                    "even",
                    f"{even} of {known} maps at {view.at(-1)} look at nearly all tokens alike (entropy ≥ {EVEN:g}):"
                    " attention hardly works yet, or never began to; the loss tells which",
                )


def _head(view: RunView, head: tuple[str, int]) -> str:
    """Name a head of a story as ``head_name`` does."""
    return head_name(view, int(view.grid[:, view.table.heads.index(head)].max()))
