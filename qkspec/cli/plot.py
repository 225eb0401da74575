"""``qkspec plot``: draw a saved report's figures again, for a paper or a pull request."""

from pathlib import Path
from typing import Annotated

import typer

from qkspec.cli.options import Baseline


def plot(
    report: Annotated[Path, typer.Argument(help="Report directory that analyze -o wrote.", show_default=False)],
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder. Default: plots/ in the report.")] = None,
    plot_format: Annotated[str, typer.Option("--plot-format", help="png, svg or pdf.")] = "png",
    baseline: Baseline = None,
) -> None:
    """Draw the figures of a saved report: σ1 and κ over steps, SEC over s, and the layer x head map."""
    from dataclasses import replace

    from qkspec.cli.measuring import load_bands
    from qkspec.errors import UsageError
    from qkspec.reports.plots import check_format, draw_into
    from qkspec.reports.saved import is_report, load

    check_format(plot_format)
    if out is not None and is_report(out):
        raise UsageError(f"{out}: is a report, which figures among its files would spoil; name another folder")
    loaded = load(report)
    if baseline is not None:
        loaded = replace(loaded, bands=load_bands(baseline))
    for path in draw_into(loaded, out or report / "plots", plot_format=plot_format):
        typer.echo(path)
