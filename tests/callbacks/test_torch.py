import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from callbacks.loops import TINY, Loop, collapse, run_example, same

from qkspec import Limits, analyze
from qkspec.callbacks import torch as hook
from qkspec.callbacks.judgement import RUN
from qkspec.callbacks.torch import EARLY, Monitor
from qkspec.errors import InputError, LayoutError, UsageError
from qkspec.measuring import Settings
from qkspec.theorem import Verdict


def test_the_same_readings_verdicts_and_run_state_as_of_the_checkpoints_saved(tmp_path):
    loop = Loop(lr=0.05)
    monitor, steps = Monitor(loop.model, config=loop.config, every=4, early=(1, 2)), (0, 1, 2, 4, 8)
    judgements = []
    for step in range(9):
        if step:
            loop.update()
        if step == 7:
            collapse(loop.model)
        judgement = monitor(step)
        assert (judgement is not None) == (step in steps)
        if judgement:
            judgements.append(judgement)
            loop.save(tmp_path / "run", step)
            report = analyze([tmp_path / "run"])
            assert repr(judgement.state) == repr(*report.states.values())  # nan is nan
    assert judgements[-1].state.verdict == "lost"
    assert judgements[-1].state.turned == 8
    assert judgements[0].state.verdict == "sound"
    for judgement in judgements:
        assert judgement.report.states == {RUN: judgement.state}
        same(judgement, report, f"step-{judgement.step:06d}")


def test_settings_are_those_of_analyze(tmp_path):
    loop = Loop()
    saved = loop.save(tmp_path, 0)
    settings = Settings(sizes=(3,), layers=frozenset({1}), heads=frozenset({0}), limits=Limits(freezing=1e-9), seed=5)
    judgement = Monitor(loop.model, config=loop.config, settings=settings).measure(0)
    assert len(judgement.readings) == 1
    same(judgement, analyze([saved], settings))


def test_weights_in_bfloat16(tmp_path):
    loop = Loop()
    loop.model.to(torch.bfloat16)
    judgement = Monitor(loop.model, config=loop.config)(0)
    same(judgement, analyze([loop.save(tmp_path, 0)]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        torch.nn.DataParallel,
        lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compile", "parallel", "both"],
)
def test_wrapped_models_keep_their_names(wrap, tmp_path):
    loop = Loop()
    saved = loop.save(tmp_path, 0)
    same(Monitor(wrap(loop.model), config=loop.config)(0), analyze([saved]))


def train(*, watched, steps=6):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the state that a user's own code may draw on
    random.seed(0)
    loop = Loop()
    loop.model.train()
    loop.model.transformer.h[1].eval()
    monitor = Monitor(loop.model, config=loop.config, every=1)
    for step in range(steps):
        loop.update()
        gradients = [weight.grad for weight in loop.model.parameters()]
        if watched:
            monitor(step + 1)
        assert all(weight.grad is kept for weight, kept in zip(loop.model.parameters(), gradients, strict=True))
    modes = [module.training for module in loop.model.modules()]
    wanted = [weight.requires_grad for weight in loop.model.parameters()]
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002 - as above
    return {n: t.clone() for n, t in loop.model.state_dict().items()}, modes, wanted, draws, torch.is_grad_enabled()


def test_measuring_changes_nothing_in_training():
    weights, *rest = train(watched=True)
    expected, *kept = train(watched=False)
    assert rest == kept
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_planted_collapse_stops_the_run():
    loop = Loop(lr=1e-3)
    monitor = Monitor(loop.model, config=loop.config, every=5, early=(), stop_on="lost")
    for step in range(1, 100):
        loop.update()
        if step == 12:
            collapse(loop.model)
        judgement = monitor(step)
        if judgement and judgement.stop:
            break
    assert step == 15
    assert judgement.scalars["qkspec/heads_malignant"] == 4
    assert judgement.scalars["qkspec/concentrated_and_large"] == 1.0
    assert "lost: 100% of heads concentrated and large, 4 malignant, max σ1" in judgement.message


def test_a_huge_learning_rate_is_told_by_the_growth():
    loop = Loop(lr=1.0)
    monitor = Monitor(loop.model, config=loop.config)
    monitor(0)
    loop.update()
    loop.update()
    judgement = monitor(2)
    assert judgement.scalars["qkspec/growth"] > 0.1
    assert judgement.state.surge == 2
    loop.optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(3):
        loop.update()
    judgement = monitor(5)
    assert abs(judgement.scalars["qkspec/growth"]) < 1e-6
    assert judgement.state.surge == 2, "the surge on the way is remembered"


def test_weights_that_are_not_finite_break_the_run():
    loop = Loop()
    monitor = Monitor(loop.model, config=loop.config, stop_on="broken")
    assert not monitor(0).stop
    with torch.no_grad():
        loop.model.transformer.h[0].attn.c_attn.weight[0, 0] = torch.nan
    judgement = monitor(2)
    assert judgement.stop
    assert judgement.state.verdict == "broken"
    assert Verdict.BROKEN in judgement.verdicts.tolist()
    assert "qkspec/max_sigma1" not in judgement.scalars
    assert judgement.scalars["qkspec/heads_broken"] > 0


def test_due_steps():
    loop = Loop()
    monitor = Monitor(loop.model, config=loop.config, every=50)
    assert [step for step in range(151) if monitor.due(step)] == sorted({0, 50, 100, 150, *EARLY})
    assert monitor(0) is not None
    assert monitor(0) is None, "a step is measured once"
    assert monitor.measure(0) is not None


def test_one_layer_is_copied_at_a_time():
    config = replace(TINY, layers=24, heads=4, width=128)
    loop = Loop(config=config)
    loop.model.to(torch.bfloat16)
    monitor = Monitor(loop.model, config=loop.config)
    monitor(0)
    layer = 128 * 3 * 128 * 8  # bytes of one layer's q, k and v in float64
    tracemalloc.start()
    monitor(2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * layer < 24 * layer


def test_a_config_is_taken_from_the_model():
    loop = Loop()
    with pytest.raises(LayoutError, match=r"num_heads"):
        Monitor(loop.model)
    loop.model.config = loop.config
    assert Monitor(loop.model)(0) is not None
    del loop.model.config
    assert len(Monitor(loop.model, settings=Settings(num_heads=2))(0).readings) == 4


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_a_spacing_is_a_whole_number(every):
    with pytest.raises(UsageError, match="whole number of steps"):
        Monitor(Loop().model, every=every)


def test_unknown_words_and_models_are_refused_before_training():
    loop = Loop()
    with pytest.raises(UsageError, match="'broken'"):
        Monitor(loop.model, config=loop.config, stop_on="malignant")
    with pytest.raises(LayoutError):
        Monitor(torch.nn.Linear(3, 3))


def test_nothing_left_to_measure_is_an_error():
    loop = Loop()
    monitor = Monitor(loop.model, config=loop.config, settings=Settings(layers=frozenset({7})))
    with pytest.raises(InputError):
        monitor(0)


def test_the_examples_of_the_docstrings(capsys):
    loop = Loop()
    loop.model.config = loop.config
    names = {"Monitor": Monitor, "model": loop.model, "steps": 3, "train_one_step": lambda _: loop.update()}
    assert run_example(hook, names)["judgement"] is None
    config = replace(TINY, heads=4)
    loop = Loop(config=config)
    names = run_example(Monitor, {"Monitor": Monitor, "model": loop.model})
    assert "qkspec/max_sigma1" in names["writer"]
    assert capsys.readouterr().out.startswith("step 0: sound: 0% of heads concentrated and large")
