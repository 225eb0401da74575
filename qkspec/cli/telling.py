"""Sentences on a report that its table has no place for: flags of heads, forecasts, baselines, offsets, real maps."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qkspec.analysis import Report
    from qkspec.judging import Story


def story_lines(report: "Report") -> Iterator[str]:
    """Say what each run's heads did on the way, and what is forecast."""
    for run, story in report.stories.items():
        yield from flag_lines(run, story)
        yield from forecast_lines(run, story)


def flag_lines(run: str, story: "Story") -> Iterator[str]:
    """Say which heads surged, when growth set in, and which have stopped moving."""
    course = story.courses
    for what, steps in (
        ("surged", course.surge),
        ("began to grow faster", course.onset.step),
        ("began to grow faster in κ", course.onset_freezing.step),
        ("stood still", course.stagnant),
    ):
        known = np.isfinite(steps)
        if not known.any():
            continue
        first = int(np.nanargmin(steps))
        module, head = story.heads[first]
        since = "from" if what == "stood still" else "by"
        start = f"{run}: {known.sum()} of {len(steps)} heads {what}"
        yield f"{start}, {module} head {head} first, {since} step {steps[first]:.0f}"


def forecast_lines(run: str, story: "Story") -> Iterator[str]:
    """Say when the next head will be large if its trend goes on."""
    forecast = story.courses.forecast
    if not np.isfinite(forecast.step).any():
        return
    head = int(np.nanargmin(forecast.step))
    module, number = story.heads[head]
    high = forecast.high[head]
    until = f"{high:.0f}" if math.isfinite(high) else "never"
    yield (
        f"{run}: if its trend goes on, {module} head {number} is large by step {forecast.step[head]:.0f}"
        f" (90 % interval {forecast.low[head]:.0f} to {until}, from {forecast.points} checkpoints)"
    )


def baseline_lines(report: "Report") -> Iterator[str]:
    """Say how many heads leave the bands of the baseline, by run."""
    if report.bands is None:
        return
    outside = report.bands.outside(report.readings)
    for run, rows in report.readings.groups("run"):
        checkpoints = report.readings["checkpoint"]
        last = rows & (checkpoints == checkpoints[rows][-1])
        found = np.flatnonzero(rows & outside)
        start = (
            f"{run}: {int((last & outside).sum())} of {int(last.sum())} heads outside the bands of {report.bands.name}"
        )
        if not len(found):
            yield f"{start} at the end, and none on the way"
            continue
        row = int(found[0])
        beyond = next(c for c in report.against_baseline(row) if c.holds)
        yield (
            f"{start} at the end; first {checkpoints[row]}, {report.readings['module'][row]} head"
            f" {report.readings['head'][row]}: {beyond.metric} {beyond.value:.3g} against {beyond.limit:.3g}"
        )


def offset_lines(report: "Report") -> Iterator[str]:
    """Say how σ_1 changes with rotary offsets, over the last checkpoint's heads of each run."""
    names = [name for name in report.readings.metrics if name.startswith("sigma1_at_")]
    for run, rows in report.readings.groups("run") if names else ():
        checkpoints = report.readings["checkpoint"]
        last = rows & (checkpoints == checkpoints[rows][-1])
        parts = []
        for name in names:
            values = report.readings.metric(name)[last]
            known = values[np.isfinite(values)]
            if known.size:
                parts.append(f"{name.removeprefix('sigma1_at_')}: {np.median(known):.3g} (max {known.max():.3g})")
        yield f"{run}: sigma1 at rotary offsets, median over heads: " + (", ".join(parts) or "no rotary position here")


def measured_lines(report: "Report") -> Iterator[str]:
    """Say how the predicted maps compare with those of a running model."""
    said = report.readings.metric("predicted_entropy")
    for kind, what in (("measured", "real activations"), ("random", "random tokens through the model")):
        real = report.readings.metric(f"{kind}_entropy")
        both = np.isfinite(real) & np.isfinite(said)
        if both.any():
            bias = float(np.mean(said[both] - real[both]))
            yield f"maps of {both.sum()} heads measured on {what}: predicted entropy lies {bias:+.2f} from theirs"


def confidence_lines(report: "Report") -> Iterator[str]:
    """Say how sure the malignant heads of each run's last checkpoint are, where some of them are not measured."""
    from qkspec.theorem import CERTAIN, SUSPECT, Verdict

    found = report.confidence()
    for run, rows in report.readings.groups("run"):
        names = report.readings["checkpoint"]
        bad = rows & (names == names[rows][-1]) & (report.verdicts == Verdict.MALIGNANT)
        certain, suspect = (int((bad & (found == word)).sum()) for word in (CERTAIN, SUSPECT))
        if certain or suspect:
            yield (
                f"{run}: by weights alone {certain} of {int(bad.sum())} malignant heads are certain"
                f" (κ ≥ {report.limits.certain:g}), {suspect} suspect; --text measures maps where the model can run"
            )
