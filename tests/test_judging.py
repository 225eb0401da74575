from dataclasses import replace

import numpy as np
import pytest
from build import collapsed_layer, random_layer, table

from qkspec import analyze, energy, judging
from qkspec.baseline import Bands
from qkspec.curve import Curve
from qkspec.metrics import names
from qkspec.qk import QKNorm
from qkspec.readings import NO_STEP, Readings, concatenate
from qkspec.theorem import KINDS, Limits
from qkspec.trajectory import ALARM

STEPS = np.arange(1, 101)
GOOD, BAD = Curve(STEPS, np.full(100, 2.0)), Curve(STEPS, np.where(STEPS < 50, 2.0, 3.0))


def run(name, sizes, *, first=0):
    """One head whose collapsed direction has the given sizes at steps 0, 10, 20, ..."""
    return [
        table(collapsed_layer(size=size), run=name, checkpoint=f"step-{i}", step=NO_STEP if first is None else 10 * i)
        for i, size in enumerate(sizes)
    ]


def assembled(*tables, losses=None, applicable=True):
    readings = concatenate([one for part in tables for one in part], names(kinds=KINDS))
    return judging.assemble(
        readings, np.full(len(readings), applicable), Limits(), checkpoints=(), skipped={}, spectra={}, losses=losses
    )


def test_alarms_and_leads_over_the_loss():
    report = assembled(run("bad", (0.5, 0.6, 30, 30, 30)), run("good", (0.5,) * 5), losses={"bad": BAD, "good": GOOD})
    story = report.stories["bad"]
    assert story.alarms == {"surge": 20, "crossing": 20, "malignant": 20}
    assert story.trouble.kind == "rose" or story.trouble.reference == "good"
    assert abs(story.trouble.step - 50) <= 1
    assert story.leads == dict.fromkeys(story.alarms, story.trouble.step - 20)
    assert report.stories["good"].trouble is None
    assert report.stories["good"].leads == {}


def test_the_run_that_ended_best_is_the_reference():
    slow = Curve(STEPS, np.where(STEPS < 50, 2.0, 2.2))
    report = assembled(
        run("a", (0.5,)), run("b", (0.5,)), losses={"a": slow, "b": Curve(STEPS, np.linspace(2.0, 1.0, 100))}
    )
    assert report.stories["a"].trouble.reference == "b"
    assert report.stories["b"].trouble is None


def test_without_steps_there_are_no_alarms_to_lead():
    report = assembled(run("bad", (0.5, 30, 30), first=None), losses={"bad": BAD})
    assert report.stories["bad"].alarms == {}
    assert report.states["bad"].malignant == 1


def test_reasons_carry_value_limit_and_margin():
    reasons = {c.metric: c for c in assembled(run("bad", (0.5, 30, 30))).stories["bad"].reasons}
    assert (reasons["share"].value, reasons["share"].limit, reasons["share"].holds) == (1.0, 0.25, True)
    assert (reasons["frozen"].value, reasons["frozen"].limit, reasons["frozen"].holds) == (1.0, 0.5, True)
    assert reasons["share"].margin == pytest.approx(3.0)
    assert reasons["malignant"].holds
    assert reasons["malignant"].limit == 1.0
    assert reasons["growth"].value == pytest.approx(np.log(60) / 10, rel=0.01)
    one = {c.metric: c for c in assembled(run("x", (0.5,))).stories["x"].reasons}
    assert one["growth"].value is None
    assert one["growth"].margin is None


def test_a_run_is_lost_by_frozen_heads_and_warned_by_large_ones():
    """A measured map that is open keeps even a frozen head from counting."""
    for size, verdict in ((9, "warned"), (30, "lost")):
        (last,) = run("x", (size,))
        assert (0.45 < last.metric("freezing_ratio")[0] < 1) == (verdict == "warned")
        assert assembled([last]).states["x"].verdict == verdict
    open_map = {"random_entropy": np.array([0.9]), "random_rank": np.array([0.1]), "random_diagonal": np.array([0.1])}
    found = assembled([Readings({**last.columns, **open_map})]).states["x"]
    assert (found.verdict, found.share, found.frozen) == ("warned", 1.0, 0.0)


def test_courses_say_when_each_condition_was_crossed():
    course = assembled(run("bad", (0.5, 30, 0.5, 30))).stories["bad"].courses
    assert course.crossed["malignant"][0] == 10
    assert course.held["malignant"][0] == 30
    assert course.limits["large"] == Limits().freezing


@pytest.mark.parametrize(("gain", "share"), [(1.0, 0.0), (30.0, 1.0)])
def test_under_qk_norm_the_gains_make_the_run(gain, share):
    """W_q'W_k is the same in both, and huge; only the gains say how large the logits are."""
    layer = random_layer(heads=1, d_q=16, d=64)
    norm = QKNorm("rms", q_gain=np.full((1, 16), gain), k_gain=np.ones((1, 16)))
    report = assembled([table(replace(layer, q=1e3 * layer.q, qk_norm=norm))], applicable=False)
    state = report.states["run"]
    assert (state.share, state.malignant, state.frozen) == (share, 0, 0.0)
    assert state.verdict == ("warned" if share else "sound")
    real = {"measured_entropy": np.array([0.1]), "measured_rank": np.array([0.1]), "measured_diagonal": np.array([0.1])}
    ran = assembled([Readings({**report.readings.columns, **real})], applicable=False).states["run"]
    assert ran.verdict == ("lost" if share else "sound"), "size and a map that has collapsed"


def test_the_random_band_is_that_of_the_heads_shape():
    report = assembled([table(random_layer(d_q=16, d=64))])
    low, high, rank = report.random_band(0)
    assert (low, high, rank) == energy.random_init(64, 64, 16, 1)
    assert low * 0.9 <= report.readings.metric("sec_1")[0] <= high * 1.1


def test_rows_against_a_baseline():
    base = assembled([table(random_layer(d_q=16, d=64))])
    bad = assembled([table(collapsed_layer())])
    assert bad.against_baseline(0) == ()
    held = replace(bad, bands=Bands.of(base.readings, "base")).against_baseline(0)
    assert {c.metric: c.holds for c in held} == {"sigma1": True, "freezing_ratio": True, "predicted_entropy": True}
    within = replace(base, bands=Bands.of(base.readings, "base")).against_baseline(0)
    assert not any(c.holds for c in within)


def test_the_samples_story(sample):
    """The lost run's heads surge at step 2, and turn before its loss parts from that of the sound run."""
    report = analyze([sample.parent / "adamw-no-warmup", sample])
    story = report.stories["adamw-no-warmup"]
    assert story.trouble.kind == "parted"
    assert story.trouble.reference == "adamw2"
    assert story.leads["surge"] >= 40
    assert story.leads["malignant"] >= 5
    assert report.stories["adamw2"].alarms == {}
    assert report.stories["adamw2"].trouble is None


def test_a_few_malignant_heads_of_many_are_told_and_are_no_warning():
    from qkspec.reports.view import RunView, state_sentence

    sizes = [0.5] * 40 + [30]
    layers = [replace(collapsed_layer(size=size), name=f"h.{i}", layer=i) for i, size in enumerate(sizes)]
    report = assembled([table(layer, run="x", checkpoint="c", step=NO_STEP) for layer in layers])
    state = report.states["x"]
    assert (state.verdict, state.malignant, state.judged) == ("sound", 1, 41)
    (told,) = (c for c in report.stories["x"].reasons if c.metric == "malignant")
    assert (told.limit, told.holds) == (pytest.approx(ALARM * 41), False)
    assert "1 malignant (2.4%), as single heads of a sound model may be" in state_sentence(RunView.of(report, "x"))
