"""Every architecture: a tiny model, saved by its own library, read by its layout, compared with what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from layouts.agree import check_layer, layers_of, open_saved, pair_up  # noqa: E402
from layouts.capture import regress, watching  # noqa: E402
from layouts.tiny import Case, build, filled, inputs  # noqa: E402
from layouts.zoo import CASES  # noqa: E402


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reads_what_the_model_computes(case: Case, tmp_path: Path, record_property, monkeypatch) -> None:
    model = build(case)
    model.save_pretrained(tmp_path)
    layers = layers_of(open_saved(tmp_path))
    model = model.double().eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    monkeypatch.setattr(torch, "finfo", lambda kind, plain=torch.finfo: plain(torch.float32))
    with torch.no_grad(), watching(model, still=case.still) as watch:
        model(**inputs(model, case))
        for path, feed in case.also:
            model.get_submodule(path)(**filled(feed))
    maps = [regress(caught, every=case.every) for caught in watch.caught.values()]
    assert layers, "nothing was read"
    assert len(layers) + case.unread - case.unrun == len(maps), (
        f"read {[x.name for x in layers]}, the model ran {[x.path for x in maps]}"
    )
    for layer, truth in pair_up(layers, maps):
        check_layer(layer, truth, norms=case.norms)
    record_property(
        "architecture", f"{case.name}: {sum(layer.heads for layer in layers)} heads in {len(layers)} modules"
    )


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
