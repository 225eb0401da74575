"""The straight line: paths to checkpoints to heads to readings to verdicts to a report."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qkspec import losses
from qkspec.cache import Joined
from qkspec.checkpoints.sequence import find_runs
from qkspec.engine import blas_on_one_thread
from qkspec.errors import InputError
from qkspec.judging import SCHEMA, CheckpointFacts, Report, assemble, run_state
from qkspec.measuring import Measured, Settings, Skipped, measure, plan_for
from qkspec.readings import concatenate
from qkspec.streaming import measure_runs, measure_source

__all__ = [
    "SCHEMA",
    "CheckpointFacts",
    "Measured",
    "Report",
    "Settings",
    "Skipped",
    "analyze",
    "assemble",
    "judge",
    "measure",
    "measure_runs",
    "measure_source",
    "plan_for",
    "run_state",
]


def analyze(paths: Sequence[str | Path], settings: Settings | None = None) -> Report:
    """Measure and judge every head of every checkpoint of ``paths``.

    Args:
        paths: checkpoint files, directories, runs, globs or URLs (see find_runs).
        settings: what to measure; None is the defaults.

    Raises:
        InputError: a path is no checkpoint, or nothing at all could be measured.
    """
    settings = settings or Settings()
    runs = find_runs([str(path) for path in paths])
    with blas_on_one_thread():
        return judge(measure_runs(runs, settings), settings)


def judge(results: Iterable[Measured | Skipped], settings: Settings) -> Report:
    """Assemble measured checkpoints into a report with verdicts.

    Raises:
        InputError: there is no head among them.
    """
    measured: list[Measured] = []
    skipped: dict[str, str] = {}
    for result in results:
        if isinstance(result, Skipped):
            skipped[f"{result.run}/{result.name}"] = result.reason
            continue
        measured.append(result)
        where = f"{result.facts.run}/{result.facts.name}"
        skipped.update({f"{where}/{module}": reason for module, reason in result.skipped.items()})
    readings = concatenate([m.readings for m in measured], settings.columns)
    if not len(readings):
        raise InputError(_nothing(skipped, settings))
    applicable = np.concatenate([m.applicable for m in measured if len(m.readings)])
    paths: dict[str, list[str]] = {}
    for part in measured:
        paths.setdefault(part.facts.run, []).append(part.facts.path)
    return assemble(
        readings,
        applicable,
        settings.limits,
        checkpoints=tuple(m.facts for m in measured),
        skipped=skipped,
        spectra=Joined({f"{m.facts.run}/{m.facts.name}": m.spectra for m in measured}),
        losses={run: curve for run, of_run in paths.items() if (curve := losses.find(of_run)) is not None},
    )


def _nothing(skipped: Mapping[str, str], settings: Settings) -> str:
    if not skipped:
        filters = " and ".join(f"--{name}" for name in ("layers", "heads") if getattr(settings, name))
        return "nothing to measure: no attention head " + (f"is left by {filters}" if filters else "was found")
    first, reason = next(iter(skipped.items()))
    if len(skipped) == 1:
        return reason if first.split("/")[1] in reason else f"{first}: {reason}"  # the checkpoint, not just a module
    return f"nothing to measure: all {len(skipped)} inputs were skipped, the first ({first}) because: {reason}"
