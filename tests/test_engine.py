import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkspec import engine
from qkspec.engine import Ready
from qkspec.errors import QkspecError, UsageError


def square(n):
    return n * n


def process_of(_):
    time.sleep(0.05)
    return os.getpid()


def die(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers):
    assert list(engine.run(square, range(30), workers=workers)) == [n * n for n in range(30)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_ready_takes_its_turn(workers):
    tasks = [Ready("first"), 1, 2, Ready("third"), 3]
    assert list(engine.run(square, tasks, workers=workers)) == ["first", 1, 4, "third", 9]


@pytest.mark.parametrize("workers", [1, 2])
def test_endless_tasks_are_read_only_a_few_ahead(workers):
    pulled = []
    tasks = (pulled.append(n) or n for n in itertools.count())
    results = engine.run(square, tasks, workers=workers)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()
    assert len(pulled) <= 5 + workers * engine.AHEAD


def test_workers_are_other_processes():
    assert os.getpid() not in set(engine.run(process_of, range(6), workers=2))


def test_a_killed_worker_is_an_error_with_advice():
    with pytest.raises(QkspecError, match="fewer workers"):
        list(engine.run(die, range(8), workers=2))


HOW = """
import sys, threading, time
from qkspec import engine
def kind(_):
    import multiprocessing
    return type(multiprocessing.current_process()).__name__
if __name__ == "__main__":
    if sys.argv[1] == "two":
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    print(set(engine.run(kind, range(4), workers=2)))
"""


@pytest.mark.parametrize(("threads", "kind"), [("one", "ForkProcess"), ("two", "SpawnProcess")])
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
def test_only_a_process_with_one_thread_is_copied(threads, kind, tmp_path):
    script = tmp_path / "how.py"
    script.write_text(HOW)
    done = subprocess.run(
        [sys.executable, str(script), threads], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.stdout.strip() == repr({kind})


SLOW = """
import os, sys, time, threading
from qkspec import engine
def slow(n):
    os.write(1, b"%d\\n" % os.getpid())  # one write: two workers share this pipe, and an unbuffered print makes two
    time.sleep(60)
if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1] == "two":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    list(engine.run(slow, range(4), workers=2))
"""


@pytest.mark.parametrize("threads", ["one", "two"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_child(number, threads, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, str(script), threads], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    ) as child:  # fmt: skip
        try:
            workers = [int(child.stdout.readline()) for _ in range(2)]
            started = time.monotonic()
            child.send_signal(number)
            child.wait(timeout=10)
            while any(is_running(pid) for pid in workers) and time.monotonic() - started < 10:
                time.sleep(0.05)
            assert time.monotonic() - started < 5
        finally:
            child.kill()


def is_running(pid):
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"qkspec\[ray\]"):
        list(engine.run_on_ray(square, [1]))
