"""Many checkpoints in turn: (checkpoint, modules) tasks over an engine, results from the cache where it has them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from qkspec import engine
from qkspec.cache import Cache, Spool
from qkspec.checkpoints.sequence import Run, Source
from qkspec.checkpoints.store import Checkpoint
from qkspec.engine import Engine, Ready
from qkspec.errors import QkspecError
from qkspec.layouts.find import Plan
from qkspec.measuring import Measured, Part, Settings, Skipped, chosen, gather, measure_modules, plan_for
from qkspec.readings import Readings, text

# Q, K bytes x d_q; a CPU-second is about 1e10
WORK_WORTH_PROCESSES = 4e10  # below it, starting processes costs more than it saves
TASK = 2e9  # small enough to share out evenly, large enough that opening a checkpoint does not count


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
        return sum(float(m.nbytes) * m.d_q for m in (self.plan.modules[i] for i in self.modules))


def measure_runs(runs: Iterable[Run], settings: Settings) -> Iterator[Measured | Skipped]:
    """Measure the checkpoints of runs in turn; one that cannot be read is yielded as Skipped and hides no other.

    Each is yielded, and written to the cache, as soon as it is done, so that an analysis that is killed goes on there
    when it is started again.
    """
    pairs = [(run.name, source) for run in runs for source in run.sources]
    stream = _Stream(pairs, settings)
    yield from stream.results()


def measure_source(run: str, source: Source, settings: Settings) -> Measured | Skipped:
    """Measure one checkpoint of a run, or say why that cannot be done."""
    return next(_Stream([(run, source)], settings).results())


class _Stream:
    """The results of a list of checkpoints."""

    def __init__(self, pairs: Sequence[tuple[str, Source]], settings: Settings) -> None:
        self._pairs = pairs
        self._settings = settings
        self._cache = Cache(settings.cache) if settings.cache is not None else None
        self._spool = Spool() if settings.keep_spectra else None

    def results(self) -> Iterator[Measured | Skipped]:
        parts: list[Part] = []
        problem = ""
        try:
            for item in self._computed():
                if isinstance(item, _Planned):
                    yield Skipped(item.run, item.source.name, problem) if problem else self._finish(item, parts)
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
        waiting: list[Task | Ready[_Planned | Measured | Skipped]] = []
        work = 0.0
        for item in items:  # up to the first checkpoint that needs work, which tells how many workers are worth while
            if isinstance(item, Ready) and not waiting and not isinstance(item.value, _Planned):
                yield item.value
                continue
            waiting.append(item)
            if isinstance(item, Ready) and isinstance(item.value, _Planned):
                work = item.value.work * len(self._pairs)
                break
        tasks = chain(waiting, items)
        function = partial(measure_task, replace(settings, cache=None))
        if settings.engine is Engine.RAY and waiting:
            gpus = 1.0 if settings.device == "cuda" else 0.0
            yield from engine.run_on_ray(function, tasks, address=settings.ray_address, gpus=gpus)
        else:
            workers = settings.workers or (engine.cpu_count() if work > WORK_WORTH_PROCESSES else 1)
            yield from engine.run(function, tasks, workers=workers if waiting else 1)

    def _items(self) -> Iterator[Task | Ready[_Planned | Measured | Skipped]]:
        for run, source in self._pairs:
            try:
                stamp = source.fingerprint()
                if (known := self._known(run, source, stamp)) is not None:
                    yield Ready(known)
                    continue
                planned = _plan(run, source, stamp, self._settings)
            except QkspecError as error:
                yield Ready(Skipped(run, source.name, str(error)))
                continue
            yield from (Task(source, stamp, modules) for modules in _shares(planned))
            yield Ready(planned)

    def _known(self, run: str, source: Source, stamp: str) -> Measured | None:
        found = None if self._cache is None else self._cache.get(source, stamp, self._settings)
        return None if found is None else self._kept(_renamed(found, run))

    def _finish(self, planned: _Planned, parts: Sequence[Part]) -> Measured | Skipped:
        try:
            measured = gather(planned.checkpoint, planned.plan, parts, self._settings, planned.run)
            if self._cache is not None and planned.source.fingerprint() == planned.stamp:
                self._cache.put(planned.source, planned.stamp, self._settings, measured)
        except QkspecError as error:  # it was removed or replaced meanwhile
            return Skipped(planned.run, planned.source.name, str(error))
        return self._kept(measured)

    def _kept(self, measured: Measured) -> Measured:
        return replace(measured, spectra={} if self._spool is None else self._spool.add(measured.spectra))


def _renamed(measured: Measured, run: str) -> Measured:
    columns = {**measured.readings.columns, "run": text(run, len(measured.readings))}
    return replace(measured, facts=replace(measured.facts, run=run), readings=Readings(columns))


def _plan(run: str, source: Source, stamp: str, settings: Settings) -> _Planned:
    checkpoint, found = _open(source, stamp, settings)
    return _Planned(run, source, stamp, checkpoint, found, chosen(found, settings))


def _shares(planned: _Planned) -> Iterator[tuple[int, ...]]:
    """Cut a checkpoint's modules into tasks of about equal work."""
    share: list[int] = []
    work = 0.0
    for index in planned.modules:
        share.append(index)
        work += float(planned.plan.modules[index].nbytes) * planned.plan.modules[index].d_q
        if work >= TASK:
            yield tuple(share)
            share, work = [], 0.0
    if share:
        yield tuple(share)


def measure_task(settings: Settings, task: Task) -> list[Part] | str:
    """Measure some modules in whatever process this is; the sentence that says why not, if that cannot be done."""
    try:
        checkpoint, found = _open(task.source, task.stamp, settings)
        return measure_modules(checkpoint, found, task.modules, settings)
    except QkspecError as error:
        return str(error)


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
