"""The straight line: paths to checkpoints to heads to readings to verdicts to a report."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkspec import activations, engine, losses, metrics
from qkspec.attention import DEFAULT_CONTEXT
from qkspec.checkpoints.sequence import Run, Source, find_runs
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import InputError, QkspecError
from qkspec.judging import SCHEMA, CheckpointFacts, Report, assemble, run_state
from qkspec.layouts.find import Module, Plan, plan, read
from qkspec.layouts.layout import Layout
from qkspec.readings import NO_STEP, Column, Readings, concatenate, text
from qkspec.theorem import Limits

F64 = NDArray[np.float64]

__all__ = [
    "SCHEMA",
    "CheckpointFacts",
    "Measured",
    "Report",
    "Settings",
    "Skipped",
    "analyze",
    "assemble",
    "judge",
    "measure",
    "measure_runs",
    "measure_source",
    "plan_for",
    "run_state",
]

WORK_WORTH_PROCESSES = 4e10  # Q, K bytes x d_q of a few CPU-seconds: below, starting processes costs more than it saves


@dataclass(frozen=True)
class Settings:
    """What to measure and how.

    Args:
        sizes: the s of the sec_s columns.
        limits: thresholds of the verdicts.
        layers, heads: only these numbers; empty is all.
        num_heads, num_kv_heads: for files that carry no head count.
        context: tokens in an attention row, for files that do not say.
        layout: a user's own layout.
        workers: processes; 0 chooses by the machine and the work.
        seed: of the tokens of the predicted maps.
        offsets: token distances Δ at which rotary modules are measured as well.
        activations: file of real activations, whose maps are measured beside the predicted ones.
    """

    sizes: tuple[int, ...] = metrics.DEFAULT_SIZES
    limits: Limits = field(default_factory=Limits)
    layers: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    num_heads: int | None = None
    num_kv_heads: int | None = None
    context: int | None = None
    layout: Layout | None = None
    workers: int = 1
    seed: int = 0
    offsets: tuple[int, ...] = ()
    activations: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metric columns."""
        return metrics.names(self.sizes, self.offsets, activations=self.activations is not None)


@dataclass(frozen=True)
class Measured:
    """One checkpoint, measured.

    Args:
        facts: its provenance.
        readings: one row a module and head.
        applicable: (rows,) whether Theorem 1 applies.
        spectra: attention module to (heads, d_q) singular values.
        skipped: module or checkpoint to the reason it was not measured.
    """

    facts: CheckpointFacts
    readings: Readings
    applicable: NDArray[np.bool_]
    spectra: Mapping[str, F64]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that could not be measured, and the sentence that says why."""

    run: str
    name: str
    reason: str


def analyze(paths: Sequence[str | Path], settings: Settings | None = None) -> Report:
    """Measure and judge every head of every checkpoint of ``paths``.

    Args:
        paths: checkpoint files, directories, runs, globs or URLs (see find_runs).
        settings: what to measure; None is the defaults.

    Raises:
        InputError: a path is no checkpoint, or nothing at all could be measured.
    """
    settings = settings or Settings()
    return judge(measure_runs(find_runs([str(path) for path in paths]), settings), settings)


def measure_runs(runs: Iterable[Run], settings: Settings) -> Iterator[Measured | Skipped]:
    """Measure the checkpoints of runs in turn; one that cannot be read is yielded as Skipped and hides no other."""
    for run in runs:
        for source in run.sources:
            yield measure_source(run.name, source, settings)


def measure_source(run: str, source: Source, settings: Settings) -> Measured | Skipped:
    """Measure one checkpoint of a run, or say why that cannot be done."""
    try:
        return measure(source.open(), settings, run=run, source=source)
    except QkspecError as error:
        return Skipped(run, source.name, str(error))


def measure(checkpoint: Checkpoint, settings: Settings, *, run: str = "", source: Source | None = None) -> Measured:
    """Measure every head of one checkpoint, one module in memory at a time.

    Args:
        checkpoint: opened; closed on return.
        settings: what to measure.
        run: name of its run.
        source: how worker processes can open it again; without it the work is done in this process.

    Raises:
        CheckpointError, LayoutError: it cannot be read, or its q and k cannot be told apart with certainty.
    """
    try:
        found = plan_for(checkpoint, settings)
        chosen = [m for m in found.modules if not settings.layers or m.layer in settings.layers]
        workers = _workers(settings, chosen) if source is not None else 1
        if workers > 1:
            parts = list(engine.run(partial(_measure_task, source, settings), chosen, workers=workers))
        else:
            parts = [_measure_module(checkpoint, found, module, settings) for module in chosen]
    finally:
        checkpoint.store.close()
    return _gather(checkpoint, found, parts, settings, run)


def plan_for(checkpoint: Checkpoint, settings: Settings) -> Plan:
    """Find the attention modules of a checkpoint by the settings' layout and head counts."""
    return plan(checkpoint, layout=settings.layout, num_heads=settings.num_heads, num_kv_heads=settings.num_kv_heads)


def judge(results: Iterable[Measured | Skipped], settings: Settings) -> Report:
    """Assemble measured checkpoints into a report with verdicts.

    Raises:
        InputError: there is no head among them.
    """
    measured: list[Measured] = []
    skipped: dict[str, str] = {}
    for result in results:
        if isinstance(result, Skipped):
            skipped[f"{result.run}/{result.name}"] = result.reason
            continue
        measured.append(result)
        where = f"{result.facts.run}/{result.facts.name}"
        skipped.update({f"{where}/{module}": reason for module, reason in result.skipped.items()})
    readings = concatenate([m.readings for m in measured], settings.columns)
    if not len(readings):
        raise InputError(next(iter(skipped.values())) if len(skipped) == 1 else _nothing(skipped))
    applicable = np.concatenate([m.applicable for m in measured if len(m.readings)])
    paths: dict[str, list[str]] = {}
    for part in measured:
        paths.setdefault(part.facts.run, []).append(part.facts.path)
    return assemble(
        readings,
        applicable,
        settings.limits,
        checkpoints=tuple(m.facts for m in measured),
        skipped=skipped,
        spectra={
            f"{m.facts.run}/{m.facts.name}/{module}": sigma for m in measured for module, sigma in m.spectra.items()
        },
        losses={run: curve for run, of_run in paths.items() if (curve := losses.find(of_run)) is not None},
    )


@dataclass(frozen=True)
class _Part:
    """One module's numbers, or the reason there are none."""

    module: Module
    values: Mapping[str, F64] = field(default_factory=dict)
    sigma: F64 | None = None
    applicable: bool = True
    remarks: tuple[str, ...] = ()
    problem: str = ""


def _measure_task(source: Source, settings: Settings, module: Module) -> _Part:
    """Measure one module in a worker process, which opens the checkpoint for itself."""
    checkpoint = source.open()
    try:
        return _measure_module(checkpoint, plan_for(checkpoint, settings), module, settings)
    finally:
        checkpoint.store.close()


def _measure_module(checkpoint: Checkpoint, found: Plan, module: Module, settings: Settings) -> _Part:
    try:
        layer = read(checkpoint, found, module)
    except QkspecError as error:
        return _Part(module, problem=str(error))
    remarks = layer.remarks
    if layer.context is None:
        layer = replace(layer, context=settings.context)
        if settings.context is None:
            remarks = (*remarks, f"context length not in the config: {DEFAULT_CONTEXT} tokens assumed for κ")
    if layer.unknown:
        remarks = (*remarks, f"not known: {', '.join(layer.unknown)}")
    values, sigma = metrics.measure(layer, settings.sizes, seed=settings.seed)
    values |= metrics.at_offsets(layer, settings.offsets)
    if settings.activations is not None:
        given = activations.of_module(_activations(settings.activations), layer, checkpoint.name)
        values |= metrics.on_activations(layer, *given)
    return _Part(module, values, sigma, layer.softmax and layer.qk_norm is None, remarks)


@lru_cache(maxsize=1)
def _activations(path: str) -> Mapping[str, NDArray[np.float32]]:
    return activations.load(path)


def _gather(checkpoint: Checkpoint, found: Plan, parts: Sequence[_Part], settings: Settings, run: str) -> Measured:
    good = [part for part in parts if part.sigma is not None]
    tables = [_table(checkpoint, part, settings, run) for part in good]
    applicable = [np.full(len(table), part.applicable) for table, part in zip(tables, good, strict=True)]
    readings = concatenate(tables, settings.columns)
    remarks = dict.fromkeys((*found.remarks, *(remark for part in good for remark in part.remarks)))
    facts = CheckpointFacts(
        run=run,
        name=checkpoint.name,
        step=checkpoint.step,
        path=checkpoint.path,
        format=checkpoint.store.format,
        family=found.family,
        stored=", ".join(dict.fromkeys(part.module.stored for part in good)),
        modules=len(good),
        heads=len(readings),
        remarks=tuple(remarks),
    )
    skipped = {**found.skipped, **{part.module.name: part.problem for part in parts if part.problem}}
    spectra = {part.module.name: part.sigma for part in good if part.sigma is not None}
    return Measured(facts, readings, np.concatenate([np.empty(0, bool), *applicable]), spectra, skipped)


def _table(checkpoint: Checkpoint, part: _Part, settings: Settings, run: str) -> Readings:
    module = part.module
    heads = np.arange(module.heads, dtype=np.int64)
    step = NO_STEP if checkpoint.step is None else checkpoint.step
    columns: dict[str, Column] = {
        "run": text(run, module.heads),
        "checkpoint": text(checkpoint.name, module.heads),
        "step": np.full(module.heads, step, dtype=np.int64),
        "block": text(module.block, module.heads),
        "layer": np.full(module.heads, module.layer, dtype=np.int64),
        "module": text(module.name, module.heads),
        "head": heads,
        "kv_head": heads // (module.heads // module.kv_heads),
        "d_model": np.full(module.heads, module.d_model, dtype=np.int64),
        "d_q": np.full(module.heads, module.d_q, dtype=np.int64),
        **part.values,
    }
    table = Readings(columns)
    return table.where(np.isin(heads, list(settings.heads))) if settings.heads else table


def _workers(settings: Settings, modules: Sequence[Module]) -> int:
    if settings.workers:
        return min(settings.workers, max(len(modules), 1))
    work = sum(m.nbytes * m.d_q for m in modules)
    return min(engine.cpu_count(), len(modules)) if work > WORK_WORTH_PROCESSES else 1


def _nothing(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return "nothing to measure: no attention head was found"
    first, reason = next(iter(skipped.items()))
    return f"nothing to measure: all {len(skipped)} inputs were skipped, the first ({first}) because: {reason}"
