"""Map a function over tasks: in turn, or over worker processes. Results come in the order of the tasks."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4  # tasks in flight a worker: enough to keep it busy, few enough that results never pile up


def run(function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int = 1) -> Iterator[Result]:
    """Yield function(task) for each task, in order.

    Args:
        function: picklable when workers > 1.
        tasks: read lazily, never more than a few ahead of the results.
        workers: processes; 1 runs in this one. Each worker should use one BLAS thread (see ``one_blas_thread``).
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    queue: deque[Future[Result]] = deque()
    source = iter(tasks)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        queue.extend(pool.submit(function, task) for task in islice(source, workers * AHEAD))
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(function, task) for task in islice(source, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cpu_count() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> None:
    """Ask BLAS for one thread, unless the user asked otherwise. Takes effect only before NumPy is first imported.

    Small LAPACK calls on several BLAS threads are slower than on one (0.15 s became 0.34-3.5 s).
    """
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ.setdefault(name, "1")
