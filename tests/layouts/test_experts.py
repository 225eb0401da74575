"""Queries of experts (JetMoE): every expert asks every key head with queries of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from layouts.agree import affine, forms, layers_of  # noqa: E402
from layouts.test_conformance import run  # noqa: E402
from layouts.tiny import Case, build  # noqa: E402

from qkspec.checkpoints.memory import from_state_dict  # noqa: E402

EXPERTS, KEYS = 4, 2
# All experts are asked, and a router of zeros puts them in one order for all tokens, which is not the file's.
CASE = Case("jetmoe", {"num_experts_per_tok": EXPERTS, "num_attention_heads": EXPERTS * KEYS}, zero=("router",))


@pytest.mark.filterwarnings("ignore")
def test_each_head_is_one_expert_on_one_key_head(record_property: Any) -> None:
    model = build(CASE)
    layers = layers_of(from_state_dict(model.state_dict(), model.config.to_dict()))
    for layer, truth in zip(layers, run(model.double().eval(), CASE), strict=True):
        assert (layer.heads, layer.kv_heads, layer.unknown) == (EXPERTS * KEYS, KEYS, ())
        mine, theirs = forms(affine(layer.q, None), affine(layer.k, None)), forms(truth.wq, truth.wk)
        away = np.abs(mine[:, None] - theirs[None]).max((2, 3)) / np.abs(theirs).max()
        assert sorted(away.argmin(axis=1)) == list(range(EXPERTS * KEYS))  # one to one
        assert away.min(axis=1).max() < 1e-6
        assert np.sort(away, axis=1)[:, 1].min() > 1e-2
        assert layer.scale == pytest.approx(truth.factor[0])
    record_property("architecture", "jetmoe, queries of experts")
