"""``qkspec watch``: follow a run that is still writing; one line a checkpoint, an alert when a head turns."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkspec.clean import clean
from qkspec.cli.lines import show
from qkspec.cli.options import MODEL, VERDICT, WORK, Flags, Lines, takes

if TYPE_CHECKING:
    from qkspec.watch import Moment

ALERT_SECONDS = 60
STDERR = 2  # an alert's output is no result
SHOWN = 8  # heads named on a line


@takes("sizes", *MODEL, *VERDICT, *WORK)
def watch(
    path: Annotated[
        str, typer.Argument(help="Folder or URL of the run; it need not exist yet.", metavar="DIR", show_default=False)
    ],
    *,
    flags: Flags,
    every: Annotated[
        float | None, typer.Option("--every", help="Seconds between looks [10; at a URL 60].", min=0.1, max=86400)
    ] = None,
    on_alert: Annotated[
        str | None,
        typer.Option(
            "--on-alert",
            help="Command to run (no shell) when a head or the run turns; facts are in QKSPEC_* variables.",
        ),
    ] = None,
    until_verdict: Annotated[
        str | None,
        typer.Option("--until-verdict", help="End when the run is this or worse: warned, lost or broken."),
    ] = None,
    until_idle: Annotated[
        float | None, typer.Option("--until-idle", help="End after so many seconds without a checkpoint.", min=0)
    ] = None,
    output_format: Annotated[Lines, typer.Option("--format", help="Lines of text or of JSON.")] = Lines.TEXT,
) -> None:
    """Follow a run: measure each new complete checkpoint once, one line each. Ctrl-C ends it."""
    from dataclasses import replace

    from qkspec.checkpoints.remote import is_url
    from qkspec.cli.progress import say
    from qkspec.cli.settings import load_file, settings
    from qkspec.watch import arrivals, follow

    stops = _stops(until_verdict)
    command = _command(on_alert)
    # One worker unless told otherwise: the run that is watched may need the processors.
    chosen = settings(replace(flags, workers=1 if flags.workers is None else flags.workers), *load_file())
    pause = every or (60.0 if is_url(path) else 10.0)
    said = ""
    held: dict[str, tuple[int, Moment]] = {}
    try:
        for moment in follow(arrivals(path, every=pause, idle=until_idle), chosen, held):
            if isinstance(moment, str):
                if moment not in ("", said):
                    say(f"waiting: {moment.partition('; ')[0]}")
                said = moment
                continue
            facts = _tell(moment, output_format)
            if moment.alarming:
                _ring(command, facts)
            if moment.verdict in stops:
                return
    finally:
        for _, moment in held.values():  # what could not be measured, and might have been with more patience
            _tell(moment, output_format)


def _tell(moment: "Moment", output_format: Lines) -> dict[str, Any]:
    """Print one line of a moment, and return its facts."""
    facts = facts_of(moment)
    if output_format is Lines.JSON:
        print(json.dumps(facts, allow_nan=False), flush=True)  # noqa: T201 - the command's result
    else:
        show([sentence(moment, facts)])
    return facts


def facts_of(moment: "Moment") -> dict[str, Any]:
    """Return what is known of a moment as plain values: a line of JSON, and the variables of an alert."""
    from qkspec.metrics import largest
    from qkspec.theorem import GRAVITY

    facts: dict[str, Any] = {"run": moment.run, "checkpoint": moment.checkpoint, "step": moment.step}
    if moment.report is None:
        return facts | {"problem": moment.problem}
    state, readings = moment.report.states[moment.run], moment.report.readings
    last = readings.where(readings["checkpoint"] == moment.checkpoint)
    verdicts = moment.report.verdicts[readings["checkpoint"] == moment.checkpoint]
    return facts | {
        "verdict": state.verdict,
        "before": moment.before,
        "heads": len(last),
        "counts": {v.value: int((verdicts == v).sum()) for v in GRAVITY if (verdicts == v).any()},
        "max_sigma1": largest(last.metric("sigma1")),
        "max_freezing_ratio": largest(last.metric("freezing_ratio")),
        "first_malignant_step": state.turned,
        "turns": [
            {"module": t.module, "head": t.head, "before": t.before.value, "after": t.after.value} for t in moment.turns
        ],
    }


def sentence(moment: "Moment", facts: Mapping[str, Any]) -> str:
    """Return one line for a terminal."""
    where = moment.checkpoint if moment.step is None else f"step {moment.step}"
    start = f"{clean(moment.run, 60)}  {clean(where, 60)}"
    if moment.report is None:
        return f"{start}  cannot be measured: {clean(moment.problem, 300)}"
    counts = ", ".join(f"{count} {name}" for name, count in facts["counts"].items())
    sizes = [
        f"max {name} {facts[key]:.3g}"
        for name, key in (("sigma1", "max_sigma1"), ("kappa", "max_freezing_ratio"))
        if facts[key] is not None
    ]
    parts = [f"{moment.verdict}: {counts}", *sizes]
    return f"{start}  {'; '.join([*parts, *_turns(moment)])}"


def _turns(moment: "Moment") -> list[str]:
    """Say which heads turned, gravest first: "turned malignant: h.0.attn head 1, h.1.attn heads 0 1"."""
    from qkspec.theorem import GRAVITY

    shown = sorted(moment.turns, key=lambda turn: GRAVITY.index(turn.after))[:SHOWN]
    out = []
    for verdict in dict.fromkeys(turn.after for turn in shown):
        own = [turn for turn in shown if turn.after is verdict]
        places = []
        for module in dict.fromkeys(turn.module for turn in own):
            heads = [str(turn.head) for turn in own if turn.module == module]
            places.append(f"{clean(module, 60)} head{'s' if len(heads) > 1 else ''} {' '.join(heads)}")
        out.append(f"turned {verdict.value}: {', '.join(places)}")
    if len(moment.turns) > SHOWN:
        out.append(f"{len(moment.turns) - SHOWN} more turned")
    return out


def _ring(command: list[str] | None, facts: Mapping[str, Any]) -> None:
    """Ring the terminal's bell, and run the user's command with the facts in its environment."""
    if sys.stderr.isatty():
        print("\a", end="", file=sys.stderr, flush=True)  # noqa: T201 - a bell
    if command is None:
        return
    variables = {f"QKSPEC_{key.upper()}": _text(value) for key, value in facts.items()}
    try:
        done = subprocess.run(
            command, env=os.environ | variables, timeout=ALERT_SECONDS, check=False, stdin=subprocess.DEVNULL,
            stdout=STDERR,
        )  # fmt: skip
        problem = f"ended with status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"was stopped after {ALERT_SECONDS} seconds"
    except OSError as error:
        problem = f"could not be started ({error.strerror})"
    if problem:
        from qkspec.cli.progress import warn

        warn(f"--on-alert: {command[0]} {problem}")


def _text(value: object) -> str:
    """Return a fact as an environment variable: no NUL, which none can hold."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return clean(text, 100_000)


def _command(text: str | None) -> list[str] | None:
    import shlex

    from qkspec.errors import UsageError

    if text is None:
        return None
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--on-alert {text!r}: {error}") from error
    if not command:
        raise UsageError("--on-alert is empty; give a command")
    return command


def _stops(word: str | None) -> tuple[str, ...]:
    from qkspec.errors import UsageError
    from qkspec.trajectory import STATES

    grave = STATES[STATES.index("warned") :]
    if word is None:
        return ()
    if word not in grave:
        raise UsageError(f"--until-verdict {word!r}: give one of {', '.join(grave)}")
    return grave[grave.index(word) :]
