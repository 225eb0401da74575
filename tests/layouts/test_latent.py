"""Latent attention with its inner norms on: the logits of given tokens are those of the running model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from layouts.agree import layers_of, pair_up  # noqa: E402
from layouts.capture import Map, watching  # noqa: E402
from layouts.tiny import Case, build, inputs  # noqa: E402

from qkspec.attention import logits  # noqa: E402
from qkspec.checkpoints.memory import from_state_dict  # noqa: E402

NARROW = {"head_dim": 4, "num_key_value_heads": 4}
V2 = NARROW | {"topk_method": "greedy", "num_experts_per_tok": 2}
CASES = (
    Case("deepseek_v2", V2),
    Case("deepseek_v2 without a query latent", V2 | {"q_lora_rank": None}),
    *(Case(kind, NARROW) for kind in ("deepseek_v3", "minicpm3", "youtu")),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_the_models_own(case: Case) -> None:
    model = build(case)
    layers = layers_of(from_state_dict(model.state_dict(), model.config.to_dict()))
    model = model.double().eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad(), watching(model, normed=True) as watch:
        model(**inputs(model, case))
    nothing = np.empty(0)
    maps = [Map(path, nothing, nothing, nothing, nothing, nothing, ()) for path in watch.caught]
    pairs = pair_up(layers, maps)
    assert len(pairs) == len(layers) == 2
    for layer, truth in pairs:
        caught = watch.caught[truth.path]
        assert layer.unknown == ()
        assert (layer.q_factors is None) == ("without" in case.name)
        q, k = caught.q.numpy(), caught.k.numpy()
        theirs = np.einsum("ihc,jhc->hij", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1)) * (caught.factor or 1.0)
        x = caught.x.numpy().astype(np.float32)
        mine = logits(replace(layer, rotary=None), x, x)
        np.testing.assert_allclose(mine, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=0, err_msg=layer.name)
