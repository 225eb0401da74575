import json
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkspec import cache, streaming
from qkspec.analysis import Settings, Skipped, analyze, measure_runs
from qkspec.cache import Cache, Spool
from qkspec.checkpoints.sequence import find_runs

CONFIG = {"model_type": "gpt2", "n_head": 4, "n_layer": 2, "n_positions": 64}


def save(folder, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for layer in range(2):
        state[f"h.{layer}.attn.c_attn.weight"] = rng.standard_normal((32, 96)).astype(np.float32)
        state[f"h.{layer}.attn.c_attn.bias"] = np.zeros(96, np.float32)
        for part in ("weight", "bias"):
            state[f"h.{layer}.ln_1.{part}"] = rng.standard_normal(32).astype(np.float32)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def run(tmp_path):
    for step in range(3):
        save(tmp_path / "run" / f"step-{step}", step)
    return tmp_path / "run"


@pytest.fixture
def opened(monkeypatch):
    """Names of the checkpoints that were measured, in order."""
    seen = []
    plan = streaming._plan
    monkeypatch.setattr(
        streaming, "_plan", lambda run, source, *rest: seen.append(source.name) or plan(run, source, *rest)
    )
    return seen


def settings(tmp_path, **changes):
    return replace(Settings(cache=tmp_path / "cache"), **changes)


def same(a, b):
    assert a.readings.columns.keys() == b.readings.columns.keys()
    for name, column in a.readings.columns.items():
        np.testing.assert_array_equal(column, b.readings[name])
        assert column.dtype == b.readings[name].dtype
    assert a.checkpoints == b.checkpoints
    assert a.skipped == b.skipped
    np.testing.assert_array_equal(a.applicable, b.applicable)
    assert list(a.spectra) == list(b.spectra)
    for name in a.spectra:
        np.testing.assert_array_equal(a.spectra[name], b.spectra[name])


def test_a_second_run_is_the_same_to_the_last_bit_and_measures_nothing(run, tmp_path, opened):
    first = analyze([run], settings(tmp_path))
    assert opened == ["step-0", "step-1", "step-2"]
    second = analyze([run], settings(tmp_path))
    assert len(opened) == 3
    same(first, second)
    same(first, analyze([run]))


def test_a_file_changed_in_place_is_measured_again(run, tmp_path, opened):
    analyze([run], settings(tmp_path))
    path = run / "step-1" / "model.safetensors"
    times = path.stat()
    with path.open("r+b") as file:  # same size, same modification time
        file.seek(-40, os.SEEK_END)
        file.write(np.full(10, 2.5, np.float32).tobytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = analyze([run], settings(tmp_path))
    assert opened[3:] == ["step-1"]
    same(changed, analyze([run]))


def test_a_changed_config_is_measured_again(run, tmp_path, opened):
    analyze([run], settings(tmp_path))
    (run / "step-2" / "config.json").write_text(json.dumps({**CONFIG, "n_head": 2}))
    analyze([run], settings(tmp_path))
    assert opened[3:] == ["step-2"]


@pytest.mark.parametrize(
    "change", [{"sizes": (3,)}, {"context": 7}, {"seed": 1}, {"heads": frozenset({0})}, {"offsets": (4,)}]
)
def test_other_settings_are_other_entries(run, tmp_path, opened, change):
    analyze([run], settings(tmp_path))
    analyze([run], settings(tmp_path, **change))
    assert len(opened) == 6


@pytest.mark.parametrize("change", [{"workers": 2}, {"keep_spectra": False}])
def test_how_the_work_is_done_does_not_matter(run, tmp_path, opened, change):
    analyze([run], settings(tmp_path))
    analyze([run], settings(tmp_path, **change))
    assert len(opened) == 3


def test_another_version_is_another_entry(run, tmp_path, opened, monkeypatch):
    analyze([run], settings(tmp_path))
    monkeypatch.setattr(cache, "NUMERICS", cache.NUMERICS + 1)
    analyze([run], settings(tmp_path))
    assert len(opened) == 6


@pytest.mark.parametrize("damage", [b"", b"qkspec", "flip", "cut"])
def test_a_damaged_entry_is_no_entry(run, tmp_path, opened, damage):
    before = analyze([run], settings(tmp_path))
    for path in (tmp_path / "cache").rglob("*.entry"):
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 3] if damage == "cut" else data if damage == "flip" else damage)
    same(before, analyze([run], settings(tmp_path)))
    assert len(opened) == 6
    same(before, analyze([run], settings(tmp_path)))
    assert len(opened) == 6


def test_every_byte_of_an_entry_is_guarded(run, tmp_path):
    analyze([run], settings(tmp_path))
    data = next((tmp_path / "cache").rglob("*.entry")).read_bytes()
    cache._decode(data)
    for at in np.random.default_rng(0).integers(0, len(data), 200):
        broken = bytearray(data)
        broken[at] ^= 0x41
        with pytest.raises(ValueError, match="entry"):
            cache._decode(bytes(broken))


def test_an_analysis_that_was_stopped_goes_on_where_it_was(run, tmp_path, opened):
    results = measure_runs(find_runs([str(run)]), settings(tmp_path))
    next(results)
    next(results)
    results.close()
    analyze([run], settings(tmp_path))
    assert opened == ["step-0", "step-1", "step-2"]


def test_a_folder_that_cannot_be_written_is_an_empty_cache(run, tmp_path, opened):
    (tmp_path / "cache").write_text("a file")
    analyze([run], settings(tmp_path))
    analyze([run], settings(tmp_path))
    assert len(opened) == 6


def test_the_oldest_entries_go_first_and_leftovers_with_them(run, tmp_path):
    kept = tmp_path / "cache"
    analyze([run], settings(tmp_path))
    size = sum(path.stat().st_size for path in kept.rglob("*.entry"))
    left = next(kept.iterdir()) / ".killed.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    oldest = next(kept.rglob("*.entry"))
    os.utime(oldest, (0, 0))
    small = Cache(kept, limit=size - 1)
    small._wrote = True
    small.prune()
    assert not oldest.exists()
    assert not left.exists()
    assert len(list(kept.rglob("*.entry"))) == 2


def test_a_bad_checkpoint_is_skipped_each_time_and_hides_no_other(run, tmp_path):
    (run / "step-1" / "model.safetensors").write_bytes(b"not one")
    for _ in range(2):
        results = list(measure_runs(find_runs([str(run)]), settings(tmp_path)))
        assert [isinstance(result, Skipped) for result in results] == [False, True, False]


def test_workers_and_one_process_agree_to_the_last_bit(run, monkeypatch):
    monkeypatch.setattr(streaming, "TASK", 1.0)  # a task a module
    same(analyze([run]), analyze([run], Settings(workers=2)))


def test_a_spool_gives_back_what_it_was_given(monkeypatch):
    monkeypatch.setattr(cache, "_IN_MEMORY", 100)
    spool, rng = Spool(), np.random.default_rng(0)
    given = [{f"m{i}": rng.standard_normal((i + 1, 4)) for i in range(3)} for _ in range(5)]
    kept = [spool.add(part) for part in given]
    for part, back in zip(given, kept, strict=True):
        assert list(part) == list(back)
        for name in part:
            np.testing.assert_array_equal(part[name], back[name])


def test_without_a_report_directory_no_spectra_are_kept(run):
    assert not analyze([run], Settings(keep_spectra=False)).spectra
