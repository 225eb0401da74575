"""Reading ahead: a slow server and the processor work at the same time, and either may fail or be interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from slowweb import slow_web

from qkspec import measuring, metrics
from qkspec.analysis import Settings, analyze
from qkspec.engine import one_ahead

ROOT = Path(__file__).parent.parent
LAYERS = 6


def save(folder, *, layers=LAYERS, width=128, heads=2):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    state = {f"h.{i}.attn.c_attn.weight": rng.standard_normal((width, 3 * width), "f4") for i in range(layers)}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": heads, "n_layer": layers}))
    return folder


def test_one_is_computed_while_the_caller_works_on_another():
    begun = [threading.Event() for _ in range(8)]
    for n in one_ahead(lambda n: begun[n].set() or n, range(8)):
        assert n == 7 or begun[n + 1].wait(30)  # the next is under way though this one is still in hand


def test_results_keep_their_order_and_two_exist_at_a_time():
    alive = weakref.WeakSet()

    class Large:
        def __init__(self, n):
            self.n = n
            alive.add(self)

    for n, large in enumerate(one_ahead(Large, range(20))):
        time.sleep(0.005)
        assert large.n == n
        assert len(alive) <= 3  # the caller's variable still holds the last one while the next is handed over
        del large
        assert len(alive) <= 2


def test_two_modules_are_in_memory_at_a_time(monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Large:
        def __init__(self):
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(measuring, "_read", lambda *_: Large())
    monkeypatch.setattr(measuring, "_part", lambda checkpoint, index, layer, settings: index)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the reader gets its turn at the worst of moments
    try:
        assert measuring.measure_modules(None, None, range(3000), Settings()) == list(range(3000))
    finally:
        sys.setswitchinterval(before)
    assert max(most) <= 2


def test_an_exception_comes_when_its_turn_does():
    results = one_ahead(lambda n: 1 // (2 - n), range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_tasks_no_results():
    assert list(one_ahead(abs, [])) == []


def test_a_module_is_asked_for_before_the_one_before_it_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="reading URLs needs aiohttp (qkspec[remote])")
    save(tmp_path / "model")
    ahead = []
    measure = metrics.measure

    def patiently(*args, **options):
        due, until = min(len(ahead) + 2, LAYERS), time.monotonic() + 30
        while len(web.asked) < due and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)  # time enough to ask for more than the next, if anything did
        ahead.append(len(web.asked))
        return measure(*args, **options)

    monkeypatch.setattr(metrics, "measure", patiently)
    with slow_web(tmp_path, 0.02) as web:
        report = analyze([f"{web.url}/model"])
    assert len(report.readings) == 2 * LAYERS
    assert ahead == [2, 3, 4, 5, 6, 6]  # while the n-th is measured the next has been asked for, and no other
    for i in range(1, LAYERS):
        assert web.sent[i - 1] <= web.asked[i]  # one reader: a request at a time


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_read_ahead_changes_no_number(tmp_path, workers):
    save(tmp_path / "model")
    there = analyze([tmp_path / "model"], Settings(workers=workers))
    pytest.importorskip("aiohttp", reason="reading URLs needs aiohttp (qkspec[remote])")
    with slow_web(tmp_path, 0.0) as web:
        away = analyze([f"{web.url}/model"], Settings(workers=workers))
    for name in there.readings.metrics:
        np.testing.assert_array_equal(there.readings[name], away.readings[name])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_wait_for_a_silent_server(tmp_path, number, code, workers):
    pytest.importorskip("aiohttp", reason="reading URLs needs aiohttp (qkspec[remote])")
    save(tmp_path / "model")
    with slow_web(tmp_path, 600.0) as web:
        child = subprocess.Popen(
            [sys.executable, "-m", "qkspec", "analyze", f"{web.url}/model", "--no-cache", "--workers", str(workers)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not web.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        assert web.asked
        started = time.monotonic()
        os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
        _, err = child.communicate(timeout=20)
        assert time.monotonic() - started < 4  # 1.3 s on a machine that does nothing else
    assert child.returncode == code
    assert "Traceback" not in err


def test_a_server_that_goes_away_is_an_error_in_one_line(tmp_path):
    pytest.importorskip("aiohttp", reason="reading URLs needs aiohttp (qkspec[remote])")
    folder = save(tmp_path / "model")
    with slow_web(tmp_path, 0.2) as web:
        child = subprocess.Popen(
            [sys.executable, "-m", "qkspec", "analyze", f"{web.url}/model", "--no-cache"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        while not web.asked:
            time.sleep(0.02)
        (folder / "model.safetensors").unlink()
        _, err = child.communicate(timeout=60)
    assert child.returncode in (0, 3)  # what was read before is judged; nothing at all was, perhaps
    assert "Traceback" not in err
