import dataclasses
import math
from pathlib import Path

import pytest
import torch

from qkspec.analysis import analyze
from qkspec.theorem import Verdict
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig
from qkspec.train.lab import build as build_lab
from qkspec.train.models import swin
from qkspec.train.models.focused import FocusedAttention, focus
from qkspec.train.probes import probe

SMALL = TrainConfig(
    model="flatten-swin", heads=2, width=16, image_size=8, patch=1, stages="1,2", focused=1, window=4, batch=4,
    threads=1, eval_batches=1,
)  # fmt: skip


def _shaken(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.2 * torch.randn_like(weight))


def naive_map(module: FocusedAttention, x: torch.Tensor) -> tuple[list[list[list[float]]], torch.Tensor]:
    """Han et al., equations 5 and 6, one sample of x (tokens, d), token by token in float64."""
    weight, bias = module.qkv.weight.double(), module.qkv.bias.double()
    tokens, d = x.shape
    q, k, v = (x.double() @ weight.T + bias).split(d, dim=1)
    k = k + module.positional_encoding[0].double()
    scale = torch.log1p(torch.exp(module.scale[0, 0].double()))

    def phi(row: torch.Tensor) -> torch.Tensor:
        r = (row.clamp(min=0) + 1e-6) / scale
        cubed = r * r * r
        return math.sqrt(float(r @ r)) / math.sqrt(float(cubed @ cubed)) * cubed

    qs, ks = [phi(row) for row in q], [phi(row) for row in k]
    d_q = d // module.heads
    maps = []
    for head in range(module.heads):
        at = slice(head * d_q, (head + 1) * d_q)
        scores = [[float(a[at] @ b[at]) for b in ks] for a in qs]
        maps.append([[s / (sum(row) + tokens * 1e-6) for s in row] for row in scores])
    return maps, v


@torch.no_grad()
def test_the_linear_order_of_products_equals_the_map_of_the_paper() -> None:
    module = FocusedAttention(8, 2, 3)
    _shaken(module)
    x = torch.randn(2, 9, 8)
    out, maps = module(x).double(), module.maps(x).double()
    kernel, shift = module.dwc.weight.double(), module.dwc.bias.double()
    for sample in range(2):
        expected, v = naive_map(module, x[sample])
        torch.testing.assert_close(maps[sample], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)
        mixed = torch.cat([torch.tensor(expected[h], dtype=torch.float64) @ v[:, 4 * h : 4 * h + 4] for h in (0, 1)], 1)
        for token in range(9):
            for c in range(8):  # the convolution, by its definition
                total = shift[c % 4].clone()
                for i in range(5):
                    for j in range(5):
                        row, column = token // 3 + i - 2, token % 3 + j - 2
                        if 0 <= row < 3 and 0 <= column < 3:
                            total += kernel[c % 4, 0, i, j] * v[3 * row + column, c]
                mixed[token, c] += total
        whole = mixed @ module.proj.weight.double().T + module.proj.bias.double()
        torch.testing.assert_close(out[sample], whole, atol=1e-5, rtol=1e-4)
    assert 0 <= float(maps.sum(-1).min()) <= float(maps.sum(-1).max()) <= 1 + 1e-5


def test_focusing_keeps_the_length_and_turns_to_the_largest_coordinate() -> None:
    x = torch.rand(4, 5, 6) + 0.1
    sharp = focus(x, torch.ones(1, 1, 6))
    torch.testing.assert_close(sharp.norm(dim=-1), x.norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert (sharp.argmax(-1) == x.argmax(-1)).all()
    assert (sharp.max(-1).values > x.max(-1).values).all()


def test_the_first_stages_are_focused_over_the_whole_grid_and_the_others_as_in_swin() -> None:
    model = swin.build(SMALL)
    kinds = [[type(block.attn).__name__ for block in stage.blocks] for stage in model.layers]
    assert kinds == [["FocusedAttention"], ["Attention", "Attention"]]
    assert model.layers[0].blocks[0].attn.positional_encoding.shape == (1, 64, 16)
    whole = dataclasses.replace(SMALL, model="swin")
    assert {n for n, _ in swin.build(whole).named_parameters() if "layers.1" in n} == {
        n for n, _ in model.named_parameters() if "layers.1" in n
    }


def test_analyze_measures_the_softmax_blocks_and_says_that_the_others_have_none(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    list(runs.run(dataclasses.replace(SMALL, steps=2), tmp_path / "run", runs.Stop()))
    report = analyze([tmp_path / "run" / "step-000002"])
    by_module = dict(zip(report.readings["module"], report.verdicts, strict=True))
    assert by_module["layers.0.blocks.0.attn"] == Verdict.NOT_APPLICABLE
    assert Verdict.NOT_APPLICABLE not in (by_module["layers.1.blocks.0.attn"], by_module["layers.1.blocks.1.attn"])


def test_a_probe_reads_maps_without_logits() -> None:
    pytest.importorskip("sklearn")
    first, second, _ = probe(build_lab(SMALL))["blocks"]
    assert first["max_logit"] == first["logit_std"] == [None, None]
    assert all(v is not None and 0 < v <= 1 for v in first["entropy"] + second["entropy"])
    assert all(v is not None for v in second["max_logit"])
    assert len(first["terms"]) == 15
