"""Every architecture: a tiny model, saved by its own library, read by its layout, compared with what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from layouts.agree import check_facts, check_layer, check_norms_found, check_rotation, layers_of, open_saved, pair_up  # noqa: E402
from layouts.capture import Map, regress, watching  # noqa: E402
from layouts.tiny import Case, Out, build, filled, inputs  # noqa: E402
from layouts.zoo import CASES as WRITERS  # noqa: E402
from layouts.zoo import ELSEWHERE  # noqa: E402
from layouts.zoo_vision import CASES as SEERS  # noqa: E402

from qkspec.checkpoints.memory import from_state_dict  # noqa: E402
from qkspec.layouts.families import FAMILIES  # noqa: E402
from qkspec.layouts.match import scopes  # noqa: E402

CASES = (*WRITERS, *SEERS)
OFFSET = 3


def run(model: torch.nn.Module, case: Case, position: int = 0) -> list[Map]:
    """Return what every attention module computes when all tokens stand at one position."""
    fed = inputs(model, case) if case.whole else {}
    longer = position + 1 if case.turn == "sequence" else 1
    if position and case.turn == "ids":
        fed["position_ids"] = torch.full_like(fed["input_ids"], position)
    elif position:
        tokens = torch.randint(6, 60, (48, longer), generator=torch.Generator().manual_seed(3))
        fed |= {name: tokens for name in ("input_ids", "decoder_input_ids") if name in fed}
    with torch.no_grad(), watching(model, still=case.still and not position) as watch:
        if case.whole:
            model(**fed)
        given: dict[str, object] = {}
        for path, feed in case.also if not position else ():
            found = {key: given[value.path] if isinstance(value, Out) else value for key, value in filled(feed).items()}
            gave = model.get_submodule(path)(**found)
            given[path] = gave[0] if isinstance(gave, tuple) else getattr(gave, "last_hidden_state", gave)
    every, first = (longer, position) if position else (case.every, 0)
    return [regress(caught, every=every, first=first) for caught in watch.caught.values()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reads_what_the_model_computes(case: Case, tmp_path: Path, record_property, monkeypatch) -> None:
    model = build(case)
    model.save_pretrained(tmp_path)
    check_norms_found(open_saved(tmp_path), case.name)
    layers = layers_of(open_saved(tmp_path))
    live = layers_of(from_state_dict(model.state_dict(), model.config.to_dict()))
    model = model.double().eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    # XGLM builds its mask's smallest number in the default dtype, which cannot hold that of float64.
    monkeypatch.setattr(torch, "finfo", lambda kind, plain=torch.finfo: plain(torch.float32))
    if case.wide:
        plain = torch.Tensor.float
        monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else plain(x))
    maps = run(model, case)
    assert layers, "nothing was read"
    assert len(layers) + case.unread + case.tied - case.unrun == len(maps), (
        f"read {[x.name for x in layers]}, the model ran {[x.path for x in maps]}"
    )
    pairs = pair_up(layers, maps)
    running = {truth.path: layer for layer, truth in pair_up(live, maps)}
    for layer, truth in pairs:
        check_layer(layer, truth, norms=case.norms and not case.inside, inside=case.inside)
        check_facts(layer, truth, case.name)
        same = running.pop(truth.path)  # the same module under the names of the model in memory
        np.testing.assert_array_equal(same.q, layer.q)
        np.testing.assert_array_equal(same.k, layer.k)
        assert (same.scale, same.rotary, same.unknown) == (layer.scale, layer.rotary, layer.unknown)
    assert len(live) == len(layers) + case.tied
    if case.turn and any(layer.rotary for layer in layers) and "input_ids" in inputs(model, case):
        turned = {found.path: found for found in run(model, case, position=OFFSET)}
        for layer, truth in pairs:
            if truth.path in turned:
                check_rotation(layer, truth, turned[truth.path], OFFSET)
    record_property(
        "architecture", f"{case.name}: {sum(layer.heads for layer in layers)} heads in {len(layers)} modules"
    )


@pytest.mark.filterwarnings("ignore")
def test_every_model_type_of_the_table_is_held_against_its_model() -> None:
    held = set(ELSEWHERE)
    for case in CASES:
        config = transformers.CONFIG_MAPPING[case.model_type or case.name.split(" ")[0]]()
        held |= {part.model_type for part in scopes(config.to_dict())}
    assert {kind for row in FAMILIES for kind in row.model_types} - held == set()


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
