"""What happened to the weights between consecutive checkpoints, held against Rule 1 of AdamW².

Rule 1 keeps σ_1(W_t) ≤ (1 + τ) σ_1(W_{t-1}) at every step by cutting α σ_1(∇W_t) to τ σ_1(W_{t-1}). Over n steps that
respect it, σ_1(W_{t+n} - W_t) ≤ ((1 + τ)^n - 1) σ_1(W_t). Where the left side is larger, at least one step of the n
was one that AdamW² at τ would have cut; where it is not, nothing follows, since steps may have undone one another.
Weight decay is part of a step here as it is in the optimizer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from qkspec import engine
from qkspec.checkpoints.sequence import Run, Source
from qkspec.checkpoints.store import Checkpoint
from qkspec.engine import Engine
from qkspec.errors import CheckpointError, InputError, QkspecError
from qkspec.layouts.find import Module, Plan
from qkspec.layouts.load import read
from qkspec.measuring import Settings, Skipped, chosen, plan_for
from qkspec.qk import QKLayer
from qkspec.spectrum import spectra
from qkspec.terms import Block, blocks, norm

F64 = NDArray[np.float64]

WORK_WORTH_PROCESSES = 8e9  # Q, K bytes x d_q over all intervals, about four CPU-seconds
PRECISION = {"bfloat16": 8, "float16": 11, "float8_e4m3fn": 4, "float8_e5m2": 3, "float64": 53}  # bits; float32 has 24


@dataclass(frozen=True)
class Increment:
    """One projection of one module between two checkpoints.

    Args:
        module: path of the attention module.
        layer: its number.
        projection: "q" or "k", all heads together.
        before, after: the steps.
        ratio: σ_1(W_after - W_before) / σ_1(W_before); infinite where W_before is zero.
        limit: (1 + τ)^(after - before) - 1.
        tau: the least τ under which no step need have been cut, (1 + ratio)^(1/n) - 1.
        rounding: what the stored dtype's rounding of both weights may add to the ratio.
    """

    module: str
    layer: int
    projection: str
    before: int
    after: int
    ratio: float
    limit: float
    tau: float
    rounding: float

    @property
    def bound(self) -> bool:
        """Whether AdamW² at τ would have cut at least one of these steps; NaN is not within the limit."""
        return not self.ratio <= self.limit + self.rounding


@dataclass(frozen=True)
class Change:
    """How M = W_q'W_k of each head of a module changed between two checkpoints, and by whose change.

    ΔM = ΔW_q'W_k + W_q'ΔW_k + ΔW_q'ΔW_k exactly.

    Args:
        module: path of the attention module.
        before, after: the steps.
        whole: (heads,) ‖ΔM‖_F / ‖M_before‖_F.
        by_q, by_k, by_both: (heads,) the same of each of the three parts.
        sigma1: (heads,) σ_1(ΔM) / σ_1(M_before).
    """

    module: str
    before: int
    after: int
    whole: F64
    by_q: F64
    by_k: F64
    by_both: F64
    sigma1: F64


@dataclass(frozen=True)
class Interval:
    """What changed between two checkpoints; ``name`` is the later one's."""

    name: str
    before: int
    after: int
    increments: tuple[Increment, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Terms:
    """The weight terms of equation 1 at one checkpoint."""

    name: str
    step: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Audit:
    """The audit of one run.

    Args:
        run: its name.
        tau: of Rule 1.
        increments: in the order of steps and layers.
        changes: likewise.
        terms: step and the blocks' terms of equation 1, if they were asked for.
        skipped: checkpoint to why it was left out.
    """

    run: str
    tau: float
    increments: tuple[Increment, ...]
    changes: tuple[Change, ...]
    terms: tuple[tuple[int, tuple[Block, ...]], ...]
    skipped: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, run: Run, tau: float, found: Iterable[Interval | Terms | Skipped]) -> "Audit":
        """Gather what ``follow`` yields.

        Raises:
            InputError: fewer than two checkpoints can be read, or their steps are not known.
        """
        items = list(found)
        skipped = {item.name: item.reason for item in items if isinstance(item, Skipped)}
        intervals = sorted((item for item in items if isinstance(item, Interval)), key=lambda i: (i.before, i.after))
        if not any(i.after > i.before for i in intervals):
            reason = next(iter(skipped.values()), "an audit needs two checkpoints")
            raise InputError(f"{run.path}: has fewer than two checkpoints of known steps ({reason})")
        if not any(i.increments for i in intervals):
            raise InputError(f"{run.path}: no two checkpoints have an attention module in common; check --layers")
        terms = [item for item in items if isinstance(item, Terms) and item.name not in skipped]
        return cls(
            run.name,
            tau,
            tuple(chain.from_iterable(i.increments for i in intervals)),
            tuple(chain.from_iterable(i.changes for i in intervals)),
            tuple((item.step, item.blocks) for item in terms),
            tuple((source.name, skipped[source.name]) for source in run.sources if source.name in skipped),
        )

    def first_bound(self) -> Increment | None:
        """Return the first increment that Rule 1 would have cut, the largest of those at one step; None if none."""
        bound = [i for i in self.increments if i.bound]
        return min(bound, key=lambda i: (i.after, -i.ratio), default=None)


def audit(run: Run, tau: float, settings: Settings | None = None, *, terms: bool = False) -> Audit:
    """Hold the changes of a run's query and key projections against Rule 1. Arguments as of ``follow``.

    Raises:
        InputError: fewer than two checkpoints can be read, or their steps are not known.
    """
    return Audit.of(run, tau, follow(run, tau, settings or Settings(), terms=terms))


def follow(run: Run, tau: float, settings: Settings, *, terms: bool = False) -> Iterator[Interval | Terms | Skipped]:
    """Yield what changed between the run's neighbouring checkpoints, two modules of weights in memory a worker.

    One that cannot be read is yielded as Skipped, and its neighbours become each other's.

    Args:
        run: its checkpoints.
        tau: of Rule 1, above 0.
        settings: layout, head counts, the choice of layers, and where the work is done.
        terms: measure the weight terms of equation 1 at every checkpoint first.

    Raises:
        UsageError: there is no Ray, or no cluster at the address.
    """
    settings = replace(settings, cache=None, workers=_workers(run, settings))
    left = list(run.sources)
    done: set[tuple[Source, ...]] = set()
    while missing := [task for task in _tasks(left, terms=terms) if task not in done]:
        for item in _run(partial(_measure, settings, tau), missing, settings):
            if isinstance(item, _Unreadable):
                if item.source in left:
                    left.remove(item.source)
                    yield Skipped(run.name, item.source.name, item.reason)
                continue
            yield item
        done.update(missing)


@dataclass(frozen=True)
class _Unreadable:
    source: Source
    reason: str


Found = Interval | Terms | _Unreadable


def _tasks(sources: Sequence[Source], *, terms: bool) -> list[tuple[Source, ...]]:
    """Return (source,) for the terms of a checkpoint, and (before, after) for what changed between two."""
    return [*((source,) for source in sources if terms), *pairwise(sources)]


def _run(
    function: Callable[[tuple[Source, ...]], Found], tasks: Sequence[tuple[Source, ...]], settings: Settings
) -> Iterator[Found]:
    if settings.engine is Engine.RAY:
        return engine.run_on_ray(function, tasks, address=settings.ray_address)
    return engine.run(function, tasks, workers=settings.workers)


def _workers(run: Run, settings: Settings) -> int:
    """Return how many processes are worth their start, judged by the first checkpoint."""
    if settings.workers or settings.engine is Engine.RAY or len(run.sources) < 2:
        return settings.workers or 1
    try:
        checkpoint = run.sources[0].open()
        try:
            found = plan_for(checkpoint, settings)
        finally:
            checkpoint.store.close()
    except QkspecError:
        return 1  # whatever it is, it is told when its turn comes
    work = float(sum(m.nbytes * m.d_q for m in (found.modules[i] for i in chosen(found, settings))))
    return engine.cpu_count() if work * (len(run.sources) - 1) > WORK_WORTH_PROCESSES else 1


def _measure(settings: Settings, tau: float, task: tuple[Source, ...]) -> Found:
    """Measure one checkpoint's terms, or what changed between two, in whatever process this is."""
    opened: list[_Opened] = []
    with ExitStack() as ends:
        try:
            for source in task:
                opened.append(_Opened.of(source, settings))
                ends.callback(opened[-1].checkpoint.store.close)
            return opened[0].terms() if len(opened) == 1 else _interval(opened[0], opened[1], tau)
        except _FailedError as failed:
            return _Unreadable(failed.source, str(failed.__cause__))


class _FailedError(Exception):
    """A checkpoint of a task cannot be read; the cause says why."""

    def __init__(self, source: Source) -> None:
        self.source = source


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Say which checkpoint it was that could not be read."""
    try:
        yield
    except QkspecError as error:
        raise _FailedError(source) from error


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that is open, its step and its chosen modules by name."""

    source: Source
    checkpoint: Checkpoint
    plan: Plan
    step: int
    modules: Mapping[str, Module]

    @classmethod
    def of(cls, source: Source, settings: Settings) -> "_Opened":
        with _reading(source):
            checkpoint = source.open()
            try:
                step, found = _step(checkpoint), plan_for(checkpoint, settings)
            except BaseException:
                checkpoint.store.close()
                raise
        modules = {found.modules[i].name: found.modules[i] for i in chosen(found, settings)}
        return cls(source, checkpoint, found, step, modules)

    def layer(self, name: str) -> QKLayer:
        with _reading(self.source):
            return read(self.checkpoint, self.plan, self.modules[name])

    def terms(self) -> Terms:
        with _reading(self.source):
            return Terms(self.source.name, self.step, tuple(blocks(self.checkpoint, self.plan)))


def _step(checkpoint: Checkpoint) -> int:
    if checkpoint.step is None:
        raise InputError(f"{checkpoint.path}: its step is not known, and Rule 1 counts steps; name it like step-000100")
    return checkpoint.step


def _interval(before: _Opened, after: _Opened, tau: float) -> Interval:
    increments: list[Increment] = []
    changes: list[Change] = []
    common = [name for name in after.modules if name in before.modules] if after.step > before.step else []
    for name in common:
        old, new = before.layer(name), after.layer(name)
        if (old.q.shape, old.k.shape) != (new.q.shape, new.k.shape):
            with _reading(after.source):
                raise CheckpointError(f"{name}: has other shapes than at step {before.step}: another model")
        increments += _increments(old, new, before.step, after.step, tau)
        changes.append(change(old, new, before.step, after.step))
    return Interval(after.source.name, before.step, after.step, tuple(increments), tuple(changes))


def change(old: QKLayer, new: QKLayer, before: int, after: int) -> Change:
    """Split the change of every head's M by whose change it is.

    Args:
        old: the module at the first checkpoint.
        new: the same at the second.
        before: step of the first.
        after: step of the second.
    """
    group = new.heads // new.kv_heads
    parts = [_split(old, new, slice(g * group, (g + 1) * group), slice(g, g + 1)) for g in range(new.kv_heads)]
    return Change(new.name, before, after, *np.concatenate(parts, axis=1))


def _split(old: QKLayer, new: QKLayer, heads: slice, key: slice) -> F64:
    """Return (5, heads) whole, by_q, by_k, by_both and sigma1 of one key head and its query heads."""
    q, k = (np.asarray(w, dtype=np.float64) for w in (old.q[heads], old.k[key]))
    dq, dk = np.asarray(new.q[heads], dtype=np.float64) - q, np.asarray(new.k[key], dtype=np.float64) - k
    size = _product_norm(q, k)
    # ΔM = [ΔW_q; W_q + ΔW_q]' [W_k; ΔW_k]: one product of width 2 d_q, so its σ are found without forming ΔM.
    left, right = np.concatenate([dq, q + dq], axis=1), np.concatenate([k, dk], axis=1)
    top, own = (spectra(a, b, eigenvalues=False).sigma[:, 0] for a, b in ((left, right), (q, k)))
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = [_product_norm(a, b) / size for a, b in ((left, right), (dq, k), (q, dk), (dq, dk))]
        return np.stack([*norms, top / own])


def _increments(old: QKLayer, new: QKLayer, before: int, after: int, tau: float) -> Iterator[Increment]:
    steps = after - before
    limit = allowed(tau, steps)
    for projection in ("q", "k"):
        was, is_now = (np.asarray(getattr(layer, projection), dtype=np.float64) for layer in (old, new))
        flat = was.reshape(-1, was.shape[2])
        size, moved = norm(flat), norm(is_now.reshape(flat.shape) - flat)
        ratio = moved / size if size > 0 else (math.nan if math.isnan(size) else math.inf if moved > 0 else 0.0)
        implied = math.expm1(math.log1p(ratio) / steps) if math.isfinite(ratio) else ratio
        noise = _rounding(flat, new.stored) / size if size > 0 else 0.0
        yield Increment(new.name, new.layer, projection, before, after, ratio, limit, implied, noise)


def allowed(tau: float, steps: int) -> float:
    """Return the relative change (1 + τ)^steps - 1 that Rule 1 allows; infinite where no float is that large."""
    growth = steps * math.log1p(tau)
    return math.expm1(growth) if growth < 700 else math.inf


def _rounding(w: F64, stored: str) -> float:
    """Return the spectral norm to expect of the rounding errors of two weights like w (rows, columns).

    Errors are at most 2^-p relative with p bits of precision, independent and even: a random matrix whose largest
    singular value is near (√rows + √columns) times their root mean square.
    """
    unit = 2.0 ** -PRECISION.get(stored, 24)
    size = float(np.sqrt(np.mean(w**2)))
    return unit * math.sqrt(2 / 3) * size * (math.sqrt(w.shape[0]) + math.sqrt(w.shape[1]))


def _product_norm(a: F64, b: F64) -> F64:
    """Return ‖a'b‖_F of each head for a (heads, r, d), b (1, r, d'), by two r x r Gram matrices."""
    grams = a @ a.swapaxes(1, 2), b @ b.swapaxes(1, 2)
    return np.asarray(np.sqrt(np.maximum(np.sum(grams[0] * grams[1], axis=(1, 2)), 0.0)))


def summary(found: Audit) -> Sequence[tuple[int, int, int, int, float, float]]:
    """Return a row an interval: before, after, projections cut, projections, largest ratio, least τ that cuts none."""
    rows = []
    for before, after in dict.fromkeys((i.before, i.after) for i in found.increments):
        own = [i for i in found.increments if (i.before, i.after) == (before, after)]
        worst = max(own, key=lambda i: math.inf if math.isnan(i.ratio) else i.ratio)
        rows.append((before, after, sum(i.bound for i in own), len(own), worst.ratio, worst.tau))
    return rows
