"""Pictures of predicted maps: the maps that the readings were read off, within bounds."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from qkspec import maps
from qkspec.analysis import Settings, judge, measure_runs
from qkspec.attention import map_indices, predicted_map
from qkspec.checkpoints.sequence import find_runs
from qkspec.layouts.find import attention_layers

SETTINGS = Settings(keep_spectra=False)


@pytest.fixture(scope="module")
def lost(sample, tmp_path_factory):
    """A run of three checkpoints and what was measured of it."""
    run = tmp_path_factory.mktemp("maps") / "run"
    for step in (0, 40, 200):
        shutil.copytree(sample.parent / "adamw-no-warmup" / f"step-{step:06d}", run / f"step-{step:06d}")
    runs = find_runs([str(run)])
    return runs, judge(measure_runs(runs, SETTINGS), SETTINGS)


def test_a_picture_is_the_map_whose_entropy_was_read(lost):
    runs, report = lost
    found = maps.draw(report, runs, SETTINGS)
    assert found.note == ""
    assert (found.cell, len(found.pictures)) == (1, 3 * 4)
    checkpoint = runs[0].sources[1].open()
    for layer in attention_layers(checkpoint):
        whole = predicted_map(layer, seed=0)
        codes = found.pictures[f"run/step-000040/{layer.name}"]
        np.testing.assert_allclose((codes / 255.0) ** 2, whole, atol=1 / 255 + 1e-6)
        rows = (report.readings["checkpoint"] == "step-000040") & (report.readings["module"] == layer.name)
        read = map_indices(whole, causal=layer.causal).entropy
        np.testing.assert_allclose(report.readings.metric("predicted_entropy")[rows], read)
    checkpoint.store.close()


def test_the_error_is_the_spread_of_the_index_over_draws(lost):
    runs, report = lost
    errors = maps.draw(report, runs, SETTINGS).errors["run/step-000200/transformer.h.0.attn"]
    checkpoint = runs[0].sources[2].open()
    layer = next(attention_layers(checkpoint))
    many = [map_indices(predicted_map(layer, seed=seed), causal=True) for seed in range(40)]
    checkpoint.store.close()
    for row, name in zip(errors, maps.INDICES, strict=True):
        spread = np.std([getattr(one, name) for one in many], axis=0, ddof=1)
        assert np.all(row < 3.5 * spread)
        assert np.all(row > spread / 8)  # of four draws: a chi distribution of three degrees of freedom


def test_a_coarser_picture_keeps_every_querys_mass():
    rng = np.random.default_rng(0)
    whole = rng.dirichlet(np.full(17, 0.1), size=(2, 17)).astype(np.float32)
    for cell in (1, 2, 4):
        codes = maps.picture(whole, cell)
        assert codes.shape == (2, -(-17 // cell), -(-17 // cell))
        np.testing.assert_allclose(((codes / 255.0) ** 2).sum(axis=2), 1, atol=0.06)
        naive = np.stack([
            [[whole[h, i : i + cell, j : j + cell].sum() / len(whole[h, i : i + cell]) for j in range(0, 17, cell)]
             for i in range(0, 17, cell)] for h in range(2)
        ])  # fmt: skip
        np.testing.assert_allclose((codes / 255.0) ** 2, naive, atol=1 / 255 + 1e-6)
    assert not maps.picture(np.full((1, 4, 4), np.nan, np.float32)).any()


@pytest.mark.parametrize(("count", "turn"), [(1, None), (1, 0), (13, 5), (150, 71), (150, None)])
def test_the_most_telling_checkpoints_come_first(count, turn):
    found = maps.telling(count, turn)
    assert found[0] == count - 1
    assert turn is None or turn in found[:2]
    assert 0 in found
    assert len(set(found)) == len(found) <= min(maps.MOMENTS, count)


def test_bounds_hold_and_are_told(lost, monkeypatch):
    runs, report = lost
    none = maps.draw(report, runs, SETTINGS, seconds=-1)
    assert (none.pictures, none.note) == ({}, "the time for maps was over")
    monkeypatch.setattr(maps, "BYTES", 2 * 32 * 32 * 3)
    few = maps.draw(report, runs, SETTINGS)
    assert few.cell == 4
    assert sum(codes.nbytes for codes in few.pictures.values()) <= maps.BYTES + 2 * 16 * 16
    monkeypatch.setattr(maps, "BYTES", 2 * 16 * 16 * 3)
    few = maps.draw(report, runs, SETTINGS)
    assert len(few.pictures) == 3
    assert all("/step-000200/" in key for key in few.pictures)
    assert few.note.startswith("maps are kept until they fill")
    monkeypatch.undo()
    monkeypatch.setattr(maps, "MOMENTS", 2)
    assert maps.draw(report, runs, SETTINGS).note == "maps are kept of at most 2 checkpoints a run"


def test_what_cannot_be_read_any_more_has_no_picture(lost, tmp_path):
    runs, report = lost
    moved = shutil.copytree(runs[0].path, tmp_path / "run")
    again = find_runs([str(moved)])
    (moved / "step-000040" / "model.safetensors").write_bytes(b"x")
    found = maps.draw(report, again, SETTINGS)
    assert {key.split("/")[1] for key in found.pictures} == {"step-000000", "step-000200"}
    assert found.note
    elsewhere = [replace(run, name="other") for run in again]
    assert maps.draw(report, elsewhere, SETTINGS).pictures == {}
