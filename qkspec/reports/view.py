"""One run of a report as a grid of checkpoints by heads, with the sentences that every output says about it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qkspec import theorem
from qkspec.analysis import CheckpointFacts, Report
from qkspec.courses import Flag
from qkspec.curve import final
from qkspec.judging import Story
from qkspec.readings import NO_STEP, Readings
from qkspec.theorem import GRAVITY, KINDS, Condition, Verdict, map_index
from qkspec.trajectory import ALARM, LOST, SURGE, WARNED, HeadTable, RunState

F64 = NDArray[np.float64]
Rows = NDArray[np.int64]

QUIET = (Verdict.HEALTHY, Verdict.NOT_APPLICABLE)  # verdicts that no list of troubled heads shows


@dataclass(frozen=True)
class RunView:
    """One run.

    Args:
        report: the whole report.
        name: of the run.
        state: what its heads say together.
        facts: its checkpoints, in the order of the grid.
        table: index of its checkpoints and heads.
        grid: (checkpoints, heads) rows of report.readings; -1 where a checkpoint lacks a head.
    """

    report: Report
    name: str
    state: RunState
    facts: tuple[CheckpointFacts, ...]
    table: HeadTable
    grid: Rows

    @classmethod
    def of(cls, report: Report, run: str) -> "RunView":
        """View one run of a report by its name."""
        mask = next(rows for name, rows in report.readings.groups("run") if name == run)
        rows = np.flatnonzero(mask)
        table = HeadTable.of(report.readings.where(mask))
        grid = np.full((len(table.checkpoints), len(table.heads)), -1, dtype=np.int64)
        grid[table.row, table.column] = rows
        by_name = {fact.name: fact for fact in report.checkpoints if fact.run == run}
        facts = tuple(by_name[name] for name in table.checkpoints if name in by_name)
        return cls(report, run, report.states[run], facts, table, grid)

    @property
    def story(self) -> Story | None:
        """What its heads and its loss did over the steps."""
        return self.report.stories.get(self.name)

    def flags(self, row: int) -> tuple[Flag, ...]:
        """Return what is to be said of one head over the steps, given one of its rows."""
        if self.story is None or not self.has_steps:
            return ()
        readings = self.report.readings
        return self.story.courses.flags(self.story.heads.index((readings["module"][row], int(readings["head"][row]))))

    @property
    def steps(self) -> Rows:
        """(checkpoints,) steps, or the checkpoints' numbers."""
        return self.table.steps

    @property
    def has_steps(self) -> bool:
        """Whether the checkpoints' steps are known; else they are counted."""
        return bool((self.report.readings["step"][self.grid[self.grid >= 0]] != NO_STEP).all())

    def at(self, index: int) -> str:
        """Name the moment of checkpoint ``index``: "step 100", or the checkpoint's name where steps are not known."""
        return f"step {self.steps[index]}" if self.has_steps else self.table.checkpoints[index]

    def metric(self, name: str) -> F64:
        """Return a metric as (checkpoints, heads), NaN where it is missing."""
        return np.where(self.grid >= 0, self.report.readings.metric(name)[self.grid], np.nan)

    def judged_map(self, index: str, rows: Sequence[int]) -> tuple[list[float], list[str]]:
        """Return an index ("entropy", "rank") of the maps that rows were judged by, and the kinds of those maps."""
        values, places = map_index(self.report.readings, index)
        return [float(values[row]) for row in rows], [KINDS[places[row]] for row in rows]

    def verdict(self, row: int) -> Verdict:
        """Return the verdict of a row of the report."""
        found: Verdict = self.report.verdicts[row]
        return found

    def codes(self) -> NDArray[np.int8]:
        """Return the verdicts as (checkpoints, heads) places in GRAVITY, -1 where a checkpoint lacks a head."""
        place = {verdict: i for i, verdict in enumerate(GRAVITY)}
        flat = np.array([place[v] for v in self.report.verdicts[self.grid.ravel()]], dtype=np.int8)
        return np.where(self.grid >= 0, flat.reshape(self.grid.shape), np.int8(-1))

    def last_rows(self) -> Rows:
        """Return the rows of the heads that the last checkpoint has."""
        rows = self.grid[-1]
        return np.asarray(rows[rows >= 0])

    def counts(self, index: int = -1) -> Counter[Verdict]:
        """Count the verdicts at one checkpoint."""
        rows = self.grid[index]
        return Counter(self.report.verdicts[rows[rows >= 0]].tolist())

    def worst(self) -> list[int]:
        """Return the rows of the last checkpoint's troubled heads, by gravity and then by κ, gravest first."""
        rows = [int(row) for row in self.last_rows() if self.verdict(int(row)) not in QUIET]
        size = self.report.readings.metric("freezing_ratio")
        return sorted(rows, key=lambda row: (GRAVITY.index(self.verdict(row)), -np.nan_to_num(size[row], nan=-1.0)))

    def since(self, row: int) -> int | None:
        """Return the index of the checkpoint from which a head of the last one has had its verdict without a break."""
        column = int(np.flatnonzero(self.grid[-1] == row)[0])
        index: int | None = None
        for i in range(len(self.grid) - 1, -1, -1):
            if self.grid[i, column] < 0 or self.verdict(int(self.grid[i, column])) is not self.verdict(row):
                break
            index = i
        return index

    def first_turn(self) -> int | None:
        """Return the row of the head that turned malignant first, by the largest κ of several at one checkpoint."""
        bad = self.report.verdicts[self.grid] == Verdict.MALIGNANT
        bad &= self.grid >= 0
        if not bad.any():
            return None
        index = int(bad.any(axis=1).argmax())
        rows = self.grid[index][bad[index]]
        return int(rows[np.nan_to_num(self.report.readings.metric("freezing_ratio")[rows], nan=-1.0).argmax()])

    def index_of(self, row: int) -> int:
        """Return the checkpoint's place in the grid of a row of the report."""
        return int(np.argwhere(self.grid == row)[0, 0])

    def modules(self) -> list[tuple[str, int, str, Rows]]:
        """Return block, layer, module and its columns of the grid, in the order of the checkpoint's layers."""
        readings = self.report.readings
        found: dict[str, list[int]] = {}
        for column, (module, _) in enumerate(self.table.heads):
            found.setdefault(module, []).append(column)
        out = []
        for module, columns in found.items():
            row = int(self.grid[:, columns[0]].max())
            out.append((str(readings["block"][row]), int(readings["layer"][row]), module, np.array(columns)))
        return sorted(out, key=lambda item: (item[0], item[1]))

    def skipped(self) -> dict[str, str]:
        """Return what was skipped in this run, without the run's name in front."""
        lead = f"{self.name}/"
        return {name[len(lead) :]: why for name, why in self.report.skipped.items() if name.startswith(lead)}

    def remarks(self) -> list[str]:
        """Return what was remarked on its checkpoints, each once."""
        return list(dict.fromkeys(remark for fact in self.facts for remark in fact.remarks))


def views(report: Report) -> Iterator[RunView]:
    """Yield the runs of a report in their order."""
    for run in report.states:
        yield RunView.of(report, run)


def what_was_read(view: RunView) -> str:
    """Return one line on the input: checkpoints, steps, family, stored type, coverage."""
    n = len(view.table.checkpoints)
    parts = ["1 checkpoint" if n == 1 else f"{n} checkpoints"]
    if view.has_steps:
        parts[0] += f", step {view.steps[0]}" if n == 1 else f", steps {view.steps[0]} to {view.steps[-1]}"
    parts.append(", ".join(dict.fromkeys(fact.family for fact in view.facts)))
    parts.append(", ".join(dict.fromkeys(fact.stored for fact in view.facts)))
    total = max([len(view.table.heads), *(fact.found for fact in view.facts if fact.found is not None)])
    layers = len(view.modules())
    parts.append(f"{len(view.last_rows())}/{total} heads in {layers} layer{'s' * (layers != 1)}")
    return " · ".join(part for part in parts if part)


def state_sentence(view: RunView) -> str:
    """Return what the run's state rests on, as one sentence."""
    state = view.state
    if state.verdict == "broken":
        return f"weights hold NaN or Inf at {view.at(-1)}"
    if not np.isfinite(state.share):
        dead = f": W_qᵀW_k = 0 in {state.dead} of {len(view.last_rows())}" if state.dead else ""
        return f"no head could be judged at {view.at(-1)}{dead}"
    judged, where = state.judged, view.at(-1)
    certain = f"κ ≥ {number(view.report.limits.certain)}"
    if state.verdict == "lost":
        share = f"{round(state.frozen * judged)} of {judged} heads ({state.frozen:.0%})"
        what = "run" if len(view.grid) > 1 else "model"
        return f"{share} {_counted(view, 'frozen')} ({certain}) at {where}; from {LOST:.0%} a {what} counts as lost"
    text = f"{round(state.share * judged)} of {judged} heads ({state.share:.0%}) {_counted(view, 'large')} at {where}"
    if state.share >= WARNED:
        return f"{text}, a warning from {WARNED:.0%}; frozen ({certain}) are {state.frozen:.0%}, lost from {LOST:.0%}"
    return text + _beside(view)


def _counted(view: RunView, size: str) -> str:
    """Return what the heads of a run's share are: under QK-norm the spectrum does not count, see theorem.collapsing."""
    by_gains = np.isfinite(view.report.readings.metric("logit_bound")[view.last_rows()]).all()
    return f"{size} with sparse maps" if by_gains else f"concentrated and {size}"


def _beside(view: RunView) -> str:
    """Return what is to be said of a run that is warned by malignant heads alone, or sound."""
    state, alone = view.state, view.counts()[Verdict.CONCENTRATED]
    if state.dead >= WARNED * (state.judged + state.dead):
        return f"; W_qᵀW_k = 0 in {state.dead} of {state.judged + state.dead} heads, a warning from {WARNED:.0%}"
    bad = f"; {state.malignant} malignant ({state.malignant / max(state.judged, 1):.1%})"
    if state.verdict == "warned":
        return f"{bad}, a warning from {ALARM:.0%}"
    if state.malignant:
        return f"{bad}, as single heads of a sound model may be: a warning from {ALARM:.0%}"
    return f"; {alone} concentrated alone, as heads of sound models often are" if alone else ""


_BAD = Verdict.MALIGNANT


def turn_word(view: RunView) -> str:
    """Return the word that ``turn_sentence`` stands behind: of one checkpoint nothing is known to be the first."""
    return "first" if len(view.grid) > 1 else "worst"


def turn_sentence(view: RunView) -> str:
    """Return which head turned malignant first and when, or that none did."""
    row, several = view.first_turn(), len(view.grid) > 1
    if row is None:
        return "no head was malignant at any checkpoint" if several else "no head is malignant"
    others = view.counts(view.index_of(row))[Verdict.MALIGNANT] - 1
    more = f", with {others} more" if others else ""
    if not several:
        return f"{head_name(view, row)} is malignant{more}"
    index, column = (int(place) for place in np.argwhere(view.grid == row)[0])
    now = int(view.grid[-1, column])
    ended = f"; at {view.at(-1)} it is {view.verdict(now).value}" if now >= 0 and view.verdict(now) is not _BAD else ""
    return f"{view.at(index)}: {head_name(view, row)} turned malignant{more}{ended}"


def surge_sentence(view: RunView) -> str:
    """Return when σ1 surged, or nothing."""
    if view.state.surge is None:
        return ""
    when = f"by step {view.state.surge}" if view.has_steps else f"by checkpoint number {view.state.surge}"
    return f"{when} ln σ1 of the median head had grown by {SURGE} a step or more"


def loss_sentence(view: RunView) -> str:
    """Return when the loss went wrong and what spoke before it, or nothing where no loss was found."""
    if view.story is None or view.story.loss is None:
        return ""
    trouble = view.story.trouble
    if trouble is None:
        return _ending(view)
    what = {
        "not finite": "is no longer finite",
        "rose": "rose above its best and stayed there",
        "parted": f"stayed above that of {trouble.reference}",
    }.get(trouble.kind, trouble.kind)
    words = {
        "surge": "the surge",
        "crossing": "a quarter of the heads concentrated and large",
        "malignant": "the first malignant head",
    }
    leads = [
        f"{words.get(name, name)} {_steps(lead)} before that"
        if lead >= 0
        else f"{words.get(name, name)} at most {_steps(lead)} after that"  # it may have come soon after the one before
        for name, lead in view.story.leads.items()
    ]
    return f"from step {trouble.step} on it {what}" + (f"; {', '.join(leads)}" if leads else "")


def _ending(view: RunView) -> str:
    """Return how a loss ended in which nothing went wrong for good, beside the lowest of the report."""
    ends = {run: final(story.loss) for run, story in view.report.stories.items() if story.loss is not None}
    best, own = (
        min(ends, key=lambda run: np.nan_to_num(ends[run], nan=np.inf)),
        f"it ended at {number(ends[view.name])}",
    )
    if len(ends) == 1:
        return f"{own} and did not rise for good; whether it lags would show beside a sound run"
    if best == view.name:
        return f"{own}, the lowest of {len(ends)} runs, and did not rise for good"
    return f"{own}, the lowest ({best}) at {number(ends[best])}; no rise and no parting stands out from its noise"


def _steps(count: int) -> str:
    return "1 step" if abs(count) == 1 else f"{abs(count)} steps"


def head_name(view: RunView, row: int) -> str:
    """Return "layer 2 head 3", with its block where the model has several."""
    readings = view.report.readings
    several = len({block for block, *_ in view.modules()}) > 1
    block = f"{readings['block'][row]} " if several else ""
    return f"{block}layer {readings['layer'][row]} head {readings['head'][row]}"


SHORT = {
    "sigma1": "σ1",
    "effective_rank": "effective rank",
    "sec_star": "SEC(s*)",
    "freezing_ratio": "κ",
    **{
        f"{kind}_{index}": f"{kind} {label}"
        for kind in KINDS
        for index, label in (("entropy", "entropy"), ("rank", "map rank"), ("diagonal", "diagonal"))
    },
}
SIGNS = {"<=": "≤", ">=": "≥"}
_AGAINST = {"≤": ">", "≥": "<"}


def condition_text(condition: Condition) -> str:
    """Return a condition as "κ 1.40 ≥ 0.45", the sign telling how the value lies to the limit, ± before an error."""
    name, sign = SHORT.get(condition.metric, condition.metric), SIGNS.get(condition.sign, condition.sign)
    if condition.value is None:
        return f"{name} not measured"
    shown = sign if condition.holds else _AGAINST.get(sign, sign)
    return f"{name} {with_error(condition.value, condition.error)} {shown} {number(condition.limit)}"


def reasons(view: RunView, row: int) -> list[str]:
    """Return the conditions that a head's verdict rests on: those that hold, or could not be measured."""
    conditions = [c for c in view.report.evidence(row) if c.holds is not False]
    beyond = [c for c in view.report.against_baseline(row) if c.holds]
    outside = [condition_text(c) for c in beyond]
    return [*map(condition_text, conditions), *([f"{beyond[0].name}: {' and '.join(outside)}"] if outside else [])]


def evidence(report: Report, rows: Sequence[int]) -> dict[int, tuple[Condition, ...]]:
    """Return the conditions behind several rows' verdicts, cutting those rows out of the table once."""
    chosen, few = _cut(report, rows)
    return {
        int(row): theorem.evidence(few, report.limits, i, float(report.random_rank[row]))
        for i, row in enumerate(chosen)
    }


def against_baseline(report: Report, rows: Sequence[int]) -> dict[int, tuple[Condition, ...]]:
    """Return how several rows lie to the bands of the baseline, cutting those rows out of the table once."""
    if report.bands is None:
        return {}
    chosen, few = _cut(report, rows)
    small = replace(report, readings=few)
    return {int(row): small.against_baseline(i) for i, row in enumerate(chosen)}


def _cut(report: Report, rows: Sequence[int]) -> tuple[Rows, Readings]:
    chosen = np.unique(np.asarray(rows, dtype=np.int64))
    mask = np.zeros(len(report.readings), dtype=bool)
    mask[chosen] = True
    return chosen, report.readings.where(mask)


OF_KIND = {
    "predicted": "predicted by the weights",
    "embedded": "of embedded random tokens",
    "random": "of the model on random tokens",
    "measured": "measured on real inputs",
}


def maps_sentence(kinds: Sequence[str]) -> str:
    """Return by which maps heads were judged: "maps measured on real inputs", counted where there are several kinds."""
    count = Counter(kinds)
    if len(count) == 1:
        return f"maps {OF_KIND[kinds[0]]}"
    return "maps: " + ", ".join(f"{count[kind]} {OF_KIND[kind]}" for kind in reversed(KINDS) if kind in count)


def with_error(value: float, error: float | None) -> str:
    """Return "0.66 ± 0.04": an error of one figure, two if it starts with 1, and the value to the same place."""
    if error is None or not 0 < error < math.inf or not math.isfinite(value):
        return number(value)
    lead = math.floor(math.log10(error))
    places = -lead + (round(error * 10.0**-lead, 6) < 1.95)
    if not 0 <= places <= 6:
        return f"{number(value)} ± {number(error)}"
    return f"{value:.{places}f} ± {error:.{places}f}"


def number(value: float) -> str:
    """Return a number in at most seven characters: three figures, "-" for NaN."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}"
