"""From paths and flags to a report: what analyze, gate and compare share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkspec import maps
from qkspec.analysis import Report, Settings, judge
from qkspec.baseline import MARGIN, Bands
from qkspec.checkpoints.sequence import find_runs
from qkspec.cli import progress as bars
from qkspec.cli.options import Flags
from qkspec.cli.settings import limits, settings
from qkspec.errors import UsageError

MEASURING = ("num_heads", "num_kv_heads", "context", "layout", "offsets", "embeddings", "activations", "revisions")


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
        return _saved(saved[0], chosen, flags, limits(flags, table, where))
    runs = find_runs(paths, revisions=flags.revisions or "")
    for run in runs if verbose else ():
        for path, reason in run.ignored.items():
            bars.say(f"{path} passed over: {reason}")
    report = judge(bars.measured(runs, chosen, quiet=quiet, progress=progress), chosen)
    return replace(report, maps=maps.draw(report, runs, chosen)) if keep else report


def load_bands(path: str, margin: float | None = None, *, quiet: bool = False) -> Bands:
    """Read the bands of a baseline off a saved report; warn where its heads give reason to doubt that it is healthy.

    Raises:
        InputError: it is no report directory.
        UsageError: a run of it is lost or broken, or the margin is no factor.
    """
    from qkspec.reports.saved import load

    report = load(Path(path))
    for run, state in report.states.items():
        if state.verdict in ("lost", "broken"):
            raise UsageError(f"--baseline {path}: its run {run} is {state.verdict}; give the report of a healthy run")
        if state.verdict == "warned" and not quiet:
            bars.warn(f"--baseline {path}: its run {run} is warned, and its bands are as wide as its heads are bad")
    return Bands.of(report.readings, path, margin=MARGIN if margin is None else margin)


def _saved(path: str, chosen: Settings, flags: Flags, limits: Mapping[str, float]) -> Report:
    """Read a saved report, judged by the limits that are given and those that it was judged by."""
    from qkspec.reports.saved import load

    for name in MEASURING:
        if getattr(flags, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{path}: {option} needs a new measurement; give the checkpoints, not their report")
    report = load(Path(path), limits=limits, layers=chosen.layers, heads=chosen.heads)
    for size in chosen.sizes:
        if f"sec_{size}" not in report.readings.columns and size not in Settings().sizes:
            raise UsageError(f"{path}: the report holds no sec_{size}; analyze again with -s {size}")
    return report
