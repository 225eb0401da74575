import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from qkspec.attention import map_indices
from qkspec.train import probes, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import Lab, build
from qkspec.train.loop import train
from qkspec.train.models import gpt


@pytest.fixture
def trained(tiny: TrainConfig) -> Lab:
    lab = build(dataclasses.replace(tiny, optimizer="adamw2"))
    list(train(lab))
    return lab


def test_terms_are_those_of_exact_arithmetic(trained: Lab) -> None:
    """Every product formed densely in float64, every norm by a full decomposition."""
    seen = probes.probe(trained)
    w = {n: t.detach().double() for n, t in trained.model.state_dict().items()}
    for layer, block in enumerate(seen["blocks"]):
        at = f"transformer.h.{layer}."
        q, k, v = w[at + "attn.c_attn.weight"].T.split(16)
        o, fc1, fc2 = (w[at + name + ".weight"].T for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
        plain = {"q": q, "k": k, "v": v, "o": o, "fc1": fc1, "fc2": fc2, "ov": o @ v, "fc2fc1": fc2 @ fc1}
        expected = {name: float(torch.linalg.svdvals(matrix)[0]) for name, matrix in plain.items()}
        for i, one in ((1, "ln_1"), (2, "ln_2")):
            expected |= {
                f"gamma{i}": float(w[at + one + ".weight"].norm()),
                f"beta{i}": float(w[at + one + ".bias"].norm()),
            }
        heads = [float(torch.linalg.svdvals(q[h : h + 8].T @ k[h : h + 8])[0]) for h in (0, 8)]
        terms = dict(block["terms"])
        assert terms.pop("qk") == pytest.approx(heads, rel=1e-3)
        del terms["x"], terms["dx"]
        assert terms == pytest.approx(expected, rel=1e-3)


def test_fifteen_terms_and_thirteen_with_rms_norm(tiny: TrainConfig) -> None:
    for norm, count in (("layer", 15), ("rms", 13)):
        (first, *_) = probes.probe(build(dataclasses.replace(tiny, norm=norm)))["blocks"]
        assert len(first["terms"]) == count


def test_maps_and_gradients_are_those_of_the_pass(trained: Lab) -> None:
    seen = probes.probe(trained)
    model = trained.model
    x, y = (rows[:2] for rows in trained.data.batch("validation", 2**31, 0))
    inputs: list[torch.Tensor] = []
    grads: list[torch.Tensor] = []
    attended: list[torch.Tensor] = []
    for part in gpt.anatomy(model):
        part.block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
        part.block.register_full_backward_hook(lambda _, into, __: grads.append(into[0]))
        part.module.register_forward_pre_hook(lambda _, args: attended.append(args[0].detach()))
    logits = model(x)
    functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").backward()
    assert seen["loss"] == pytest.approx(functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item(), rel=1e-5)
    for block, part, at, into, back in zip(
        seen["blocks"], gpt.anatomy(model), list(attended), inputs, reversed(grads), strict=True
    ):
        assert block["terms"]["x"] == pytest.approx(into.norm(dim=-1).mean().item(), rel=1e-4)
        assert block["terms"]["dx"] == pytest.approx(back.norm(dim=-1).mean().item(), rel=1e-4)
        q, k, _ = (t.detach() for t in part.module.project(at))
        for head in range(2):
            entropies, largest = [], -math.inf
            for sample in range(2):
                rows = []
                for i in range(1, 8):
                    scores = [float(q[sample, head, i] @ k[sample, head, j]) / math.sqrt(8) for j in range(i + 1)]
                    total = sum(math.exp(s) for s in scores)
                    shares = [math.exp(s) / total for s in scores]
                    rows.append(-sum(p * math.log(p) for p in shares) / math.log(i + 1))
                    largest = max(largest, *scores)
                first = float(q[sample, head, 0] @ k[sample, head, 0]) / math.sqrt(8)
                largest = max(largest, first)
                entropies.append(sum(rows) / len(rows))
            assert block["entropy"][head] == pytest.approx(sum(entropies) / 2, rel=1e-4)
            assert block["max_logit"][head] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_indices_are_those_of_every_report(causal: bool) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(5, 24, 24)
    hidden = torch.ones(24, 24, dtype=torch.bool).triu(1) & torch.tensor(causal)
    maps = logits.masked_fill(hidden, -math.inf).softmax(-1)
    maps[4, 3, 2] = math.nan
    theirs = map_indices(maps.numpy(), causal=causal)
    for name, ours in probes.indices(maps, causal=causal).items():
        torch.testing.assert_close(
            ours, torch.from_numpy(getattr(theirs, name)), rtol=1e-5, atol=1e-7, equal_nan=True, check_dtype=False
        )


def test_the_rank_of_a_long_map_is_that_of_64_of_its_queries() -> None:
    one_column = torch.zeros(1, 300, 300)
    one_column[..., 0] = 1
    both = torch.cat([one_column, torch.eye(300)[None]])
    torch.testing.assert_close(probes.indices(both, causal=False)["rank"], torch.tensor([1 / 64, 1.0]).double())


def test_the_spectral_norm_of_a_product_is_estimated_from_below() -> None:
    torch.manual_seed(0)
    for shape in ((40, 30), (3, 64, 20), (5, 128)):
        a, b = torch.randn(*shape), torch.randn(*shape[:-2], shape[-1], 17)
        exact = torch.linalg.svdvals((a @ b).double())[..., 0]
        estimate = probes.spectral_norm(a, b).double()
        assert bool((estimate <= exact * (1 + 1e-5)).all())
        torch.testing.assert_close(estimate, exact, rtol=1e-2, atol=0)
    assert float(probes.spectral_norm(torch.zeros(4, 4))) == 0


def test_probes_are_strict_json_beside_the_metrics_and_resume(tiny: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer="adamw2", probe_every=4)
    for step in runs.run(config, tmp_path / "run", runs.Stop()):
        if step.step == 9:
            break
    list(runs.resume(tmp_path / "run", runs.Stop()))
    rows = list(save.lines(tmp_path / "run" / "probes.jsonl"))
    assert [r["step"] for r in rows] == [0, 4, 8, 12]
    assert rows[0]["tensors"] == {}
    assert all(0 < r["effective_lr"] <= config.lr for r in rows[-1]["tensors"].values())
    assert any(name.endswith("[q]") for name in rows[-1]["tensors"])


def test_a_model_that_is_not_finite_is_probed_without_a_number(trained: Lab) -> None:
    with torch.no_grad():
        for name, weight in trained.model.named_parameters():
            if "h.1.attn.c_attn.weight" in name:
                weight[:] = math.nan
    text = json.dumps(probes.probe(trained), allow_nan=False)
    assert json.loads(text)["blocks"][1]["entropy"] == [None, None]
