"""From what the command line asked to a finished run and its summary; returns the exit status."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qkspec.errors import UsageError
from qkspec.train import bakeoff, display, loggers, presets, save
from qkspec.train import run as runs
from qkspec.train.config import TrainConfig, from_dict
from qkspec.train.loop import Step
from qkspec.train.world import World, joined

FAILED = 1


@dataclass(frozen=True)
class Request:
    """A command line.

    Args:
        knobs: every setting of TrainConfig.
        given: the names of those that the user wrote.
        out: folder of a new run, or None for the default name.
        resume: folder of a run to go on with, or None.
        preset: a name of PRESETS, under the knobs that the user wrote; empty for none.
        log: loggers beside metrics.jsonl, comma-separated.
        compare: remedies to run side by side, comma-separated, or "all"; empty for one run.
        rates: learning rates of the comparison, comma-separated; empty for the one of the knobs.
        fail_on_nan: exit 1 when the run ends in a loss that is not finite.
        quiet: no progress.
        live: a bar where stderr is a terminal.
    """

    knobs: Mapping[str, Any]
    given: frozenset[str]
    out: Path | None
    resume: Path | None
    preset: str = ""
    log: str = ""
    compare: str = ""
    rates: str = ""
    fail_on_nan: bool = False
    quiet: bool = False
    live: bool = True


def conduct(request: Request) -> int:
    """Run what was asked, print the summary on stdout, and return 0, 1 (--fail-on-nan), 130 or 143."""
    with joined() as world:
        if request.compare:
            if world.size > 1:
                raise UsageError("--compare runs in one process; start it without torchrun")
            return _compare(request)
        return _single(request, world)


def _single(request: Request, world: World) -> int:
    if request.resume and request.out:
        raise UsageError("--resume goes on in its own folder; leave out --out")
    changes = {name: request.knobs[name] for name in request.given}
    config = runs.recorded(request.resume, changes) if request.resume else wanted(request)
    folder = request.resume or request.out or default_folder(config)
    if "tau" in request.given and config.optimizer == "adamw" and world.leads and not request.quiet:
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print("warning: --tau bounds the steps of adamw2; --optimizer adamw does not use it")
    start, validated = time.perf_counter(), Step(0)
    last: Step | None = None
    services = words(request.log) if world.leads else []
    loggers.check(services)
    with runs.listening() as stop:
        steps = runs.resume(folder, stop, changes) if request.resume else runs.run(config, folder, stop)
        steps = loggers.logged(steps, services, folder, config)
        if world.leads:
            steps = display.show(steps, config.steps, folder, quiet=request.quiet, live=request.live)
        for step in steps:
            last = step
            validated = validated if step.validation is None else step
    if world.leads:
        console = Console(highlight=False, markup=False, soft_wrap=True)
        console.print(summary(config, folder, last, validated, time.perf_counter() - start))
    if stop.code:
        return stop.code
    return FAILED if request.fail_on_nan and last and last.outcome != "ok" else 0


def words(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def wanted(request: Request) -> TrainConfig:
    """Return the config of a new run: the defaults, then the preset, then what the user wrote."""
    settings = dict(request.knobs)
    if request.preset:
        settings |= {k: v for k, v in presets.knobs(request.preset).items() if k not in request.given}
    return from_dict(settings)


def _compare(request: Request) -> int:
    if request.resume:
        raise UsageError("--compare goes on by itself: give it the same --out again, without --resume")
    base = wanted(request)
    out = request.out or Path("runs", f"bakeoff-{base.model}-s{base.seed}")
    rates = bakeoff.rates_of(request.rates)
    trials = bakeoff.plan(base, words(request.compare), rates, out)
    err = Console(stderr=True, highlight=False, markup=False)
    crashed = False
    with runs.listening() as stop:
        for i, trial in enumerate(trials, start=1):
            if not request.quiet:
                err.print(f"{i}/{len(trials)}  {trial.remedy}  lr {trial.config.lr:g}")
            steps = bakeoff.run(trial, stop)
            for step in display.show(steps, base.steps, trial.folder, quiet=request.quiet, live=request.live):
                crashed |= step.outcome != "ok"
            done = [bakeoff.entry(t) for t in trials[:i] if t.folder.exists()]
            bakeoff.write(done, base, out)
            if stop.code:
                break
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(bakeoff.markdown(done, base) + f"\n{out}: {bakeoff.TABLE}, {bakeoff.MARKDOWN}, {bakeoff.FIGURE}")
    return stop.code or (FAILED if request.fail_on_nan and crashed else 0)


def default_folder(config: TrainConfig) -> Path:
    """Return runs/MODEL-OPTIMIZER[-warmupN][-sigma][-qknorm]-sSEED."""
    parts = [config.model, config.optimizer]
    parts += [f"warmup{config.warmup}"] if config.warmup else []
    parts += ["sigma"] if config.reparam == "sigma" else []
    parts += ["qknorm"] if config.qk_norm else []
    return Path("runs", "-".join([*parts, f"s{config.seed}"]))


def summary(config: TrainConfig, folder: Path, last: Step | None, validated: Step, seconds: float) -> str:
    """Return what is said at the end: outcome, losses, runtime, and where the checkpoints are.

    Args:
        config: of the run.
        folder: of the run.
        last: its last step; None where it had none to make.
        validated: the last one with a validation loss, if any had one.
        seconds: what it took.
    """
    kept = save.checkpoints(folder)
    where = f"{len(kept)} checkpoints in {folder}; read them with: qkspec analyze {folder}"
    trained = f"{config.model} with {config.optimizer}"
    if last is None:
        return f"{trained}: already finished at step {max(kept, default=0)}; --steps goes further\n{where}"
    losses = [] if last.loss is None else [f"train loss {last.loss:.3f}"]
    if validated.validation is not None:
        earlier = f" at step {validated.step}" if validated.step != last.step else ""
        losses.append(f"validation loss {validated.validation:.3f}{earlier}")
    outcome = f"step {last.step} of {config.steps} in {seconds:.1f} s"
    if last.outcome != "ok":
        outcome += f", ended early: {last.outcome}"
    return f"{trained}: {outcome}; {', '.join(losses)}\n{where}"
