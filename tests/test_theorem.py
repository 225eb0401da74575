import itertools

import numpy as np
import pytest
from build import collapsed_layer, layer_of, random_layer, table
from oracles import orthonormal, planted

from qkspec.errors import UsageError
from qkspec.readings import Readings, text
from qkspec.theorem import Condition, Limits, Verdict, classify, confidence, evidence


def judge(readings, limits=None, *, applicable=True, random_rank=30.0):
    n = len(readings)
    found = classify(readings, limits or Limits(), np.full(n, applicable), np.full(n, random_rank))
    return found.tolist()


def row(**values):
    """A table of one head that is healthy but for what is given."""
    healthy = {
        "sigma1": 1.0, "effective_rank": 20.0, "freezing_ratio": 0.1, "predicted_entropy": 0.98,
        "predicted_rank": 0.1, "predicted_diagonal": 0.02,
    }  # fmt: skip
    return Readings({"module": text("m", 1), **{k: np.array([v]) for k, v in {**healthy, **values}.items()}})


CONCENTRATED = {"effective_rank": 1.5}
LARGE = {"freezing_ratio": 0.9}
SPARSE = {"predicted_entropy": 0.3}
FULL_RANK = {"predicted_rank": 0.9}
DIAGONAL = {"predicted_diagonal": 0.8}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, Verdict.HEALTHY),
        (CONCENTRATED, Verdict.CONCENTRATED),
        (LARGE, Verdict.LARGE),
        (CONCENTRATED | LARGE, Verdict.LARGE),
        (LARGE | SPARSE | FULL_RANK, Verdict.SHARP),
        (LARGE | SPARSE, Verdict.SHARP),
        (CONCENTRATED | LARGE | SPARSE, Verdict.MALIGNANT),
        (CONCENTRATED | LARGE | SPARSE | FULL_RANK, Verdict.SHARP),
        (LARGE | SPARSE | FULL_RANK | DIAGONAL, Verdict.BENIGN),
        ({"sigma1": 0.0, "effective_rank": np.nan}, Verdict.DEAD),
        ({"sigma1": np.nan, "effective_rank": np.nan}, Verdict.BROKEN),
        ({"sigma1": np.inf}, Verdict.BROKEN),
    ],
)
def test_each_verdict(values, verdict):
    assert judge(row(**values)) == [verdict]


@pytest.mark.parametrize(
    "missing", ["effective_rank", "freezing_ratio", "predicted_entropy", "predicted_rank", "predicted_diagonal"]
)
def test_what_was_not_measured_is_never_healthy(missing):
    assert judge(row(**{missing: np.nan})) == [Verdict.UNJUDGED]


def test_every_combination_of_missing_values_is_never_healthy():
    names = ["effective_rank", "freezing_ratio", "predicted_entropy", "predicted_rank", "predicted_diagonal"]
    for size in range(1, 6):
        for chosen in itertools.combinations(names, size):
            assert judge(row(**dict.fromkeys(chosen, np.nan))) != [Verdict.HEALTHY]


def test_no_softmax_means_no_verdict_by_the_theorem():
    for values in ({}, CONCENTRATED, LARGE, LARGE | SPARSE | CONCENTRATED):
        assert judge(row(**values), applicable=False) == [Verdict.NOT_APPLICABLE]


BOUND = {"logit_bound": 3.0}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, Verdict.HEALTHY),
        (CONCENTRATED, Verdict.HEALTHY),
        (LARGE, Verdict.LARGE),
        (LARGE | SPARSE | CONCENTRATED, Verdict.SHARP),
        (LARGE | {"predicted_entropy": 0.6}, Verdict.LARGE),
        (LARGE | SPARSE | FULL_RANK | DIAGONAL, Verdict.BENIGN),
        ({"predicted_entropy": np.nan}, Verdict.UNJUDGED),
        ({"sigma1": np.nan}, Verdict.BROKEN),
    ],
)
def test_under_qk_norm_the_gains_and_the_map_judge(values, verdict):
    assert judge(row(**(values | BOUND)), applicable=False) == [verdict]


@pytest.mark.parametrize(
    ("entropy", "verdict"), [(0.2, Verdict.MALIGNANT), (0.5, Verdict.LARGE), (0.95, Verdict.LARGE)]
)
def test_a_measured_map_counts_before_a_predicted_one(entropy, verdict):
    measured = {"measured_entropy": entropy, "measured_rank": 0.1, "measured_diagonal": 0.1}
    one = row(**(CONCENTRATED | LARGE | SPARSE | measured))
    assert judge(one) == [verdict]
    found = {c.name: c for c in evidence(one, Limits(), 0, 30.0)}["sparse"]
    assert (found.metric, found.value, found.limit) == ("measured_entropy", entropy, 0.3)
    assert found.margin == pytest.approx(1 - entropy / 0.3)


def test_narrow_heads_are_not_concentrated_by_their_width_alone():
    """Two directions out of two are no concentration: random weights show as many."""
    assert judge(row(effective_rank=1.9), random_rank=1.95) == [Verdict.HEALTHY]
    assert judge(row(effective_rank=1.9), random_rank=20) == [Verdict.CONCENTRATED]


def test_the_papers_strict_sec_is_an_option():
    strict = row(sec_star=0.995, effective_rank=10)
    assert judge(strict, Limits(sec=None)) == [Verdict.HEALTHY]
    assert judge(strict) == judge(strict, Limits(sec=0.99)) == [Verdict.CONCENTRATED]
    assert judge(strict, Limits(sec=0.99), random_rank=15) == [Verdict.HEALTHY], "random weights show as much"
    assert judge(row(sec_star=0.98), Limits(sec=0.99)) == [Verdict.HEALTHY]


@pytest.mark.parametrize(
    "wrong",
    [
        {"freezing": float("nan")},
        {"freezing": -1},
        {"entropy": 1.5},
        {"sec": 2},
        {"map_rank": float("inf")},
        {"diagonal": True},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (CONCENTRATED | LARGE | SPARSE, "suspect"),
        (CONCENTRATED | SPARSE | {"freezing_ratio": 1.2}, "certain"),
        (CONCENTRATED | LARGE | SPARSE | {"embedded_entropy": 0.2}, "suspect"),
        (CONCENTRATED | LARGE | {"random_entropy": 0.2, "random_rank": 0.1}, "measured"),
        (CONCENTRATED | LARGE | {"measured_entropy": 0.2, "measured_rank": 0.1}, "measured"),
        (LARGE, ""),
    ],
)
def test_how_sure_a_malignant_verdict_is(values, word):
    one = row(**values)
    verdicts = classify(one, Limits(), np.array([True]), np.array([30.0]))
    assert (verdicts[0] is Verdict.MALIGNANT) == bool(word)
    assert confidence(one, Limits(), verdicts).tolist() == [word]


def test_evidence_names_the_error_of_what_was_drawn_by_lot():
    values = {"predicted_entropy_error": 0.03, "predicted_entropy": 0.7}
    found = {c.name: c for c in evidence(row(**values), Limits(), 0, 30.0)}
    assert found["sparse"].error == pytest.approx(0.03)
    assert found["large"].error is None
    real = {c.name: c for c in evidence(row(**values, measured_entropy=0.9), Limits(), 0, 30.0)}
    assert real["sparse"].error is None


def test_evidence_names_value_and_limit():
    found = {c.name: c for c in evidence(row(**(CONCENTRATED | LARGE)), Limits(), 0, 30.0)}
    assert found["large"] == Condition("large", "freezing_ratio", 0.9, ">=", 0.45, holds=True)
    assert found["concentrated"].holds
    assert not found["sparse"].holds
    missing = {c.name: c for c in evidence(row(predicted_entropy=np.nan), Limits(), 0, 30.0)}
    assert missing["sparse"].value is None
    assert missing["sparse"].holds is None


def test_planted_collapse_is_malignant_from_end_to_end():
    assert judge(table(collapsed_layer())) == [Verdict.MALIGNANT]
    assert judge(table(collapsed_layer(causal=True))) == [Verdict.MALIGNANT]


def test_the_same_directions_with_small_logits_are_only_concentrated():
    assert judge(table(collapsed_layer(size=0.5))) == [Verdict.CONCENTRATED]


def test_random_weights_are_healthy():
    assert set(judge(table(random_layer(d_q=16, d=64)), random_rank=14.0)) == {Verdict.HEALTHY}


def test_planted_benign_collapse():
    """M = a projection on 48 of 64 directions, large: each token attends to itself (appendix C)."""
    rng = np.random.default_rng(0)
    basis = orthonormal(rng, 64, 48).T * 2.5
    assert judge(table(layer_of(basis[None], basis[None]))) == [Verdict.BENIGN]


def test_planted_sharp_head():
    """Many directions, large, unrelated to one another: sparse maps of full rank."""
    rng = np.random.default_rng(0)
    q, k = planted(rng, np.full(48, 12.0), 64)
    assert judge(table(layer_of(q[None], k[None]))) == [Verdict.SHARP]


def test_broken_and_dead_heads():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 4, 9))
    q[0, 0, 0], q[1] = np.nan, 0
    with np.errstate(invalid="ignore"):
        found = judge(table(layer_of(q, k)))
    assert found[:2] == [Verdict.BROKEN, Verdict.DEAD]


def test_every_verdict_has_a_meaning():
    assert all(verdict.meaning for verdict in Verdict)


@pytest.mark.parametrize("kind", ["random", "measured"])
def test_a_real_map_that_is_sparse_is_not_healthy_whatever_the_weights_say(kind):
    """As of a head that parks its attention on one token: peaked, and malignant only by its weights as well."""
    real = {f"{kind}_entropy": 0.05, f"{kind}_rank": 0.03, f"{kind}_diagonal": 0.02}
    assert judge(row(**real)) == [Verdict.SHARP]
    assert judge(row(**CONCENTRATED, **real)) == [Verdict.SHARP]
    assert judge(row(**CONCENTRATED, **LARGE, **real)) == [Verdict.MALIGNANT]
    assert judge(row(**real | {f"{kind}_entropy": 0.9})) == [Verdict.HEALTHY]
