"""The report directory: written whole or not at all, and never in place of anything that qkspec did not write."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from qkspec.analysis import Report
from qkspec.errors import OutputError, UsageError
from qkspec.reports import jsonfile
from qkspec.reports.exchange import publish
from qkspec.reports.formats import ESSENTIAL, Format, default_formats
from qkspec.reports.plots import PLOT_FORMATS, check_format
from qkspec.reports.saved import digest, is_report
from qkspec.reports.wholefile import umask

EXTRA_FILES = ("junit.xml", "report.sarif")  # other commands' files, which may stand beside ours
_ABANDONED = 24 * 3600.0  # seconds after which a temporary directory belongs to a run that was killed


def write_directory(
    report: Report, out: Path | str, *, formats: Sequence[Format] | None = None, plot_format: str = "png"
) -> Path:
    """Write a report directory: a temporary sibling, then one rename.

    Args:
        report: the report.
        out: the directory to make; an existing one is replaced only if it is empty or a report of qkspec's.
        formats: what to write; None is default_formats(). report.json and heads.csv are always written.
        plot_format: png, svg or pdf.

    Returns:
        The directory's path.

    Raises:
        UsageError: ``out`` holds something else, the plot format is unknown, or an optional package is missing.
        OutputError: it could not be written; what stood there before still does.
    """
    out = check_target(out)
    chosen = (*(default_formats() if formats is None else formats), *ESSENTIAL)
    check_format(plot_format)
    for one in chosen:
        one.require()
    with replacing(out) as folder:
        for one in Format:
            if one not in chosen or one is Format.JSON or not _has(report, one):
                continue
            if one is Format.PLOTS:
                _plots(report, folder / one.file, plot_format)
            else:
                one.write(report, folder / one.file)
        files = {file.name: digest(file) for file in sorted(folder.iterdir()) if file.is_file()}
        with (folder / Format.JSON.file).open("w", encoding="utf-8") as file:
            jsonfile.write_document(jsonfile.document(report, files), file)
    return out


def check_target(out: Path | str) -> Path:
    """Return the absolute path of a report directory to be, its links followed.

    Raises:
        UsageError: something that qkspec did not write stands there.
    """
    given, out = out, Path(os.path.realpath(out))
    if not out.exists():
        return out
    if not out.is_dir():
        raise UsageError(f"{given}: is a file; name a directory to write the report to")
    ours = {one.file for one in Format} | set(EXTRA_FILES)
    inside = list(out.iterdir())
    foreign = [entry.name for entry in inside if entry.name not in ours]
    foreign += [f"plots/{e.name}" for e in _entries(out / "plots") if e.suffix.lstrip(".") not in PLOT_FORMATS]
    if foreign:
        raise UsageError(f"{given}: holds {sorted(foreign)[0]}, which qkspec did not write; name another directory")
    if inside and not is_report(out):
        raise UsageError(f"{given}: is no report of qkspec's, so it is not replaced; name another directory")
    return out


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a temporary directory beside ``out`` and, when the block ends well, put it in the place of ``out``.

    Raises:
        OutputError: it could not be written; it is removed, and ``out`` is as it was.
    """
    folder: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", suffix=".qkspec-partial", dir=out.parent))
        mask = umask()
        folder.chmod(0o777 & ~mask)
        yield folder
        _sync(folder, 0o666 & ~mask)
        folder = publish(folder, out)
        _sync_one(out.parent)
    except OSError as error:
        raise OutputError(
            f"{out}: could not be written: {error.strerror or error}; what stood there is unchanged"
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _has(report: Report, one: Format) -> bool:
    """Whether a report has what a format holds: losses and maps are not there for every run."""
    if one is Format.LOSSES:
        return any(story.loss is not None for story in report.stories.values())
    return one is not Format.MAPS or bool(report.maps.pictures or report.maps.given)


def _plots(report: Report, folder: Path, plot_format: str) -> None:
    from qkspec.reports import figures

    figures.write(report, folder, plot_format=plot_format)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _sync(folder: Path, mode: int) -> None:
    """Bring every file of a folder to the disk, with one mode for all: a full disk may only be noticed here."""
    for root, _, names in os.walk(folder):
        for name in names:
            (Path(root) / name).chmod(mode)
            _sync_one(Path(root) / name)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(out: Path) -> None:
    """Remove temporary directories that a killed run left beside ``out`` a day ago or earlier."""
    for left in out.parent.glob(f".{escape(out.name[:100])}.*.qkspec-partial"):
        if left.is_dir() and time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
