import json
import math
import tomllib

import numpy as np
import pytest
from build import collapsed_layer, layer_of, random_layer, table
from hypothesis import given
from hypothesis import strategies as st

from qkspec.analysis import assemble
from qkspec.baseline import Bands
from qkspec.errors import UsageError
from qkspec.gate import Failure, Outcome, check, where
from qkspec.metrics import DEFAULT_SIZES, names
from qkspec.policy import Override, Policy, verdicts
from qkspec.ranges import whole_numbers
from qkspec.readings import Readings, concatenate
from qkspec.reports.crossings import counted, document
from qkspec.theorem import Limits, Verdict


def report(*tables, skipped=None, applicable=True):
    readings = concatenate(tables, names(DEFAULT_SIZES))
    return assemble(
        readings,
        np.full(len(readings), applicable),
        Limits(),
        checkpoints=(),
        skipped=skipped or {},
        spectra={},
    )


def with_values(readings, **values):
    columns = dict(readings.columns)
    for name, value in values.items():
        columns[name] = np.full(len(readings), value, dtype=float)
    return Readings(columns)


@pytest.fixture(scope="module")
def healthy():
    return table(random_layer(d_q=16, d=64))


@pytest.fixture(scope="module")
def collapsed():
    return table(collapsed_layer(), checkpoint="step-9", step=9)


def dead():
    rng = np.random.default_rng(0)
    return table(layer_of(np.zeros((1, 8, 16)), rng.standard_normal((1, 8, 16))))


def broken():
    q = np.ones((1, 8, 16))
    q[0, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        return table(layer_of(q, np.ones((1, 8, 16))))


RULES = [
    ("max_sec", "sec_4", "<="),
    ("max_sigma1", "sigma1", "<="),
    ("max_freezing", "freezing_ratio", "<="),
    ("min_entropy", "predicted_entropy", ">="),
]


@pytest.mark.parametrize(("rule", "metric", "sign"), RULES)
def test_each_rule_holds_at_its_limit_and_fails_just_beyond(healthy, rule, metric, sign):
    values = healthy.metric(metric)
    edge = float(values.max() if sign == "<=" else values.min())
    assert check(report(healthy), Policy(**{rule: edge})).exit_code == 0
    beyond = float(np.nextafter(edge, -1 if sign == "<=" else 2))
    found = check(report(healthy), Policy(**{rule: beyond}))
    assert found.exit_code == 1
    (failure,) = found.failures
    assert failure.value == edge
    assert failure.limit == beyond
    assert failure.rule == f"--{rule.replace('_', '-')} {metric}"
    assert failure.where == where(report(healthy), failure.row)


@given(limit=st.floats(0, 2), value=st.one_of(st.floats().filter(bool), st.just(math.nan)))
def test_a_value_passes_only_if_it_is_at_or_below_the_limit(limit, value):
    """``not (value <= limit)``: neither NaN nor infinity is ever accepted, whatever the limit."""
    one = with_values(table(random_layer(heads=1)), sigma1=value)
    found = check(report(one), Policy(max_sigma1=limit))
    assert (found.exit_code == 0) == (value <= limit)


@pytest.mark.parametrize(("rule", "metric", "sign"), RULES)
def test_what_was_not_measured_never_passes(healthy, rule, metric, sign):
    found = check(report(with_values(healthy, **{metric: np.nan})), Policy(**{rule: 1.0 if sign == "<=" else 0.0}))
    if metric == "sigma1":  # no σ1 means that the weights are not finite, and that is a breach
        assert found.exit_code == 1
        return
    assert found.exit_code == 3
    assert len(found.unmeasured) == len(healthy)
    assert "could not be measured" in found.unmeasured[0].message


def test_a_head_narrower_than_s_is_not_measured():
    narrow = table(random_layer(d_q=2, d=8))
    assert check(report(narrow), Policy(max_sec=0.99)).exit_code == 3
    assert check(report(narrow), Policy(max_sec=0.99, s=1)).exit_code == 0


def test_a_collapsed_head_is_named(healthy, collapsed):
    found = check(report(healthy, collapsed), Policy(fail_on=frozenset({Verdict.MALIGNANT})))
    assert found.exit_code == 1
    assert found.failures == (
        Failure("run/step-9 h.0.attn head 0", "verdict", "malignant", "--fail-on", 4, "run h.0.attn head 0", "step 9"),
    )
    assert check(report(healthy), Policy(fail_on=frozenset({Verdict.MALIGNANT}))).exit_code == 0


def test_a_dead_head_exceeds_no_concentration_but_can_be_forbidden():
    q, k = np.random.default_rng(0).standard_normal((2, 2, 16, 64))
    q[1] = 0
    one_dead = table(layer_of(q / 8, k / 8))
    assert check(report(one_dead), Policy(max_sec=0.9)).exit_code == 0
    assert check(report(one_dead), Policy(fail_on=frozenset({Verdict.DEAD}))).exit_code == 1


def test_a_model_of_zeros_is_not_proven_healthy():
    assert check(report(dead()), Policy(max_sec=0.5)).exit_code == 3
    assert check(report(dead()), Policy(fail_on=frozenset({Verdict.MALIGNANT}))).exit_code == 3
    assert check(report(dead()), Policy(fail_on=frozenset({Verdict.DEAD}))).exit_code == 1


@pytest.mark.parametrize(
    "policy",
    [
        Policy(max_sec=1.0),
        Policy(max_sigma1=1e300),
        Policy(max_freezing=1e300),
        Policy(min_entropy=0.0),
        Policy(max_share=1.0),
        Policy(fail_on=frozenset({Verdict.BROKEN})),
        Policy(fail_on=frozenset({Verdict.MALIGNANT})),
    ],
)
def test_weights_that_are_not_finite_break_every_policy(policy):
    assert check(report(broken()), policy).exit_code == 1


def test_an_unjudged_head_passes_no_verdict_that_it_may_have(healthy):
    blind = with_values(healthy, predicted_entropy=np.nan)
    assert check(report(blind), Policy(fail_on=frozenset({Verdict.MALIGNANT}))).exit_code == 3
    assert check(report(blind), Policy(fail_on=frozenset({Verdict.DEAD, Verdict.BROKEN}))).exit_code == 0


def test_a_breach_that_was_read_stays_a_breach_beside_what_was_skipped(healthy, collapsed):
    malignant = Policy(fail_on=frozenset({Verdict.MALIGNANT}))
    skipped = {"run/step-3": "cut short"}
    assert check(report(healthy, skipped=skipped), malignant).exit_code == 3
    assert check(report(collapsed, skipped=skipped), malignant).exit_code == 1
    allowed = Policy(fail_on=malignant.fail_on, allow_skipped=True)
    assert check(report(healthy, skipped=skipped), allowed).exit_code == 0
    assert check(report(collapsed, skipped=skipped), allowed).exit_code == 1


def test_a_gate_over_no_heads_cannot_pass(healthy):
    assert Outcome((), (), {}, heads=0).exit_code == 3
    assert check(report(), Policy(max_sec=1.0)).exit_code == 3
    elsewhere = Policy(layer=(Override(frozenset({7}), "", {"max_sec": 1.0}),))
    assert check(report(healthy), elsewhere).exit_code == 3, "the only rule speaks of a layer that is not there"


def test_only_the_last_checkpoint_if_asked(healthy, collapsed):
    malignant = frozenset({Verdict.MALIGNANT})
    recovered = concatenate([collapsed, table(collapsed_layer(size=0.1), checkpoint="step-20", step=20)], names())
    assert check(report(recovered), Policy(fail_on=malignant)).exit_code == 1
    assert check(report(recovered), Policy(fail_on=malignant, last=True)).exit_code == 0


def test_the_share_of_a_run(healthy, collapsed):
    assert check(report(collapsed), Policy(max_share=0.25)).failures[0].value == 1.0
    alone = check(report(healthy), Policy(max_share=0.25))
    assert (alone.exit_code, alone.heads) == (0, len(healthy))
    both = check(report(healthy, collapsed), Policy(max_share=0.25))
    assert (both.exit_code, both.heads) == (1, 1), "a share is taken over the last checkpoint"
    assert check(report(dead()), Policy(max_share=0.25)).exit_code == 3
    linear = report(healthy, applicable=False)
    assert check(linear, Policy(max_share=0.25)).exit_code == 3


def test_strict_lets_no_assumption_pass(healthy):
    from dataclasses import replace

    from qkspec.analysis import CheckpointFacts

    facts = CheckpointFacts("run", "step-0", 0, "p", "safetensors", "gpt2", "float32", 1, 4, ("context assumed",))
    assumed = replace(report(healthy), checkpoints=(facts,))
    assert check(assumed, Policy(max_sec=1.0)).exit_code == 0
    assert check(assumed, Policy(max_sec=1.0, strict=True)).exit_code == 3


POLICY = """
max_freezing = 0.5
fail_on = ["malignant", "broken"]
[[layer]]
layers = "0-1"
max_freezing = 2.0
[[layer]]
layers = [1]
max_freezing = false
max_sigma1 = 9.0
fail_on = []
[[layer]]
block = "decoder.cross"
min-entropy = 0.1
"""


def layered(*layers):
    parts = [with_values(table(random_layer(heads=1, layer=n, name=f"h.{n}")), freezing_ratio=1.0) for n in layers]
    return concatenate(parts, names())


def test_overrides_speak_for_their_layers_and_a_later_one_wins():
    policy = Policy.from_mapping(tomllib.loads(POLICY), "qkspec.toml")
    held = {rule.option: rule for rule in policy.held(layered(0, 1, 2))}
    np.testing.assert_array_equal(held["--max-freezing"].limits, [2.0, np.nan, 0.5])
    np.testing.assert_array_equal(held["--max-freezing"].in_force, [True, False, True])
    np.testing.assert_array_equal(held["--max-sigma1"].in_force, [False, True, False])
    assert "--min-entropy" not in held
    assert policy.forbidden(layered(0, 1, 2)) == [policy.fail_on, frozenset(), policy.fail_on]
    found = check(report(layered(0, 1, 2)), policy)
    assert [failure.where for failure in found.failures] == ["run/step-0 h.2 head 0"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("max_sec = nan", "--max-sec"),
        ("max_sec = -0.1", "--max-sec"),
        ("max_sec = 1.01", "between 0 and 1"),
        ("max_sec = true", "--max-sec"),
        ("max_sec = '0.5'", "--max-sec"),
        ("max_sigma1 = inf", "infinite"),
        ("min_entropy = 2", "between 0 and 1"),
        ("s = 0", "at least 1"),
        ("s = 1.5", "whole number"),
        ("fail_on = 'awful'", "no verdict"),
        ("fail_on = 3", "a verdict or a list"),
        ("last = 1", "true or false"),
        ("margin = 0.5", "at least 1"),
        ("margin = nan", "at least 1"),
        ("baseline = 3", "path"),
        ("max_entropy = 1", "no gate setting"),
        ("layer = 3", r"\[\[gate.layer\]\]"),
        ("[[layer]]\nmax_sec = 0.5", "layers or block"),
        ("[[layer]]\nlayers = 'x'", "list of numbers"),
        ("[[layer]]\nlayers = 1\nmax_sec = nan", "--max-sec"),
        ("[[layer]]\nlayers = 1\ns = 2", "no gate setting"),
        ("[[layer]]\nblock = 1", "text"),
    ],
)
def test_settings_that_make_no_sense_are_refused(written, said):
    with pytest.raises(UsageError, match=said) as told:
        Policy.from_mapping(tomllib.loads(written), "qkspec.toml")
    assert str(told.value).startswith("qkspec.toml: ")


def test_layers_are_written_as_numbers_ranges_or_lists():
    assert whole_numbers("0,2,8-10", "x") == {0, 2, 8, 9, 10}
    assert whole_numbers(3, "x") == {3}
    assert whole_numbers([1, 2], "x") == {1, 2}
    for wrong in ("3-1", "1-", "-2", True, [True], "0-999999999"):
        with pytest.raises(UsageError):
            whole_numbers(wrong, "x")


def test_every_verdict_can_be_written():
    for verdict in Verdict:
        assert verdicts(verdict.value.upper().replace(" ", "_"), "x") == {verdict}


def test_a_policy_knows_whether_it_says_anything():
    assert not Policy().says_something
    assert not Policy(layer=(Override(frozenset({1}), "", {"max_sec": None}),)).says_something
    assert not Policy(baseline="x").says_something, "its bands are held beside the default rule, not in place of it"
    for policy in (
        Policy(max_sec=1.0), Policy(max_share=1.0), Policy(fail_on=frozenset({Verdict.DEAD})),
        Policy(layer=(Override(frozenset({1}), "", {"max_sec": 1.0}),)),
    ):  # fmt: skip
        assert policy.says_something


def test_a_run_stays_within_its_own_bands(healthy):
    bands = Bands.of(healthy, "base", margin=1.0)
    assert check(report(healthy), Policy(baseline="base"), bands).exit_code == 0


def test_a_head_outside_the_baselines_band_fails(healthy, collapsed):
    found = check(report(collapsed), Policy(baseline="base"), Bands.of(healthy, "base"))
    assert {failure.rule for failure in found.failures} == {
        "--baseline sigma1", "--baseline freezing_ratio", "--baseline predicted_entropy",
    }  # fmt: skip


def test_a_layer_that_the_baseline_lacks_is_not_measured(healthy):
    other = table(random_layer(layer=3))
    found = check(report(other), Policy(baseline="base"), Bands.of(healthy, "base"))
    assert found.exit_code == 3
    assert {failure.limit for failure in found.unmeasured} == {None}
    assert all(failure.told == f"{failure.rule}: the baseline has no band for it" for failure in found.unmeasured)
    with np.errstate(invalid="ignore"):
        spoilt = check(report(broken()), Policy(baseline="base"), Bands.of(other, "base"))
    assert spoilt.failures[0].told == "--baseline sigma1 broken (the baseline has no band for it)"


def test_all_that_a_gate_finds_is_json(healthy):
    other = with_values(table(random_layer(layer=3)), freezing_ratio=np.inf)
    for policy, bands in ((Policy(baseline="base"), Bands.of(healthy, "base")), (Policy(max_freezing=1.0), None)):
        found = document(check(report(other), policy, bands))
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_one_is_told_as_one(healthy):
    one = Outcome((Failure("a", "r", 2.0, 1.0),), (), {"x": "damaged"}, heads=1)
    assert counted(one) == "1 crossed a threshold (1 value), 1 input was skipped"
    two = Outcome((Failure("a", "r", 2.0, 1.0),) * 2, (), {"x": "damaged", "y": "damaged"}, heads=1)
    assert counted(two) == "1 crossed a threshold (2 values), 2 inputs were skipped"
