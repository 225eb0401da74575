"""What a run looks like while it goes: a live line on a terminal, plain lines elsewhere; all of it on stderr."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qkspec.train.forensics import name_of
from qkspec.train.loop import Step


def show(steps: Iterable[Step], total: int, folder: Path, *, quiet: bool, live: bool) -> Iterator[Step]:
    """Pass the steps through and show them.

    Args:
        steps: the run.
        total: its last step.
        folder: where it is written.
        quiet: show nothing but a crash.
        live: draw a progress bar where stderr is a terminal; else a line for each validation loss.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    bar = not quiet and live and console.is_terminal
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, disable=not bar, refresh_per_second=4) as progress:
        task = progress.add_task("", total=total, figures="starting")
        for step in steps:
            progress.update(task, completed=step.step, figures=figures(step))
            evidence = folder / name_of(step.step)
            if step.outcome != "ok":
                console.print(f"step {step.step}: {step.outcome}; the run ends here; see {evidence}", style="bold red")
            elif step.alarm and not quiet:
                console.print(f"step {step.step}: {step.alarm}, {figures(step)}; see {evidence}", style="yellow")
            elif step.validation is not None and not quiet and not bar:
                console.print(f"step {step.step}/{total}  {figures(step)}")
            yield step


def figures(step: Step) -> str:
    """Return loss, learning rate, share of bound tensors and validation loss in one short line."""
    parts = []
    if step.loss is not None:
        parts.append(f"loss {step.loss:.3f}")
    if step.lr is not None:
        parts.append(f"lr {step.lr:.2e}")
    if step.bound is not None:
        parts.append(f"bound {step.bound:.0%}")
    if step.validation is not None:
        parts.append(f"validation {step.validation:.3f}")
    return "  ".join(parts)
