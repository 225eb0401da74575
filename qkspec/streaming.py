"""Many checkpoints in turn: (checkpoint, modules) tasks over an engine, results from the cache where it has them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from qkspec import engine
from qkspec.cache import Cache, Spool
from qkspec.checkpoints.sequence import Run, Source
from qkspec.checkpoints.store import Checkpoint
from qkspec.engine import Engine, Ready
from qkspec.errors import QkspecError, UsageError
from qkspec.layouts.find import Plan
from qkspec.measuring import Measured, Part, Settings, Skipped, chosen, gather, measure_modules, plan_for
from qkspec.readings import Readings, text

# Q, K bytes x d_q; a CPU-second is about 1e10
WORK_WORTH_PROCESSES = 4e10  # below it, starting processes costs more than it saves
WORK_WORTH_A_GPU = 3e11  # half a minute of CPU: below it, importing torch costs more than it saves
TASK = 2e9  # the least that is handed to a worker, so that opening a checkpoint does not count
GPU_PLACES = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "C:/Windows/System32/nvcuda.dll")
# What a checkpoint's content might still provoke in qkspec: a bug, which must not hide the good checkpoints beside it.
SPOILT = (QkspecError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError)
RAY_SHARES = 4  # how many workers a checkpoint is shared out for on a cluster, whose size is not known when it is cut


@dataclass(frozen=True)
class Task:
    """Some modules of one checkpoint. ``stamp`` is the checkpoint's fingerprint when it was planned."""

    source: Source
    stamp: str
    modules: tuple[int, ...]


@dataclass(frozen=True)
class _Planned:
    """A checkpoint whose tasks went before."""

    run: str
    source: Source
    stamp: str
    checkpoint: Checkpoint
    plan: Plan
    modules: list[int] = field(default_factory=list)

    @property
    def work(self) -> float:
        return sum(map(self.work_of, self.modules))

    @property
    def largest(self) -> int:
        """Bytes of the largest module's weights in float64."""
        sizes = ((m.heads + m.kv_heads) * m.d_q * m.d_model * 8 for m in (self.plan.modules[i] for i in self.modules))
        return max(sizes, default=0)

    def work_of(self, module: int) -> float:
        return float(self.plan.modules[module].nbytes) * self.plan.modules[module].d_q


def measure_runs(runs: Iterable[Run], settings: Settings) -> Iterator[Measured | Skipped]:
    """Measure the checkpoints of runs in turn; one that cannot be read is yielded as Skipped and hides no other.

    Each is yielded, and written to the cache, as soon as it is done, so that an analysis that is killed goes on there
    when it is started again.
    """
    runs = tuple(runs)
    for run in runs:
        for path, reason in run.skipped.items():  # a folder that cannot be listed may hide checkpoints
            yield Skipped(run.name, path, reason)
    pairs = [(run.name, source) for run in runs for source in run.sources]
    yield from _Stream(pairs, settings).results()


def measure_source(run: str, source: Source, settings: Settings) -> Measured | Skipped:
    """Measure one checkpoint of a run, or say why that cannot be done."""
    # Taken to its end: what is left of a generator runs when it is collected, where an interrupt would be lost.
    (result,) = _Stream([(run, source)], settings).results()
    return result


class _Stream:
    """The results of a list of checkpoints."""

    def __init__(self, pairs: Sequence[tuple[str, Source]], settings: Settings) -> None:
        self._pairs = pairs
        self._settings = settings
        self._cache = Cache(settings.cache) if settings.cache is not None else None
        self._spool = Spool() if settings.keep_spectra else None
        self._device = ""  # this and the next are chosen when the first checkpoint is planned
        self._workers = 1

    def results(self) -> Iterator[Measured | Skipped]:
        parts: list[Part] = []
        problem = ""
        try:
            for item in self._computed():
                if isinstance(item, _Planned):
                    yield Skipped(item.run, item.source.name, problem) if problem else self._finished(item, parts)
                    parts, problem = [], ""
                elif isinstance(item, (Measured, Skipped)):
                    yield item
                elif isinstance(item, str):
                    problem = problem or item
                else:
                    parts += item
        finally:
            _release()
            if self._cache is not None:
                self._cache.prune()

    def _computed(self) -> Iterator[list[Part] | str | _Planned | Measured | Skipped]:
        settings, items = self._settings, self._items()
        first: list[Task | Ready[_Planned | Measured | Skipped]] = []
        for item in items:  # up to the first that needs work, by when it is known how much work there is
            if isinstance(item, Task):
                first.append(item)
                break
            yield item.value
        if not first:
            return
        tasks, device = chain(first, items), self._device
        function = partial(measure_task, replace(settings, cache=None, device=device))
        if settings.engine is Engine.RAY:
            gpus = 1.0 if device == "cuda" else 0.0
            yield from engine.run_on_ray(function, tasks, address=settings.ray_address, gpus=gpus)
        else:
            yield from engine.run(function, tasks, workers=self._workers)

    def _items(self) -> Iterator[Task | Ready[_Planned | Measured | Skipped]]:
        for run, source in self._pairs:
            try:
                stamp = source.fingerprint()
                if (known := self._known(run, source, stamp)) is not None:
                    yield Ready(known)
                    continue
                planned = _plan(run, source, stamp, self._settings)
            except SPOILT as error:
                yield Ready(Skipped(run, source.name, _reason(error)))
                continue
            if not self._device:
                self._choose(planned)
            shares = RAY_SHARES if self._settings.engine is Engine.RAY else self._workers
            many = self._device == "cpu" and shares > 1  # a GPU takes modules in batches
            yield from (Task(source, stamp, modules) for modules in _shares(planned, shares if many else 0))
            yield Ready(planned)

    def _choose(self, first: _Planned) -> None:
        """Choose the device and the number of processes by the amount of work, judged by the first checkpoint."""
        asked, work = self._settings.device, first.work * len(self._pairs)
        on_ray = self._settings.engine is Engine.RAY  # whose nodes have the GPUs, and this machine need have none
        self._device = asked if on_ray and asked == "cuda" else choose_device(asked, work, first.largest)
        if self._device != "cpu":
            return  # one process: a copy of one that has looked for a GPU cannot use it
        self._workers = self._settings.workers or (engine.cpu_count() if work > WORK_WORTH_PROCESSES else 1)

    def _known(self, run: str, source: Source, stamp: str) -> Measured | None:
        found = None if self._cache is None else self._cache.get(source, stamp, self._settings)
        return None if found is None else self._kept(_renamed(found, run))

    def _finished(self, planned: _Planned, parts: Sequence[Part]) -> Measured | Skipped:
        try:
            return self._finish(planned, parts)
        except SPOILT as error:
            return Skipped(planned.run, planned.source.name, _reason(error))

    def _finish(self, planned: _Planned, parts: Sequence[Part]) -> Measured:
        measured = gather(planned.checkpoint, planned.plan, parts, self._settings, planned.run)
        with suppress(QkspecError):
            known = replace(measured.facts, size=planned.source.size(), digest=planned.source.digest())
            measured = replace(measured, facts=known)
        if self._cache is not None:
            with suppress(QkspecError):  # it was removed meanwhile: what was read of it still holds
                if planned.source.fingerprint() == planned.stamp:
                    self._cache.put(planned.source, planned.stamp, self._settings, measured)
        return self._kept(measured)

    def _kept(self, measured: Measured) -> Measured:
        return replace(measured, spectra={} if self._spool is None else self._spool.add(measured.spectra))


def choose_device(asked: str, work: float, largest: int = 0) -> str:
    """Return "cpu", "cuda" or "mps". torch is imported only where a GPU was asked for, or is there and worth its start.

    "auto" takes a CUDA device that is worth its start and has room for a module, else the CPU.

    Args:
        asked: one of these, or "auto".
        work: bytes of Q and K times d_q.
        largest: bytes of the largest module's weights in float64.

    Raises:
        UsageError: the device that was asked for is not there.
    """
    if asked == "cpu" or (asked == "auto" and (work < WORK_WORTH_A_GPU or not _may_have_gpu())):
        return "cpu"
    try:
        import torch
    except ImportError as error:
        if asked == "auto":
            return "cpu"
        raise UsageError(f"--device {asked} needs torch: pip install torch") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":  # never mps: an M-series CPU keeps up with a GPU that has no float64
        return "cuda" if there["cuda"] and _has_room("cuda", largest) else "cpu"
    if not there[asked]:
        raise UsageError(f"--device {asked}: torch finds no such device here; leave the option out to use the CPU")
    return asked


def _may_have_gpu() -> bool:
    return any(Path(place).exists() for place in GPU_PLACES)


def _has_room(device: str, largest: int) -> bool:
    from qkspec import spectrum_torch

    try:
        return spectrum_torch.room(device) >= largest
    except RuntimeError:  # another process holds it alone, or its driver is gone
        return False


def _renamed(measured: Measured, run: str) -> Measured:
    columns = {**measured.readings.columns, "run": text(run, len(measured.readings))}
    return replace(measured, facts=replace(measured.facts, run=run), readings=Readings(columns))


def _plan(run: str, source: Source, stamp: str, settings: Settings) -> _Planned:
    checkpoint, found = _open(source, stamp, settings)
    return _Planned(run, source, stamp, checkpoint, found, chosen(found, settings))


def _shares(planned: _Planned, workers: int) -> Iterator[tuple[int, ...]]:
    """Cut a checkpoint's modules into tasks: each half of an even share of what is left; one task without workers.

    Long tasks let a worker read ahead, and short ones at the end let all workers finish together.
    """
    share: list[int] = []
    work, left = 0.0, planned.work
    for index in planned.modules:
        share.append(index)
        work += planned.work_of(index)
        if workers and work >= max(TASK, left / (2 * workers)):
            yield tuple(share)
            left -= work
            share, work = [], 0.0
    if share:
        yield tuple(share)


def measure_task(settings: Settings, task: Task) -> list[Part] | str:
    """Measure some modules in whatever process this is; the sentence that says why not, if that cannot be done."""
    try:
        checkpoint, found = _open(task.source, task.stamp, settings)
        return measure_modules(checkpoint, found, task.modules, settings)
    except SPOILT as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    """Return why a checkpoint is skipped; with --debug a bug is raised instead."""
    if isinstance(error, QkspecError):
        return str(error)
    if "QKSPEC_DEBUG" in os.environ:
        raise error
    return f"internal error, please report (--debug shows where): {type(error).__name__}: {error}"


_opened: list[tuple[str, Checkpoint, Plan]] = []  # the checkpoint that this process had in hand last


def _open(source: Source, stamp: str, settings: Settings) -> tuple[Checkpoint, Plan]:
    """Open and plan a checkpoint, or return the one in hand. One that changed since has another stamp."""
    if _opened and _opened[0][0] == stamp:
        return _opened[0][1], _opened[0][2]
    _release()
    checkpoint = source.open()
    try:
        found = plan_for(checkpoint, settings)
    except BaseException:
        checkpoint.store.close()
        raise
    _opened.append((stamp, checkpoint, found))
    return checkpoint, found


def _release() -> None:
    while _opened:
        _opened.pop()[1].store.close()
