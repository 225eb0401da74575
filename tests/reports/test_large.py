"""Pages of a run of 32 x 32 heads and 150 checkpoints: bounded in size, and quick to open and to move in."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page

from qkspec.analysis import CheckpointFacts, Report, assemble
from qkspec.comparison import compare
from qkspec.maps import Maps
from qkspec.metrics import names
from qkspec.readings import Readings, text
from qkspec.reports import comparing, html
from qkspec.reports.view import RunView
from qkspec.theorem import Limits

pytest.importorskip("jinja2", reason="needs qkspec[html]")
pytest.importorskip("plotly", reason="needs qkspec[html]")

LAYERS, HEADS, CHECKPOINTS = 32, 32, 150
WIDE, PAIR = 16 << 20, 12 << 20  # bytes of a page; plotly alone is nearly five million
OPENING, MOVING = 20.0, 4.0  # seconds; on a quiet machine 3 and a quarter


@pytest.fixture(scope="module")
def large() -> Report:
    """A run of which a share of the heads grows from the middle on, with as many maps as a report keeps."""
    rng = np.random.default_rng(0)
    rows = LAYERS * HEADS * CHECKPOINTS
    moment, layer, head = (a.ravel() for a in np.indices((CHECKPOINTS, LAYERS, HEADS)))
    growth = np.tile(rng.random(LAYERS * HEADS) ** 3, CHECKPOINTS) * (moment / CHECKPOINTS) ** 3
    sigma = np.exp(rng.normal(0, 0.05, rows)) * (1 + 60 * growth)
    kappa = 0.12 * sigma**0.8
    values = {
        "sigma1": sigma, "freezing_ratio": kappa, "effective_rank": np.clip(60 / sigma, 1.1, 60),
        "stable_rank": np.clip(30 / sigma, 1, 30), "sec_star": np.clip(0.2 + sigma / 20, 0, 1),
        "predicted_entropy": np.clip(1 - kappa**2 / 2, 0.05, 1), "predicted_rank": np.full(rows, 0.2),
        "predicted_diagonal": rng.random(rows) * 0.05, "predicted_columns": rng.random(rows) * 0.5,
        "positive_fraction": rng.random(rows),
    }  # fmt: skip
    columns = {
        "run": text("large", rows), "checkpoint": np.array([f"step-{m}" for m in moment], dtype=object),
        "step": moment * 100, "block": text("self", rows), "layer": layer,
        "module": np.array([f"model.layers.{i}.self_attn" for i in layer], dtype=object), "head": head,
        "kv_head": head // 4, "d_model": np.full(rows, 4096), "d_q": np.full(rows, 128),
        **{name: values.get(name, np.full(rows, np.nan)) for name in names()},
    }  # fmt: skip
    facts = tuple(
        CheckpointFacts("large", f"step-{m}", 100 * m, f"step-{m}", "safetensors", "llama", "bfloat16", 32, 1024)
        for m in range(CHECKPOINTS)
    )
    report = assemble(
        Readings(columns), np.ones(rows, bool), Limits(), checkpoints=facts, skipped={}, spectra={}
    )  # fmt: skip
    codes = {
        f"large/step-{m}/model.layers.{i}.self_attn": rng.integers(0, 255, (HEADS, 32, 32)).astype(np.uint8)
        for m in (149, 75, 0)
        for i in range(LAYERS)
    }
    return replace(report, maps=Maps(codes, {key: np.full((4, HEADS), 0.02) for key in codes}, 2))


def test_a_reports_page(driver: Any, large: Report, tmp_path: Path) -> None:
    with (tmp_path / "report.html").open("w", encoding="utf-8") as file:
        html.write(large, file)
    assert (tmp_path / "report.html").stat().st_size < WIDE
    page = Page(driver, tmp_path / "report.html")
    assert page.seconds < OPENING
    for action in ("chooseMoment(20)", "chooseHead(700)", "state.metric = 'sigma1'; drawAll()"):
        assert timed(page, action) < MOVING
    assert page.find("#attention-note").text.startswith(
        "The picture: predicted (weights alone, random tokens), 64 tokens, 2 × 2 a"
    )
    assert page.problems() == []


def test_a_comparison(driver: Any, large: Report, tmp_path: Path) -> None:
    found = compare((large, "large"), (large, "large"))
    view = RunView.of(large, "large")
    comparing.save(comparing.Pair(found, view, view, ["the same"], {}), tmp_path / "compare.html")
    assert (tmp_path / "compare.html").stat().st_size < PAIR
    page = Page(driver, tmp_path / "compare.html")
    assert page.seconds < OPENING
    for action in ("chooseMoment(20)", "chooseHead(700)", "state.metric = 'sigma1'; drawAll()"):
        assert timed(page, action) < MOVING
    assert page.problems() == []


def timed(page: Page, action: str) -> float:
    start = time.monotonic()
    page.act(lambda: page.js(action))
    return time.monotonic() - start
