import math
from dataclasses import replace

import numpy as np
import pytest
from build import collapsed_layer, layer_of, random_layer, table
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.analysis import assemble
from qkspec.callbacks.judgement import RUN, STOPS, check_stop, follow, stops
from qkspec.errors import UsageError
from qkspec.readings import concatenate
from qkspec.theorem import Limits, Verdict


def report_of(*tables):
    readings = concatenate(tables, tables[0].metrics)
    everywhere = np.ones(len(readings), dtype=bool)
    return assemble(readings, everywhere, Limits(), checkpoints=(), skipped={}, spectra={})


def step_table(layer, step):
    return table(layer, run=RUN, checkpoint=f"step-{step}", step=step)


LAYERS = (random_layer(heads=1, d_q=16, d=64), collapsed_layer(), collapsed_layer(size=0.1))


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=6))
def test_the_run_so_far_is_the_run_of_all_steps_together(events):
    steps = np.cumsum([gap for gap, _ in events]).tolist()
    tables = [step_table(LAYERS[which], step) for step, (_, which) in zip(steps, events, strict=True)]
    judgement = None
    for n, step in enumerate(steps):
        judgement = follow(report_of(tables[n]), judgement, step=step, stop_on=None)
        assert repr(judgement.state) == repr(report_of(*tables[: n + 1]).states[RUN])  # nan is nan
        assert len(judgement.readings) == 1


def test_scalars_are_those_of_the_step():
    report = report_of(step_table(collapsed_layer(), 3))
    scalars = follow(report, None, step=3, stop_on=None).scalars
    assert scalars["qkspec/max_sigma1"] == report.readings.metric("sigma1")[0]
    assert scalars["qkspec/max_freezing_ratio"] == report.readings.metric("freezing_ratio")[0]
    assert scalars["qkspec/concentrated_and_large"] == 1.0
    counts = {name: value for name, value in scalars.items() if name.startswith("qkspec/heads_")}
    assert len(counts) == len(Verdict)
    assert {name for name, value in counts.items() if value} == {"qkspec/heads_malignant"}
    assert "qkspec/growth" not in scalars, "the first step has nothing to grow from"


def test_growth_is_that_of_the_median_head():
    small, large = (step_table(collapsed_layer(size=size), step) for size, step in ((1.0, 10), (math.e, 14)))
    first = follow(report_of(small), None, step=10, stop_on=None)
    second = follow(report_of(large), first, step=14, stop_on=None)
    assert second.scalars["qkspec/growth"] == pytest.approx(0.25, abs=0.01)


def test_what_was_not_measured_is_no_number():
    q = np.zeros((1, 4, 8))
    scalars = follow(report_of(step_table(layer_of(q, q), 0)), None, step=0, stop_on=None).scalars
    assert all(math.isfinite(value) for value in scalars.values())
    assert scalars["qkspec/heads_dead"] == 1
    q = np.full((1, 4, 8), np.nan)
    judgement = follow(report_of(step_table(layer_of(q, q), 0)), None, step=0, stop_on="broken")
    assert not {"qkspec/max_sigma1", "qkspec/max_freezing_ratio", "qkspec/concentrated_and_large"} & set(
        judgement.scalars
    )
    assert judgement.message == "step 0: broken: no head judged, 0 malignant"
    assert judgement.stop


def test_a_graver_verdict_stops_too():
    state = report_of(step_table(collapsed_layer(), 0)).states[RUN]
    order = ("sound", *STOPS)
    for i, verdict in enumerate(order):
        for j, word in enumerate(order[1:], 1):
            assert stops(replace(state, verdict=verdict), word) == (i >= j)
        assert not stops(replace(state, verdict=verdict), None)
    assert not stops(replace(state, verdict="unjudged"), "warned")


def test_only_words_that_a_run_can_be_called():
    check_stop(None)
    for word in ("sound", "unjudged", "malignant", ""):
        with pytest.raises(UsageError, match="stop_on is"):
            check_stop(word)
