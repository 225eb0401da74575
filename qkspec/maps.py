"""The attention maps themselves, as small pictures of a bounded number of heads, for a page to show.

Readings keep what is read off a map; the map is thrown away. Here the weights of a few checkpoints are read once more:
of each run the last checkpoint, the one at which a head first turned malignant, the first, then some in between. What
the weights predict is drawn, and beside it the maps of given inputs or of a run of the model, if they were asked for.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qkspec import given
from qkspec.attention import F32, MAP_TOKENS, map_indices, predicted_map
from qkspec.errors import QkspecError
from qkspec.layouts.find import Plan, plan
from qkspec.layouts.load import read
from qkspec.theorem import GRAVITY, Verdict
from qkspec.trajectory import HeadTable

if TYPE_CHECKING:
    from qkspec.checkpoints.sequence import Run, Source
    from qkspec.checkpoints.store import Checkpoint
    from qkspec.judging import Report
    from qkspec.measuring import Settings
    from qkspec.qk import QKLayer

F64 = NDArray[np.float64]
Codes = NDArray[np.uint8]

BYTES = 3 << 20  # of all pictures of a report
MOMENTS = 16  # checkpoints of a run
CELLS = (1, 2, 4)  # tokens a side of a cell: as few as let every head have two pictures
DRAWS = 4  # of random tokens, from which the indices' Monte-Carlo error is taken
SECONDS = 10.0  # to spend
WITH_ERRORS = 0.25  # share of them while errors are drawn, too, which takes four times as long
INDICES = ("entropy", "rank", "diagonal", "columns")  # whose errors are kept, in this order


@dataclass(frozen=True)
class Maps:
    """Pictures of maps.

    Args:
        pictures: "run/checkpoint/module" to (heads, t, t) uint8, 255 √(attention weight), rows are queries: of the
            maps that the weights predict.
        errors: the same keys to (4, heads): standard deviation of each of INDICES over draws of random tokens, the
            Monte-Carlo error of the one draw that readings hold.
        cell: tokens a side of a cell; a cell holds the mean over its queries of the mass on its keys.
        note: why a head or checkpoint may have no picture, "" if each has one.
        given: kind of map ("embedded", "random", "measured") to the same keys and pictures: of the first 64 tokens of
            the first sequence.
    """

    pictures: Mapping[str, Codes] = field(default_factory=dict)
    errors: Mapping[str, F64] = field(default_factory=dict)
    cell: int = 1
    note: str = ""
    given: Mapping[str, Mapping[str, Codes]] = field(default_factory=dict)


def draw(report: "Report", runs: "Sequence[Run]", settings: "Settings", *, seconds: float = SECONDS) -> Maps:
    """Make the maps of a report's heads once more and keep pictures of them, within bounds of time and size.

    Args:
        report: whose rows say which heads come first.
        runs: where its checkpoints lie.
        settings: that they were measured by; the same seed gives the same maps.
        seconds: to spend, and as many again on maps that are not predicted; what is not done by then has no picture.
    """
    sources = {(run.name, source.name): source for run in runs for source in run.sources}
    kinds = given.kinds(settings)
    most = BYTES // (1 + len(kinds))
    cell = _cell(sum(len(story.heads) for story in report.stories.values()), most)
    pictures: dict[str, Codes] = {}
    errors: dict[str, F64] = {}
    bounds = _Bounds(seconds, most)
    for key, layer, _ in _layers(report, sources, settings):
        if bounds.reached():
            break
        first = predicted_map(layer, seed=settings.seed)
        pictures[key] = bounds.kept(picture(first, cell))
        if bounds.spent() < seconds * WITH_ERRORS:
            errors[key] = _errors(layer, first, settings.seed)
    note = bounds.note or _thinned(report, pictures)
    if not kinds:
        return Maps(pictures, errors, cell, note)
    drawn: dict[str, dict[str, Codes]] = {kind: {} for kind in kinds}
    bounds = _Bounds(seconds, most * len(kinds))
    for key, layer, checkpoint in _layers(report, sources, settings):
        if any(drawn.values()) and bounds.reached():  # a run of a large model takes longer than all that there is
            break
        for kind, found in given.maps(checkpoint, layer, settings):
            drawn[kind][key] = bounds.kept(picture(found, cell))
    return Maps(pictures, errors, cell, note or bounds.note, {kind: own for kind, own in drawn.items() if own})


class _Bounds:
    """How much time and room is left for pictures, and which of them ended first."""

    def __init__(self, seconds: float, most: int) -> None:
        self._start, self._seconds, self._left, self.note = time.monotonic(), seconds, most, ""

    def spent(self) -> float:
        return time.monotonic() - self._start

    def kept(self, codes: Codes) -> Codes:
        self._left -= codes.nbytes
        return codes

    def reached(self) -> bool:
        full, late = self._left <= 0, self.spent() > self._seconds
        if full or late:
            self.note = f"maps are kept until they fill {BYTES >> 20} MiB" if full else "the time for maps was over"
        return full or late


def picture(maps: F32, cell: int = 1) -> Codes:
    """Return maps (heads, T', T') as (heads, t, t) uint8, t = ⌈T'/cell⌉: 255 √p, so that small weights show.

    A cell is the mean over its queries of the mass on its keys, so that rows still sum to one; 0 where not finite.
    """
    if cell > 1:
        starts = np.arange(0, maps.shape[1], cell)
        rows = np.diff(np.append(starts, maps.shape[1])).astype(np.float32)
        maps = np.add.reduceat(np.add.reduceat(maps, starts, axis=1) / rows[:, None], starts, axis=2)
    codes: Codes = np.round(255 * np.sqrt(np.nan_to_num(maps, nan=0.0).clip(0, 1))).astype(np.uint8)
    return codes


def _errors(layer: "QKLayer", first: F32, seed: int) -> F64:
    """Return the standard deviation of the INDICES over draws, (4, heads)."""
    drawn = [first, *(predicted_map(layer, seed=seed + i) for i in range(1, DRAWS))]
    found = [map_indices(maps, causal=layer.causal) for maps in drawn]
    return np.stack([np.std([getattr(one, name) for one in found], axis=0, ddof=1) for name in INDICES])


def _layers(
    report: "Report", sources: "Mapping[tuple[str, str], Source]", settings: "Settings"
) -> "Iterator[tuple[str, QKLayer, Checkpoint]]":
    """Yield (key, weights, open checkpoint) of the modules that have maps, the most telling first."""
    for run, name, modules in _jobs(report):
        if (run, name) not in sources:
            continue
        try:
            checkpoint = sources[run, name].open()
        except QkspecError:
            continue
        try:
            for module, layer in _modules(checkpoint, modules, settings):
                yield f"{run}/{name}/{module}", layer, checkpoint
        finally:
            checkpoint.store.close()


def _modules(checkpoint: "Checkpoint", modules: Sequence[str], settings: "Settings") -> "Iterator[tuple[str, QKLayer]]":
    """Yield the weights of some modules of a checkpoint, in that order; what cannot be read any more is left out."""
    found = _planned(checkpoint, settings)
    by_name = {} if found is None else {module.name: module for module in found.modules}
    for name in modules:
        if found is None or name not in by_name:
            continue
        try:
            layer = read(checkpoint, found, by_name[name])
        except QkspecError:
            continue
        if layer.softmax and not ("input norm" in layer.unknown and layer.qk_norm is None):
            yield name, layer if layer.context else replace(layer, context=settings.context)


def _planned(checkpoint: "Checkpoint", settings: "Settings") -> Plan | None:
    try:
        return plan(
            checkpoint, layout=settings.layout, num_heads=settings.num_heads, num_kv_heads=settings.num_kv_heads
        )
    except QkspecError:
        return None


def _jobs(report: "Report") -> Iterator[tuple[str, str, list[str]]]:
    """Yield (run, checkpoint, its modules gravest first), the most telling checkpoints of every run first."""
    readings = report.readings
    plans = []
    for run, rows in readings.groups("run"):
        table = HeadTable.of(readings.where(rows))
        bad = table.row[report.verdicts[rows] == Verdict.MALIGNANT]
        chosen = telling(len(table.checkpoints), int(bad.min()) if len(bad) else None)
        plans.append([(run, table.checkpoints[i], np.flatnonzero(rows)[table.row == i]) for i in chosen])
    for place in range(max(map(len, plans), default=0)):
        for moments in plans:
            if place < len(moments):
                run, checkpoint, own = moments[place]
                yield run, checkpoint, _gravest_first(report, own)


def telling(count: int, turn: int | None) -> list[int]:
    """Return at most MOMENTS of ``count`` places: the last, where a head turned, the first, and some in between."""
    spaced = [round(i * (count - 1) / (MOMENTS - 1)) for i in range(MOMENTS)]
    wanted = [count - 1, *([] if turn is None else [turn]), 0, *spaced]
    return list(dict.fromkeys(wanted))[:MOMENTS]


def _gravest_first(report: "Report", rows: NDArray[np.int64]) -> list[str]:
    sizes = report.readings.metric("freezing_ratio")
    best: dict[str, tuple[int, float]] = {}
    for row in rows.tolist():
        name = report.readings["module"][row]
        size = float(np.nan_to_num(sizes[row], nan=-1.0))
        key = (GRAVITY.index(report.verdicts[row]), -size)
        best[name] = min(best.get(name, key), key)
    return sorted(best, key=lambda name: best[name])


def _cell(heads: int, most: int) -> int:
    return next((cell for cell in CELLS if 2 * heads * (MAP_TOKENS // cell) ** 2 <= most), CELLS[-1])


def _thinned(report: "Report", pictures: Mapping[str, Codes]) -> str:
    readings = report.readings
    every = len(set(zip(*(readings[name].tolist() for name in ("run", "checkpoint", "module")), strict=True)))
    return "" if len(pictures) >= every else f"maps are kept of at most {MOMENTS} checkpoints a run"
