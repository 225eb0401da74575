"""Measure one checkpoint: its attention modules to parts, and the parts to the checkpoint's own table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkspec import activations, embeddings, metrics
from qkspec.activations import Runner
from qkspec.attention import DEFAULT_CONTEXT
from qkspec.checkpoints.store import Checkpoint
from qkspec.engine import Engine, cpu_count, one_ahead
from qkspec.errors import InputError, QkspecError
from qkspec.judging import CheckpointFacts
from qkspec.layouts.find import Module, Plan, plan
from qkspec.layouts.layout import Layout
from qkspec.layouts.load import read
from qkspec.qk import QKLayer
from qkspec.readings import NO_STEP, Column, Readings, concatenate, text
from qkspec.spectrum import Spectra
from qkspec.theorem import Limits

F64 = NDArray[np.float64]
Read = QKLayer | str  # a module's weights, or why they cannot be read

DEVICE_BATCH = 1 << 30  # bytes of Q and K in their files that go to a GPU together


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
        workers: processes; 0 chooses by the machine and the work. With a GPU it is always this one.
        seed: of the tokens of the predicted maps.
        eigenvalues: whether positive_fraction is measured, a quarter of the time, which no verdict needs.
        offsets: token distances Δ at which rotary modules are measured as well.
        embeddings: predict maps of embedded tokens, too, where the checkpoint has the embeddings.
        activations: file of real activations, whose maps are measured beside the predicted ones.
        runner: runs each checkpoint's model for its maps (qkspec.running); it is asked in this process if workers is 1.
        device: "cpu", "cuda", "mps", or "auto", which chooses by the work and by what there is.
        engine: where the work is done.
        ray_address: of a running Ray cluster; None starts one on this machine.
        cache: folder of results of earlier analyses; None keeps none.
        keep_spectra: whether results carry their singular values, for a report directory.
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
    eigenvalues: bool = True
    offsets: tuple[int, ...] = ()
    embeddings: bool = False
    activations: str | None = None
    runner: Runner | None = None
    device: str = "cpu"
    engine: Engine = Engine.LOCAL
    ray_address: str | None = None
    cache: Path | None = None
    keep_spectra: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metric columns."""
        kinds = {self.runner.kind} if self.runner is not None else set()
        kinds |= {"embedded"} if self.embeddings else set()
        kinds |= {"measured"} if self.activations is not None else set()
        return metrics.names(self.sizes, self.offsets, kinds)


@dataclass(frozen=True)
class Measured:
    """One checkpoint, measured.

    Args:
        facts: its provenance.
        readings: one row a module and head.
        applicable: (rows,) whether Theorem 1 applies.
        spectra: attention module to (heads, d_q) singular values; empty if they were not kept.
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


@dataclass(frozen=True)
class Part:
    """One module's numbers, or the reason there are none. ``module`` is its place in the plan."""

    module: int
    values: Mapping[str, F64] = field(default_factory=dict)
    sigma: F64 | None = None
    applicable: bool = True
    remarks: tuple[str, ...] = ()
    problem: str = ""


def measure(checkpoint: Checkpoint, settings: Settings, *, run: str = "") -> Measured:
    """Measure every head of one checkpoint in this process, one module in memory at a time.

    Args:
        checkpoint: opened; closed on return.
        settings: what to measure.
        run: name of its run.

    Raises:
        CheckpointError, LayoutError: it cannot be read, or its q and k cannot be told apart with certainty.
    """
    try:
        found = plan_for(checkpoint, settings)
        parts = measure_modules(checkpoint, found, chosen(found, settings), settings)
    finally:
        checkpoint.store.close()
    return gather(checkpoint, found, parts, settings, run)


def plan_for(checkpoint: Checkpoint, settings: Settings) -> Plan:
    """Find the attention modules of a checkpoint by the settings' layout and head counts."""
    return plan(checkpoint, layout=settings.layout, num_heads=settings.num_heads, num_kv_heads=settings.num_kv_heads)


def chosen(found: Plan, settings: Settings) -> list[int]:
    """Return the places in a plan of the modules that the settings ask for."""
    return [i for i, m in enumerate(found.modules) if not settings.layers or m.layer in settings.layers]


def measure_modules(checkpoint: Checkpoint, found: Plan, modules: Iterable[int], settings: Settings) -> list[Part]:
    """Measure some modules of a checkpoint: on a CPU one after the other, on a GPU those of one batch together.

    The next ones are read meanwhile, so that a slow disk or server and the processor work at the same time.
    """
    ahead = map if _reads_more(settings) else one_ahead
    parts: list[Part] = []
    if settings.device == "cpu":
        for index, layer in ahead(lambda index: (index, _read(checkpoint, found, index, settings)), modules):
            parts.append(_part(checkpoint, index, layer, settings))
            del layer  # before the one after the next is begun: a list comprehension would hold three
        return parts
    batches = ahead(
        lambda batch: [(index, _read(checkpoint, found, index, settings)) for index in batch], _batches(found, modules)
    )
    for batch in batches:
        parts += _measure_on_device(checkpoint, batch, settings)
        del batch
    return parts


def _batches(found: Plan, modules: Iterable[int]) -> Iterator[list[int]]:
    """Cut modules into batches for a GPU."""
    batch: list[int] = []
    for index in modules:
        batch.append(index)
        if sum(found.modules[i].nbytes for i in batch) >= DEVICE_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def gather(checkpoint: Checkpoint, found: Plan, parts: Sequence[Part], settings: Settings, run: str) -> Measured:
    """Return the measured parts of a checkpoint as one table, in the order of the plan."""
    good = [(found.modules[part.module], part) for part in parts if part.sigma is not None]
    tables = [_table(checkpoint, module, part, settings, run) for module, part in good]
    applicable = [np.full(len(table), part.applicable) for table, (_, part) in zip(tables, good, strict=True)]
    readings = concatenate(tables, settings.columns)
    remarks = dict.fromkeys((*found.remarks, *(remark for _, part in good for remark in part.remarks)))
    facts = CheckpointFacts(
        run=run,
        name=checkpoint.name,
        step=checkpoint.step,
        path=checkpoint.path,
        format=checkpoint.store.format,
        family=found.family,
        stored=", ".join(dict.fromkeys(module.stored for module, _ in good)),
        modules=len(good),
        heads=len(readings),
        remarks=tuple(remarks),
        found=None if settings.heads else sum(found.modules[part.module].heads for part in parts),
    )
    skipped = {**found.skipped, **{found.modules[part.module].name: part.problem for part in parts if part.problem}}
    spectra = {module.name: part.sigma for module, part in good if part.sigma is not None}
    return Measured(facts, readings, np.concatenate([np.empty(0, bool), *applicable]), spectra, skipped)


def _measure_on_device(checkpoint: Checkpoint, batch: Sequence[tuple[int, Read]], settings: Settings) -> list[Part]:
    from concurrent.futures import ThreadPoolExecutor

    from qkspec import spectrum_torch
    from qkspec.spectrum import Weights

    def weigh(layer: QKLayer) -> Weights:
        return replace(Weights.of(*metrics.folding(layer)), eigenvalues=settings.eigenvalues)

    # Beside a GPU it is the predicted maps that take the time: they are made in threads, as far as no store is read.
    with ThreadPoolExecutor(1 if _reads_more(settings) else cpu_count()) as threads:
        weights = list(threads.map(weigh, [layer for _, layer in batch if isinstance(layer, QKLayer)]))
        spectra = spectrum_torch.spectra_of(weights, device=settings.device)
        parts = [
            threads.submit(
                _part, checkpoint, index, layer, settings, next(spectra) if isinstance(layer, QKLayer) else None
            )
            for index, layer in batch
        ]
        return [part.result() for part in parts]


def _reads_more(settings: Settings) -> bool:
    """Whether more of the checkpoint is read while a module is measured; a store serves one thread."""
    return settings.embeddings or settings.runner is not None


def _read(checkpoint: Checkpoint, found: Plan, index: int, settings: Settings) -> Read:
    """Read a module, and how long its rows are: here, since a store serves the thread that reads ahead."""
    try:
        layer = read(checkpoint, found, found.modules[index])
        context = layer.context or settings.context or embeddings.positions(checkpoint, layer)
    except QkspecError as error:
        return str(error)
    return replace(layer, context=context)


def _part(checkpoint: Checkpoint, index: int, layer: Read, settings: Settings, spectra: Spectra | None = None) -> Part:
    if isinstance(layer, str):
        return Part(index, problem=layer)
    remarks = layer.remarks
    if layer.context is None:
        remarks = (*remarks, f"context length not in the config: {DEFAULT_CONTEXT} tokens assumed for κ")
    if layer.unknown:
        remarks = (*remarks, f"not known: {', '.join(layer.unknown)}")
    values, sigma = metrics.measure(
        layer, settings.sizes, seed=settings.seed, found=spectra, eigenvalues=settings.eigenvalues
    )
    values |= metrics.at_offsets(layer, settings.offsets)
    if settings.embeddings:
        values |= metrics.on_activations(
            layer, embeddings.inputs(checkpoint, layer, seed=settings.seed), kind="embedded"
        )
    if settings.activations is not None:
        given = activations.of_module(activations.loaded(settings.activations), layer, checkpoint.name)
        values |= metrics.on_activations(layer, *given)
    if settings.runner is not None:
        try:
            run = settings.runner(checkpoint, layer)
            values |= run
            if not all(np.isfinite(run[name]).all() for name in run if name.endswith("_entropy")):
                remarks = (*remarks, f"{layer.name}: its maps in a run of the model are not finite")
        except InputError as error:  # it is judged by what the weights alone predict
            remarks = (*remarks, str(error))
    return Part(index, values, sigma, layer.softmax and layer.qk_norm is None, remarks)


def _table(checkpoint: Checkpoint, module: Module, part: Part, settings: Settings, run: str) -> Readings:
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
