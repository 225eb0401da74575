import numpy as np
import pytest
from build import random_layer, table

from qkspec import analyze
from qkspec.analysis import assemble
from qkspec.comparison import compare
from qkspec.curve import Curve
from qkspec.metrics import names
from qkspec.readings import NO_STEP, Readings, concatenate
from qkspec.theorem import Limits, Verdict

STEPS = (0, 10, 20, 40)


def report(run, growth, *, steps=STEPS, losses=None):
    """A run of two heads whose σ1 is exp(growth · step) and twice that."""
    parts = []
    for step in steps:
        one = table(random_layer(heads=2), run=run, checkpoint=f"step-{step}", step=step)
        parts.append(Readings({**one.columns, "sigma1": np.exp(growth * max(step, 0)) * np.array([1.0, 2.0])}))
    readings = concatenate(parts, names())
    return assemble(
        readings, np.ones(len(readings), dtype=bool), Limits(), checkpoints=(), skipped={}, spectra={},
        losses={run: losses} if losses is not None else {},
    )  # fmt: skip


def compared(a, b):
    return compare((a, next(iter(a.states))), (b, next(iter(b.states))))


def test_tracks_are_medians_and_maxima_over_heads():
    found = compared(report("a", 0.05), report("b", 0.0))
    tracks = {(track.metric, track.how): track for track in found.tracks}
    np.testing.assert_allclose(tracks["sigma1", "median"].a, [1.5 * np.exp(0.05 * s) for s in STEPS])
    np.testing.assert_allclose(tracks["sigma1", "max"].b, 2.0)
    assert found.parted == (10, "sigma1"), "e^0.5 is more than half as much again"
    assert found.same_start


def test_runs_that_come_together_again_do_not_part():
    a, b = report("a", 0.0), report("b", 0.0)
    column = a.readings.metric("sigma1").copy()
    column[2:4] *= 9
    again = assemble(
        Readings({**a.readings.columns, "sigma1": column}),
        a.applicable,
        Limits(),
        checkpoints=(),
        skipped={},
        spectra={},
    )
    assert compared(again, b).parted is None
    assert compared(a, b).parted is None
    assert set(compared(a, b).verdicts) == {(Verdict.HEALTHY, Verdict.HEALTHY)}


def test_only_steps_that_both_have_count():
    found = compared(report("a", 0.05, steps=(0, 10, 30)), report("b", 0.0, steps=(10, 20, 30)))
    assert found.steps.tolist() == [10, 30]
    assert not found.same_start
    nothing = compared(report("a", 0.05, steps=(1, 2)), report("b", 0.0, steps=(3,)))
    assert nothing.steps.tolist() == []
    assert nothing.parted is None
    assert nothing.verdicts == {}
    assert compared(report("a", 0.0, steps=(NO_STEP,)), report("b", 0.0)).steps.tolist() == []


@pytest.mark.parametrize("swapped", [False, True])
def test_the_worse_loss_is_the_one_that_parts(swapped):
    steps = np.arange(100)
    better = report("better", 0.0, losses=Curve(steps, np.full(100, 2.0)))
    worse = report("worse", 0.0, losses=Curve(steps, np.where(steps < 30, 2.0, 3.0)))
    name, trouble = compared(worse, better).loss if swapped else compared(better, worse).loss
    assert name == "worse"
    assert abs(trouble.step - 30) <= 1
    assert compared(better, report("b", 0.0)).loss is None


def test_the_sample_runs(sample):
    a, b = analyze([sample.parent / "adamw-no-warmup"]), analyze([sample])
    found = compared(a, b)
    assert found.same_start, "one seed, one initialisation"
    assert found.parted[0] == 2
    assert found.verdicts == {(Verdict.MALIGNANT, Verdict.HEALTHY): 8}
    name, trouble = found.loss
    assert name == "adamw-no-warmup"
    assert 40 < trouble.step < 80
