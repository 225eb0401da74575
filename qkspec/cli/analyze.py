"""``qkspec analyze``: measure every head of every checkpoint, judge them, print the summary, write the report."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkspec.cli.options import (
    MAPS,
    MODEL,
    VERDICT,
    WORK,
    Baseline,
    Flags,
    Margin,
    NoProgress,
    Paths,
    Quiet,
    Verbose,
    takes,
)

if TYPE_CHECKING:
    from qkspec.analysis import Report
    from qkspec.reports.formats import Format


class OutputFormat(StrEnum):
    """What ``--format`` takes."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


@takes("sizes", "offsets", "revisions", *MODEL, *VERDICT, *MAPS, *WORK)
def analyze(
    paths: Paths,
    *,
    flags: Flags,
    baseline: Baseline = None,
    margin: Margin = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report directory here.")] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Of what goes to stdout.")
    ] = OutputFormat.TABLE,
    further: Annotated[
        str | None, typer.Option("--with", help="Further files for -o: parquet, markdown.", show_default=False)
    ] = None,
    plot_format: Annotated[str, typer.Option("--plot-format", help="png, svg or pdf, for -o.")] = "png",
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Measure every head of every checkpoint, judge them by Theorem 1, and print the summary."""
    from dataclasses import replace

    from qkspec.cli.measuring import load_bands, measure
    from qkspec.cli.settings import load_file
    from qkspec.errors import UsageError

    if out is not None:  # a mistake in what is asked for is told before the work, not after it
        from qkspec.reports.directory import check_target, write_directory
        from qkspec.reports.plots import check_format

        check_target(out)
        check_format(plot_format)
    formats = further_formats(further, out)
    if margin is not None and baseline is None:
        raise UsageError("--margin is a distance from the bands of --baseline: give one, or leave it out")
    bands = load_bands(baseline, margin, quiet=quiet) if baseline is not None else None
    report = measure(
        paths, flags, *load_file(), quiet=quiet, progress=not no_progress, verbose=verbose, keep=out is not None,
        every_head=out is not None or output_format is OutputFormat.CSV,
    )  # fmt: skip
    if bands is not None:
        report = replace(report, bands=bands)
    if out is not None:
        write_directory(report, out, formats=formats, plot_format=plot_format)
    show(report, output_format)


def further_formats(names: str | None, out: Path | None) -> "tuple[Format, ...] | None":
    """Return what --with asks for beside the default files, None without it.

    Raises:
        UsageError: it names no format, its package is missing, or there is no directory to write to.
    """
    from qkspec.errors import UsageError
    from qkspec.reports.formats import formats_with

    if names is not None and out is None:
        raise UsageError(f"--with {names}: has no report directory to write to; name one with -o")
    return None if names is None else formats_with(names)


def show(report: "Report", output_format: OutputFormat) -> None:
    """Print a report to stdout in one of the formats."""
    if output_format is OutputFormat.TABLE:
        from rich.console import Console

        from qkspec.reports.table import render

        plain = bool(os.environ.get("NO_COLOR"))  # rich would leave bold and dim
        render(report, Console(highlight=False, force_terminal=False if plain else None))
        return
    if output_format is OutputFormat.JSON:
        from qkspec.reports.jsonfile import write
    elif output_format is OutputFormat.CSV:
        from qkspec.reports.csvfile import write
    else:
        from qkspec.reports.markdown import write
    write(report, sys.stdout)
