"""Progress on stderr while checkpoints are measured."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from qkspec.clean import clean

if TYPE_CHECKING:
    from qkspec.analysis import Measured, Settings, Skipped
    from qkspec.checkpoints.sequence import Run

SHOW_AFTER_SECONDS = 1.0
Item = TypeVar("Item")


def measured(
    runs: Sequence["Run"], settings: "Settings", *, quiet: bool, progress: bool
) -> Iterator["Measured | Skipped"]:
    """Yield what measure_runs yields, with a progress bar on a terminal and a warning for each checkpoint skipped."""
    from qkspec.analysis import Skipped, measure_runs

    results: Iterable[Measured | Skipped] = measure_runs(runs, settings)
    total = sum(len(run.sources) for run in runs)
    for result in barred(results, total) if progress and not quiet else results:
        if isinstance(result, Skipped) and not quiet and total > 1:  # of a single one the error tells all
            warn(f"{result.run}/{result.name} skipped: {result.reason}")
        yield result


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    say(f"warning: {message}")


def say(message: str) -> None:
    """Print one line on stderr."""
    print(clean(message, limit=1000), file=sys.stderr)  # noqa: T201 - stderr is where warnings go


def barred(results: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield the items as they come, with a progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    started = monotonic()
    bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task("", total=total)
    try:
        for result in results:
            name = str(getattr(getattr(result, "facts", result), "name", ""))
            bar.update(task, advance=1, description=Text(clean(name, 40)).plain.replace("[", "(").replace("]", ")"))
            if monotonic() - started > SHOW_AFTER_SECONDS:
                bar.start()  # not before: it draws at once
                bar.refresh()
            yield result
    finally:
        if bar.live.is_started:
            bar.stop()
