"""From paths and flags to a report: what analyze, gate and compare share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkspec import maps
from qkspec.analysis import Report, Settings, judge
from qkspec.baseline import Bands
from qkspec.checkpoints.sequence import find_runs
from qkspec.cli import progress as bars
from qkspec.cli.options import Flags
from qkspec.cli.settings import settings
from qkspec.errors import UsageError


def measure(
    paths: Sequence[str],
    flags: Flags,
    table: Mapping[str, Any],
    where: str,
    *,
    quiet: bool,
    progress: bool,
    verbose: bool = False,
    s: int | None = None,
    keep: bool = False,
    every_head: bool = False,
) -> Report:
    """Measure what the paths name, or read it from a saved report directory.

    Args:
        paths: as the user gave them.
        flags: the measuring options.
        table: the settings file.
        where: its name.
        quiet: no warnings.
        progress: a bar on a terminal.
        verbose: say what was passed over on purpose.
        s: one more s of SEC that is needed, for a gate on it.
        keep: singular values and maps, for a report directory.
        every_head: what only the table of heads shows, too.

    Raises:
        UsageError: saved reports and checkpoints are mixed.
    """
    chosen = replace(settings(flags, table, where), keep_spectra=keep, eigenvalues=every_head)
    if s is not None and s not in chosen.sizes:
        chosen = replace(chosen, sizes=(*chosen.sizes, s))
    saved = [path for path in paths if (Path(path) / "report.json").is_file()]
    if saved:
        if len(paths) > 1:
            raise UsageError(f"{saved[0]}: a saved report is given alone, not beside other paths")
        if chosen.runner is not None:
            raise UsageError(f"{saved[0]}: a saved report holds no model to run; give the checkpoints with --text")
        return _saved(saved[0], chosen)
    runs = find_runs(paths, revisions=flags.revisions or "")
    for run in runs if verbose else ():
        for path, reason in run.ignored.items():
            bars.say(f"{path} passed over: {reason}")
    report = judge(bars.measured(runs, chosen, quiet=quiet, progress=progress), chosen)
    return replace(report, maps=maps.draw(report, runs, chosen)) if keep else report


def load_bands(path: str, margin: float) -> Bands:
    """Read the bands of a baseline off a saved report.

    Raises:
        InputError: it is no report directory.
    """
    from qkspec.reports.saved import load

    return Bands.of(load(Path(path)).readings, path, margin=margin)


def _saved(path: str, chosen: Settings) -> Report:
    from qkspec.reports.saved import load

    report = load(Path(path))
    for size in chosen.sizes:
        if f"sec_{size}" not in report.readings.columns and size not in Settings().sizes:
            raise UsageError(f"{path}: the report holds no sec_{size}; analyze again with -s {size}")
    return report
