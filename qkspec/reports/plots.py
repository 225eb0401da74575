"""Figures of a report into a folder that may hold other things: each file whole or not at all."""

import os
import tempfile
from pathlib import Path

from qkspec.analysis import Report
from qkspec.errors import OutputError, UsageError

PLOT_FORMATS = ("png", "svg", "pdf")


def check_format(plot_format: str) -> None:
    """Raise UsageError unless a plot format is one of PLOT_FORMATS."""
    if plot_format not in PLOT_FORMATS:
        raise UsageError(f"plot format {plot_format!r} is not one of {', '.join(PLOT_FORMATS)}")


def draw_into(report: Report, folder: Path, *, plot_format: str = "png") -> list[Path]:
    """Draw every figure into a folder, replacing figures of the same name.

    Args:
        report: the report.
        folder: is made if it is missing.
        plot_format: png, svg or pdf.

    Returns:
        The files.

    Raises:
        UsageError: the plot format is unknown.
        OutputError: they could not be written.
    """
    check_format(plot_format)
    from qkspec.reports import figures

    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".qkspec-", dir=folder) as scratch:
            figures.write(report, Path(scratch), plot_format=plot_format)
            for file in sorted(Path(scratch).iterdir()):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                drawn.append(file.replace(folder / file.name))
    except OSError as error:
        raise OutputError(f"{folder}: could not be written: {error.strerror or error}") from error
    return drawn
