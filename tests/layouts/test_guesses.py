"""Models of kinds that no row names: real ones with their model_type hidden, read by the names of their tensors alone.

What is guessed must be what the model computes, up to the scale that names do not tell, and no logit may be claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from layouts.agree import affine, check_layer, forms, layers_of, pair_up  # noqa: E402
from layouts.test_conformance import run  # noqa: E402
from layouts.tiny import Case, build  # noqa: E402
from layouts.zoo import CASES  # noqa: E402

from qkspec.checkpoints.memory import from_state_dict  # noqa: E402
from qkspec.errors import LayoutError  # noqa: E402
from qkspec.layouts.find import plan  # noqa: E402
from qkspec.metrics import measure  # noqa: E402

UNHEARD = "unheard of"
BY_PAIRS = (  # query and key side by side, under each pair of names
    *("gptj", "gpt_neo", "olmo2", "exaone4", "lfm2", "biogpt", "opt", "xglm", "nemotron_h", "recurrent_gemma", "zamba"),
    *("esm", "deberta-v2", "distilbert", "mpnet", "wav2vec2-bert", "moshi", "cpmant", "xlm", "bart", "t5gemma"),
    *("clip_text_model", "swin", "hrm_text"),
)
REFUSED = (  # one tensor for q, k and v, factors, experts: names do not tell how to cut
    *("gpt_neox", "falcon", "bloom", "mpt", "codegen", "gpt_bigcode", "gpt_bigcode multi-head", "phi3", "dbrx"),
    *("deepseek_v3", "deepseek_v4", "squeezebert"),
)


def hidden(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in which every model calls itself something that no row knows."""
    named = {key: hidden(value) if isinstance(value, dict) else value for key, value in config.items()}
    return named | {key: UNHEARD for key in ("model_type",) if key in named}


def case(name: str) -> Case:
    return next(one for one in CASES if one.name == name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BY_PAIRS)
def test_a_guess_is_what_the_model_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case(name))
    checkpoint = from_state_dict(model.state_dict(), hidden(model.config.to_dict()) | {"model_type": UNHEARD})
    found, layers = plan(checkpoint), layers_of(checkpoint)
    assert found.family == "unlisted"
    assert all(UNHEARD in line for line in found.remarks)
    model = model.double().eval()
    monkeypatch.setattr(
        torch, "finfo", lambda kind, plain=torch.finfo: plain(torch.float32)
    )  # as in the conformance suite
    pairs = [(layer, truth) for layer, truth in pair_up(layers, run(model, case(name))) if truth.path in layer.name]
    assert pairs
    for layer, truth in pairs:
        mine, theirs = forms(affine(layer.q, layer.q_bias), affine(layer.k, layer.k_bias)), forms(truth.wq, truth.wk)
        assert mine.shape == theirs.shape
        same = layer.scale * np.linalg.norm(mine[0]) / np.linalg.norm(theirs[0])  # some scale q in code
        check_layer(layer, replace(truth, factor=np.full(layer.heads, same)), norms=False)
        assert np.isnan(measure(layer)[0]["freezing_ratio"]).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_names_cannot_tell_is_not_guessed(name: str) -> None:
    model = build(case(name))
    with pytest.raises(LayoutError):
        plan(from_state_dict(model.state_dict(), hidden(model.config.to_dict())))
