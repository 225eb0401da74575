"""Several remedies on one seed and over learning rates: one table and the sensitivity figure."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkspec.errors import OutputError, UsageError
from qkspec.train import run as runs
from qkspec.train import save
from qkspec.train.config import TrainConfig
from qkspec.train.loop import Step
from qkspec.train.run import METRICS, PROBES, RUN, Stop

WARMUP_SHARE = 0.2  # of the steps, where the user named no --warmup
TABLE, FIGURE, MARKDOWN = "bakeoff.csv", "bakeoff.png", "bakeoff.md"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
MARKERS = "osD^vPX"

REMEDIES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("adamw", {"optimizer": "adamw", "warmup": 0}),
    ("adamw+warmup", {"optimizer": "adamw"}),
    ("adamw2", {"optimizer": "adamw2", "warmup": 0}),
    ("sigma", {"optimizer": "adamw", "warmup": 0, "reparam": "sigma"}),
    ("qknorm", {"optimizer": "adamw", "warmup": 0, "qk_norm": True}),
)


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Args:
        remedy: a name of REMEDIES.
        lr: peak learning rate.
        folder: of the run.
        outcome: "ok", what crashed it, or "unfinished".
        step: updates done.
        train: mean training loss of the last twentieth of the run, nats.
        validation: last validation loss, nats.
        entropy: least attention entropy of a head on the probe batch at the end, as a share of ln T.
        max_logit: largest logit on the probe batch at the end.
        seconds: time spent in updates.
    """

    remedy: str
    lr: float
    folder: str
    outcome: str
    step: int
    train: float | None
    validation: float | None
    entropy: float | None
    max_logit: float | None
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One run that a comparison wants."""

    remedy: str
    config: TrainConfig
    folder: Path


def plan(base: TrainConfig, names: Sequence[str], rates: Sequence[float], out: Path) -> list[Trial]:
    """Return the runs of a comparison: every remedy at every learning rate, all else as in the base config.

    UsageError for a remedy that is not in REMEDIES, or for nothing to compare.
    """
    known = dict(REMEDIES)
    chosen = [name for name, _ in REMEDIES] if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise UsageError(f"--compare {name!r} is not one of {', '.join(known)}, all")
    trials = []
    for lr in dict.fromkeys(rates or [base.lr]):
        for name in chosen:
            changes = dict(known[name]) | {"lr": lr, "probe_every": base.probe_every or max(1, base.steps)}
            if name == "adamw+warmup":
                changes["warmup"] = warmup_of(base)
            config = dataclasses.replace(base, **changes)
            trials.append(Trial(name, config, out / f"{name.replace('+', '-')}-lr{lr:g}"))
    if not trials:
        raise UsageError("--compare names no remedy; write for example --compare adamw,adamw+warmup,adamw2")
    return trials


def warmup_of(base: TrainConfig) -> int:
    """Return the steps of warmup of the remedy that has them."""
    return base.warmup or round(WARMUP_SHARE * base.steps)


def about(names: Iterable[str], base: TrainConfig) -> str:
    """Return what the runs have in common, and what some of these remedies add to it, in one line."""
    own = {"adamw+warmup": f", warmup of {warmup_of(base)} steps", "adamw2": f", τ {base.tau:g}"}
    return f"{base.model}, {base.steps} steps, seed {base.seed}" + "".join(own.get(name, "") for name in names)


def run(trial: Trial, stop: Stop) -> Iterator[Step]:
    """Yield the steps of one trial, going on where an earlier call stopped; a finished one yields nothing."""
    if (trial.folder / RUN).exists():
        recorded = runs.recorded(trial.folder, {})
        if recorded != trial.config:
            raise UsageError(f"{trial.folder}: holds a run with other settings; choose another --out")
        if entry(trial).outcome == "unfinished":
            yield from runs.resume(trial.folder, stop)
        return
    yield from runs.run(trial.config, trial.folder, stop)


def entry(trial: Trial) -> Entry:
    """Return what a trial's folder says of it."""
    rows = list(save.lines(trial.folder / METRICS))
    losses = [r["loss"] for r in rows if r.get("loss") is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    validations = [r["validation"] for r in rows if r.get("validation") is not None]
    last: dict[str, Any] = rows[-1] if rows else {"step": 0, "outcome": "unfinished"}
    done = _done(trial)
    blocks = [block for row in list(save.lines(trial.folder / PROBES))[-1:] for block in row["blocks"]]
    entropies = [v for block in blocks for v in block["entropy"] if v is not None]
    logits = [v for block in blocks for v in block["max_logit"] if v is not None]
    return Entry(
        trial.remedy,
        trial.config.lr,
        trial.folder.name,
        last["outcome"] if done else "unfinished",
        last["step"],
        sum(tail) / len(tail) if tail else None,
        validations[-1] if validations else None,
        min(entropies, default=None),
        max(logits, default=None),
        sum(r["seconds"] for r in rows),
    )


def _done(trial: Trial) -> bool:
    """Say whether a run has ended, by its newest checkpoint: a row may stand there without the weights it tells of."""
    newest = list(save.checkpoints(trial.folder).items())[-1:]
    for step, folder in newest:
        state = json.loads((folder / save.TRAINER).read_text(encoding="utf-8"))
        return bool(state["outcome"] != "ok" or step >= trial.config.steps)
    return False


def write(entries: Sequence[Entry], base: TrainConfig, out: Path) -> None:
    """Write the table as CSV and Markdown and the figure; OutputError when the folder cannot be written."""
    try:
        save.write_text(out / TABLE, _csv(entries))
        save.write_text(out / MARKDOWN, markdown(entries, base))
        _draw(entries, base, out / FIGURE)
    except OSError as error:
        raise OutputError(
            f"{out}: the comparison could not be written ({error.strerror}); make room and run it again"
        ) from error


def markdown(entries: Sequence[Entry], base: TrainConfig) -> str:
    """Return the table: a row a remedy, a column a learning rate, validation losses in nats."""
    rates = list(dict.fromkeys(e.lr for e in entries))
    names = list(dict.fromkeys(e.remedy for e in entries))
    cells = {(e.remedy, e.lr): _cell(e) for e in entries}
    lines = [f"Validation loss (nats) of {about(names, base)} (least entropy / ln T)."]
    lines += ["", "| remedy | " + " | ".join(f"lr {r:g}" for r in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    lines += [f"| {n} | " + " | ".join(cells.get((n, r), "") for r in rates) + " |" for n in names]
    return "\n".join(lines) + "\n"


def _cell(entry: Entry) -> str:
    if entry.outcome != "ok":
        return f"{entry.outcome} at {entry.step}"
    loss = "" if entry.validation is None else f"{entry.validation:.3f}"
    return loss if entry.entropy is None else f"{loss} ({entry.entropy:.2f})"


def _csv(entries: Sequence[Entry]) -> str:
    from io import StringIO

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Entry)])
    for one in entries:
        writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in vars(one).values()])
    return text.getvalue()


def _draw(entries: Sequence[Entry], base: TrainConfig, path: Path) -> None:
    """Draw validation loss over learning rate, one line a remedy; a crashed run is a cross at the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    top = max((e.validation for e in entries if e.validation is not None), default=1.0)
    rates = sorted({e.lr for e in entries})
    any_crashed = False
    for i, name in enumerate(dict.fromkeys(e.remedy for e in entries)):
        mine = sorted((e for e in entries if e.remedy == name), key=lambda e: e.lr)
        sound = [e for e in mine if e.outcome == "ok" and e.validation is not None]
        colour = COLOURS[i % len(COLOURS)]
        losses = [e.validation or math.nan for e in sound]
        axes.plot([e.lr for e in sound], losses, marker=MARKERS[i % len(MARKERS)], color=colour, label=name)
        crashed = [e.lr for e in mine if e.outcome not in ("ok", "unfinished")]
        axes.plot(crashed, [top] * len(crashed), "x", color=colour)
        any_crashed |= bool(crashed)
    if any_crashed:
        axes.plot([], [], "x", color="black", label="crashed")
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss (nats)")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.set_title(about(dict.fromkeys(e.remedy for e in entries), base), fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with save.whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def rates_of(text: str) -> list[float]:
    """Return the learning rates of a comma-separated list; UsageError when one is no positive number."""
    try:
        rates = [float(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise UsageError(f"--learning-rates {text!r} is no list of numbers such as 0.003,0.01,0.03") from error
    if not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise UsageError(f"--learning-rates {text!r} holds a rate that is not above 0")
    return rates
