"""Map a function over tasks, results in their order: in turn, one ahead, over worker processes, or on a Ray cluster."""

import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Generic, TypeVar

from qkspec.errors import QkspecError, UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")
Value = TypeVar("Value")

RETRIES = 10  # of a task whose worker or node died under it; a task that kills each worker it meets ends there
AHEAD = 4  # tasks in flight a worker: enough to keep it busy, few enough that results never pile up
LEAVE = 1.0  # seconds that a thread gets to finish what nobody wants any more; a silent server would take a minute
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Engine(StrEnum):
    """Where tasks run."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class Ready(Generic[Value]):
    """Something among the tasks that needs no work: its value takes its turn among the results."""

    value: Value


def run(
    function: Callable[[Task], Result], tasks: Iterable[Task | Ready[Value]], *, workers: int = 1
) -> Iterator[Result | Value]:
    """Yield function(task) for each task, and the value of each Ready one, in order.

    Args:
        function: picklable when workers > 1.
        tasks: read lazily, never more than a few ahead of the results.
        workers: processes; 1 runs in this one. Each uses one BLAS thread unless the environment says otherwise.

    Raises:
        QkspecError: a worker process was killed, which is what a machine does that runs out of memory.
    """
    if workers <= 1:
        for task in tasks:
            yield task.value if isinstance(task, Ready) else function(task)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    one_blas_thread()
    # A copy of this process has everything imported and the checkpoint open: 0.5 s a worker less than a new one.
    how = "fork" if _is_alone() else "spawn"
    pool = ProcessPoolExecutor(workers, mp_context=get_context(how), initializer=_begin_worker)

    def submit(task: Task) -> "Future[Result]":
        with _signals_wait():  # the first call starts the workers, which must not meet a signal before they can
            return pool.submit(function, task)

    finished = False
    try:
        yield from _in_order(tasks, submit, lambda future: future.result(), workers * AHEAD)
        finished = True
    except BrokenProcessPool as error:
        raise QkspecError(
            "a worker process was killed, probably because memory ran out; use fewer workers (--workers 1)"
        ) from error
    finally:
        if not finished:  # interrupted: nobody waits for what is still being computed
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def one_ahead(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Yield function(task) for each task, in order; a thread computes the next one while the caller works on this one.

    Two results exist at a time: the caller's and the next. An exception is raised when its task's turn comes.
    """
    from concurrent.futures import Future
    from queue import SimpleQueue
    from threading import Thread

    jobs: SimpleQueue[tuple[Task, Future[Result]] | None] = SimpleQueue()
    source = iter(tasks)

    def work() -> None:
        while (job := jobs.get()) is not None:
            try:
                job[1].set_result(function(job[0]))
            except BaseException as error:  # noqa: BLE001 - it is the caller's to handle
                job[1].set_exception(error)
            del job  # while this waits it must not hold the result

    def ask() -> "Future[Result] | None":
        for task in source:
            jobs.put((task, future := Future[Result]()))
            return future
        return None

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        coming = ask()
        while coming is not None:
            result = coming.result()
            coming = ask()
            yield result
            del result
    finally:
        jobs.put(None)
        thread.join(LEAVE)


def run_on_ray(
    function: Callable[[Task], Result],
    tasks: Iterable[Task | Ready[Value]],
    *,
    address: str | None = None,
    gpus: float = 0.0,
) -> Iterator[Result | Value]:
    """Yield what ``run`` yields, computed by a Ray cluster. A task whose worker or node dies is computed again.

    Args:
        function: picklable, of a module that the cluster's nodes have installed.
        tasks: read lazily, a few ahead of the results for each processor of the cluster.
        address: of a running cluster ("auto", "ray://host:10001"); None starts one on this machine.
        gpus: GPUs that a task needs.

    Raises:
        UsageError: Ray is not installed, there is no cluster at the address, or none of its nodes has so many GPUs.
    """
    import logging

    try:
        import ray
    except ImportError as error:
        raise UsageError('--engine ray needs Ray: pip install "qkspec[ray]"') from error

    def call(task: Task) -> Result:  # Ray takes functions, and a partial is none
        return function(task)

    started = not ray.is_initialized()
    if started:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from error
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if resources.get("GPU", 0.0) < gpus:  # Ray would wait for a node that has one
            raise UsageError("--device cuda: no node of the Ray cluster has a GPU; leave the option out")
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(call)
        get: Callable[[Any], Result] = ray.get
        yield from _in_order(tasks, remote.remote, get, int(resources.get("CPU", 1)) * AHEAD)
    finally:
        if started:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nothing listens at host:port: Ray itself would try for minutes and then end the process."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdigit():
        import socket

        socket.create_connection((host, int(port)), timeout=10).close()


def _in_order(
    tasks: Iterable[Task | Ready[Value]], submit: Callable[[Task], Any], result: Callable[[Any], Result], ahead: int
) -> Iterator[Result | Value]:
    """Keep ``ahead`` tasks submitted, and yield results and the values of Ready ones in the order of the tasks."""
    queue: deque[Ready[Value] | Any] = deque()
    source = iter(tasks)

    def fill(count: int) -> None:
        queue.extend(task if isinstance(task, Ready) else submit(task) for task in islice(source, count))

    fill(ahead)
    while queue:
        first = queue.popleft()
        yield first.value if isinstance(first, Ready) else result(first)
        del first
        fill(1)


def _is_alone() -> bool:
    """Say whether this process has one thread, so that a copy of it is whole: no lock in it can be held for ever."""
    return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM inside, in processes that are started inside as well, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it ends."""
    from threading import Thread

    seldom_collect()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cpu_count() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seldom_collect() -> None:
    """Let Python look for cycles seldom, in a process that is all ours: importing makes much that lives to the end.

    Arrays are not in cycles: they are let go as before.
    """
    gc.set_threshold(50_000, 20, 20)


def one_blas_thread() -> None:
    """Ask BLAS for one thread, unless the user asked otherwise. Takes effect only before NumPy is first imported.

    Small LAPACK calls on several BLAS threads are slower than on one (0.15 s became 0.34-3.5 s).
    """
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ.setdefault(name, "1")


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Hold NumPy and SciPy to one BLAS thread inside; torch's own threads stay.

    For callers from Python, whose libraries are loaded by then so that no environment variable helps any more. On more
    threads the small factorisations of one measurement of GPT-2 124M took 3 to 12 s instead of 0.6.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
