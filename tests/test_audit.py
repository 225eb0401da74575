import math
from dataclasses import replace

import numpy as np
import pytest
from build import random_layer
from safetensors.numpy import save_file

from qkspec.audit import audit, change, summary
from qkspec.checkpoints.sequence import find_runs
from qkspec.errors import InputError


def nano(folder, q, k, step):
    """A checkpoint of one GPT-NeoX-free, Llama-named layer with projections q, k (d, d)."""
    import json

    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    d = q.shape[1]
    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": d}
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    at = "model.layers.0.self_attn."
    norm = {"model.layers.0.input_layernorm.weight": np.ones(d, dtype=np.float32)}
    save_file({at + "q_proj.weight": q, at + "k_proj.weight": k, **norm}, path / "model.safetensors")


def written(tmp_path, steps, q, k):
    for step, a, b in zip(steps, q, k, strict=True):
        nano(tmp_path / "run", np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32), step)
    return find_runs([str(tmp_path / "run")])[0]


def test_increments_against_full_svds(tmp_path):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
    found = audit(written(tmp_path, [0, 10, 30], q, k), 0.01)
    assert len(found.increments) == 4
    for i in found.increments:
        w = {"q": q, "k": k}[i.projection]
        n = {0: 0, 10: 1}[i.before]
        ratio = np.linalg.norm(w[n + 1] - w[n], 2) / np.linalg.norm(w[n], 2)
        assert i.ratio == pytest.approx(ratio, rel=1e-6)
        assert i.limit == pytest.approx(1.01 ** (i.after - i.before) - 1)
        assert (1 + i.tau) ** (i.after - i.before) - 1 == pytest.approx(i.ratio)
    assert [(row[0], row[1], row[3]) for row in summary(found)] == [(0, 10, 2), (10, 30, 2)]


def test_steps_that_respect_rule_1_are_never_called_cut(tmp_path):
    """The bound is tight: every step as large as τ allows, all in one direction, ends just at the limit."""
    w = np.eye(8)
    grown = [w * 1.004**step for step in (0, 7, 30)]
    found = audit(written(tmp_path, [0, 7, 30], grown, grown), 0.00400001)
    assert not any(i.bound for i in found.increments)
    assert found.first_bound() is None
    assert all(i.tau == pytest.approx(0.004, rel=1e-3) for i in found.increments)
    tighter = audit(find_runs([str(tmp_path / "run")])[0], 0.0039)
    assert all(i.bound for i in tighter.increments)


def test_the_first_cut_is_the_earliest_and_then_the_largest(tmp_path):
    w = np.eye(8)
    found = audit(written(tmp_path, [0, 1, 2], [w, w * 1.001, w * 3], [w, w * 1.5, w * 1.5]), 0.01)
    first = found.first_bound()
    assert (first.projection, first.before, first.after) == ("k", 0, 1)
    assert [i.bound for i in found.increments] == [False, True, True, False]


def test_zero_weights_and_nan(tmp_path):
    w = np.eye(8)
    broken = w.copy()
    broken[0, 0] = np.nan
    found = audit(written(tmp_path, [0, 1, 2], [0 * w, w, w], [w, w, broken]), 0.01)
    q, k = found.increments[0], found.increments[3]
    assert math.isinf(q.ratio)
    assert q.bound
    assert math.isnan(k.ratio)
    assert k.bound, "what cannot be measured is not within the limit"


def test_an_audit_needs_two_checkpoints_with_steps(tmp_path):
    w = np.eye(8)
    with pytest.raises(InputError, match="two checkpoints"):
        audit(written(tmp_path, [3], [w], [w]), 0.01)


def test_a_bad_checkpoint_is_skipped(tmp_path):
    w = np.eye(8)
    run = written(tmp_path, [0, 1, 2], [w, w, w], [w, w, w])
    (tmp_path / "run" / "step-000001" / "model.safetensors").write_bytes(b"no")
    found = audit(run, 0.01)
    assert [name for name, _ in found.skipped] == ["step-000001"]
    assert {(i.before, i.after) for i in found.increments} == {(0, 2)}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_split_of_a_change_against_whole_products(kv_heads):
    old = random_layer(0, heads=4, kv_heads=kv_heads, d_q=5, d=12)
    new = random_layer(1, heads=4, kv_heads=kv_heads, d_q=5, d=12)
    found = change(old, new, 0, 1)
    for h in range(4):
        g = h // (4 // kv_heads)
        m, dq, dk = old.q[h].T @ old.k[g], new.q[h] - old.q[h], new.k[g] - old.k[g]
        size = np.linalg.norm(m)
        whole = new.q[h].T @ new.k[g] - m
        assert found.whole[h] == pytest.approx(np.linalg.norm(whole) / size)
        assert found.by_q[h] == pytest.approx(np.linalg.norm(dq.T @ old.k[g]) / size)
        assert found.by_k[h] == pytest.approx(np.linalg.norm(old.q[h].T @ dk) / size)
        assert found.by_both[h] == pytest.approx(np.linalg.norm(dq.T @ dk) / size)
        assert found.sigma1[h] == pytest.approx(np.linalg.norm(whole, 2) / np.linalg.norm(m, 2))


def test_a_change_of_one_side_is_that_sides_alone():
    old = random_layer(0)
    found = change(old, replace(old, q=old.q * 1.5), 0, 1)
    np.testing.assert_allclose(found.whole, 0.5)
    np.testing.assert_allclose(found.by_q, 0.5)
    np.testing.assert_allclose(found.by_k, 0, atol=1e-12)


def test_the_sample_runs_obey_and_break_rule_1(sample):
    """AdamW² at τ 0.004 is seen to have kept to it; AdamW at the same rate broke it in its first two steps."""
    kept = audit(find_runs([str(sample)])[0], 0.004)
    assert not any(i.bound for i in kept.increments)
    assert max(i.tau for i in kept.increments) > 0.0039, "and went to its edge"
    broke = audit(find_runs([str(sample.parent / "adamw-no-warmup")])[0], 0.004)
    assert all(i.bound for i in broke.increments if i.after <= 20)
    assert max(i.tau for i in broke.increments) > 0.1


def test_rounding_of_a_narrow_dtype_is_not_taken_for_a_step():
    """What bfloat16 does to two equal weights stays within what is allowed for, and is of that size."""
    import torch

    from qkspec.audit import _rounding

    rng = np.random.default_rng(0)
    for shape in ((128, 128), (64, 512)):
        exact = rng.standard_normal((2, *shape))
        moved = exact[0] + 1e-9 * exact[1]
        errors = [torch.tensor(w).to(torch.bfloat16).double().numpy() - w for w in (exact[0], exact[1])]
        size = np.linalg.norm(errors[0] - errors[1], 2)
        assert 0.5 * _rounding(moved, "bfloat16") < size < _rounding(moved, "bfloat16")


def test_everybody_who_does_the_work_finds_the_same(tmp_path, capsys):
    """Two processes as one, to the bit, with a checkpoint in the middle that cannot be read and the terms as well."""
    from qkspec.cli import main

    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 5, 16, 16))
    written(tmp_path, [0, 1, 2, 3, 4], q, k)
    (tmp_path / "run" / "step-000002" / "model.safetensors").write_bytes(b"no")
    shown = set()
    for workers in ("0", "1", "2"):
        words = ["audit", str(tmp_path / "run"), "--terms", "all", "--format", "json", "--no-progress"]
        assert main([*words, "--workers", workers]) == 0
        out, err = capsys.readouterr()
        assert err.count("step-000002 skipped") == 1
        shown.add(out)
    assert len(shown) == 1


def test_a_checkpoint_cut_short_in_its_weights_is_skipped_once(tmp_path):
    """What only reading the weights shows is told of the checkpoint that has it, whichever interval met it first."""
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 4, 16, 16))
    run = written(tmp_path, [0, 1, 2, 3], q, k)
    for step in (1, 2):
        path = tmp_path / "run" / f"step-00000{step}" / "model.safetensors"
        held = path.read_bytes()
        path.write_bytes(held.replace(b'"F32"', b'"I32"', 3))
    found = audit(run, 0.01, terms=True)
    assert [name for name, _ in found.skipped] == ["step-000001", "step-000002"]
    assert {(i.before, i.after) for i in found.increments} == {(0, 3)}
    assert [step for step, _ in found.terms] == [0, 3]
