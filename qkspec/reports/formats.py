"""The files of a report directory: one member a format, each written by its own module."""

from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from qkspec.analysis import Report
from qkspec.errors import UsageError


class Format(Enum):
    """What a report can be written as: the name in the directory, the module that writes it, and its optional extra.

    A module's ``write(report, out)`` takes an open text file where TEXT has the format, else the path of the file or
    folder to make.
    """

    CSV = ("heads.csv", "csvfile", "")
    PARQUET = ("heads.parquet", "parquet", "parquet")
    SPECTRA = ("spectra.safetensors", "spectra", "")
    MAPS = ("maps.safetensors", "maps", "")
    LOSSES = ("losses.csv", "losses", "")
    PLOTS = ("plots", "figures", "")
    HTML = ("report.html", "html", "html")
    MARKDOWN = ("report.md", "markdown", "")
    JSON = ("report.json", "jsonfile", "")

    @property
    def file(self) -> str:
        """Name of the file, or of the folder, in a report directory."""
        return self.value[0]

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages of the format's optional extra that are not installed."""
        return missing(self.value[2])

    def require(self) -> None:
        """Raise UsageError unless everything that this format needs is installed."""
        require(self.file, self.value[2])

    def write(self, report: Report, path: Path) -> None:
        """Write the report to a new file or folder.

        Raises:
            UsageError: an optional package that it needs is missing.
            OSError: it could not be written.
        """
        self.require()
        writer = import_module(f"qkspec.reports.{self.value[1]}")
        if self not in TEXT:
            writer.write(report, path)
            return
        with path.open("w", encoding="utf-8", newline="") as file:
            writer.write(report, file)


EXTRAS = {"html": ("jinja2", "plotly"), "parquet": ("pyarrow",)}
TEXT = (Format.CSV, Format.LOSSES, Format.HTML, Format.MARKDOWN, Format.JSON)
ESSENTIAL = (Format.CSV, Format.LOSSES, Format.JSON)  # what a saved report is read back from; in every directory
ON_REQUEST = (Format.PARQUET, Format.MARKDOWN)


def missing(extra: str) -> tuple[str, ...]:
    """Return the packages of an optional extra that are not installed."""
    return tuple(name for name in EXTRAS.get(extra, ()) if find_spec(name) is None)


def require(file: str, extra: str) -> None:
    """Raise UsageError unless the packages of the optional extra that a file needs are installed."""
    if missing(extra):
        raise UsageError(f'{file} needs {" and ".join(missing(extra))}: pip install "qkspec[{extra}]"')


def default_formats() -> tuple[Format, ...]:
    """Return the formats written when none are named: all but those on request and those whose extra is missing."""
    return tuple(f for f in Format if f not in ON_REQUEST and not f.missing)


def formats_with(names: str) -> tuple[Format, ...]:
    """Return the default formats and those that are named: "parquet,markdown".

    Raises:
        UsageError: a name is unknown, or an optional package that its format needs is missing.
    """
    known = {one.name.lower(): one for one in Format}
    chosen = []
    for name in names.split(","):
        if name.strip() not in known:
            raise UsageError(f"--with {name.strip()!r}: no such format; known: {', '.join(known)}")
        chosen.append(known[name.strip()])
        chosen[-1].require()
    return (*default_formats(), *chosen)
