"""What a user points at, as checkpoints in step order: a file, a checkpoint's folder, a folder of them, or a glob.

Nothing but names and small state files is read here; a checkpoint is opened when its turn comes. A folder that looks
like a checkpoint and is not whole stays in the sequence and fails when it is opened, so that it is reported and never
passed over.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from glob import glob, has_magic
from itertools import takewhile
from pathlib import PurePath

from qkspec.checkpoints import hub, remote
from qkspec.checkpoints.config import read_step
from qkspec.checkpoints.files import Folder, LocalFolder
from qkspec.checkpoints.formats import METADATA, find_place, peek_step, weight_files
from qkspec.checkpoints.names import is_generic, is_temporary, natural, says_step, stem_of, step_of
from qkspec.checkpoints.source import Run, Source, place_below
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import CheckpointError, InputError, UsageError

__all__ = ["Run", "Source", "find_runs", "open_checkpoint"]

_MAX_DEPTH = 5  # folders below the one that was given: runs/lightning_logs/version_0/checkpoints/…
_MAX_FOLDERS = 20_000
_REPORT = "report.json"  # of a saved report: its maps and spectra are tensors, and no checkpoint
_KIND = b'"kind": "qkspec report"'  # on its second line


def open_checkpoint(path: str | os.PathLike[str], *, name: str | None = None, step: int | None = None) -> Checkpoint:
    """Open one checkpoint file or folder.

    Args:
        path: the file or folder; a folder that holds several checkpoints is an error, see find_runs.
        name: what readings call it; by default its file's or folder's name.
        step: training step; by default what the trainer's state or the name says.

    Raises:
        InputError: there is nothing, or more than one checkpoint, at ``path``.
        CheckpointError: it cannot be read.
    """
    sources = [source for run in find_runs([os.fspath(path)]) for source in run.sources]
    if len(sources) != 1:
        raise InputError(
            f"{os.fspath(path)}: holds {len(sources)} checkpoints; give one of them, such as {sources[0].path}"
        )
    checkpoint = sources[0].open()
    return replace(checkpoint, name=name or checkpoint.name, step=checkpoint.step if step is None else step)


def find_runs(paths: Sequence[str], *, revisions: str = "") -> tuple[Run, ...]:
    """Return the runs at ``paths``: those that are checkpoints form one, each that is a folder of checkpoints its own.

    Args:
        paths: files, folders, globs and URLs.
        revisions: a shell pattern: which revisions of an hf:// repository, or of a model in the hub's cache, to take.

    Raises:
        InputError: a path does not exist, a glob matches nothing, or there is no checkpoint below a folder.
        UsageError: a path is a saved report.
    """
    singles: list[Source] = []
    runs: list[Run] = []
    for path in _expand(paths, revisions):
        found = _runs_at(path, revisions)
        if len(found) == 1 and len(found[0].sources) == 1 and found[0].sources[0].path == path:
            singles.extend(found[0].sources)
        else:
            runs.extend(found)
    if singles:
        runs.insert(0, _sequence(singles))
    if not runs:
        raise InputError("no checkpoint was given; name a checkpoint, a folder of checkpoints or a pattern")
    names = _distinct([run.name for run in runs], [run.path for run in runs])
    return tuple(replace(run, name=name) for run, name in zip(runs, names, strict=True))


def _expand(paths: Sequence[str], revisions: str) -> list[str]:
    expanded: list[str] = []
    for path in paths:
        if not path or "\0" in path:
            raise InputError(f"{path!r} is no path; give a checkpoint file or folder")
        if remote.is_url(path):
            expanded += remote.revisions(path, revisions) if revisions else [path]
            continue
        if os.path.lexists(path) or not has_magic(path):
            expanded.append(path)
            continue
        matches = [match for match in glob(path, recursive=True) if not is_temporary(PurePath(match).name)]  # noqa: PTH207
        if not matches:
            raise InputError(
                f"{path}: nothing matches; check the pattern (and quote it, so that the shell leaves it alone)"
            )
        expanded.extend(sorted(matches, key=natural))
    return list(dict.fromkeys(expanded))


def _sequence(sources: Sequence[Source]) -> Run:
    """Make one run of checkpoints that were named one by one."""
    if len(sources) == 1:
        return Run(sources[0].name, tuple(sources), sources[0].path)
    parents = zip(*(source.path.rstrip("/").split("/")[:-1] for source in sources), strict=False)
    path = "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, parents)) or "."
    return Run(_base(path) or "run", _ordered(sources), path)


def _runs_at(path: str, revisions: str) -> list[Run]:
    folder: Folder
    if remote.is_url(path):
        folder, file = remote.locate(path)
    elif os.path.isdir(path):  # noqa: PTH112 - Path() would drop the "./" the user typed
        folder, file = LocalFolder(path), ""
    elif not os.path.lexists(path):
        raise InputError(f"{path}: does not exist; check the path")
    else:
        head, file = os.path.split(path)
        folder = LocalFolder(head or ".")
    if file:
        source = replace(_file_source(folder, file), path=path)
        return [Run(source.name, (source,), path)]
    if _is_report(folder):
        raise UsageError(
            f"{path}: is a saved report, not a checkpoint; analyze, gate, compare and plot take one, alone"
        )
    runs = _Walk(revisions).runs(folder)
    if not runs:
        raise InputError(f"{path}: holds no checkpoint; give a checkpoint, or the folder that holds them")
    return runs


@dataclass
class _Walk:
    """Looks for checkpoints below one folder; each folder is entered once, so that links cannot lead in circles."""

    revisions: str = ""
    entered: set[str] = field(default_factory=set)

    def runs(self, folder: Folder, depth: int = 0) -> list[Run]:
        """Return the run that a folder is, and those in the folders below that are no part of it.

        Raises:
            CheckpointError: the folder cannot be listed.
        """
        self.entered.add(folder.same_as(""))
        if hub.is_cache(folder):
            return _cached(folder, self.revisions)
        skipped: dict[str, str] = {}
        ignored: dict[str, str] = {}
        own, base = _own_files(folder), _base(folder.path)
        if own is None and says_step(base) and _is_checkpoint(folder, base):  # its weights lie one folder down
            return [Run(base, (_folder_source(folder, base),), folder.path)]
        members: list[Source] = []
        below: list[Run] = []
        for name in self._folders(folder, ignored):
            inner = folder.folder(name)
            if _is_report(inner):
                ignored[inner.path] = "is a report that qkspec wrote"
            elif _is_checkpoint(inner, name):
                if own is None or says_step(name):
                    members.append(_folder_source(inner, name))
            elif own is None:
                found = self._below(inner, depth + 1, skipped)
                below += found
                if not found and says_step(name):
                    members.append(_folder_source(inner, name))
        members += [_file_source(folder, name) for name in _own_run(folder, own)]
        if own is not None:
            members.append(_folder_source(folder, base))
        if not members:
            return below
        sources = _ordered(_without_links(members, ignored))
        return [Run(base, sources, folder.path, skipped, ignored), *below]

    def _below(self, folder: Folder, depth: int, skipped: dict[str, str]) -> list[Run]:
        if depth > _MAX_DEPTH or len(self.entered) > _MAX_FOLDERS or folder.same_as("") in self.entered:
            return []
        try:
            return self.runs(folder, depth)
        except CheckpointError as error:
            skipped[folder.path] = str(error)
            return []

    @staticmethod
    def _folders(folder: Folder, ignored: dict[str, str]) -> list[str]:
        """Return the folders to look into, in natural order."""
        names = sorted((name for name, is_folder in folder.entries().items() if is_folder), key=natural)
        for name in filter(is_temporary, names):
            ignored[folder.join(name)] = "its name says that it is being written, or was left behind by a broken save"
        return [name for name in names if not is_temporary(name) and not name.startswith(".")]


def _cached(folder: Folder, pattern: str) -> list[Run]:
    """Return the revisions of a model in the hub's cache as one run; some have only a config there."""
    sources, ignored = [], {}
    for name, snapshot in hub.snapshots(folder).items():
        if pattern and not fnmatch(name, pattern):
            continue
        if _is_checkpoint(snapshot, name):
            sources.append(replace(_folder_source(snapshot, name), name=name))
        else:
            ignored[snapshot.path] = f"the cache holds no weights of revision {name}"
    name = _base(folder.path).removeprefix("models--").replace("--", "/")
    return [Run(name, _ordered(sources), folder.path, {}, ignored)] if sources else []


def _is_report(folder: Folder) -> bool:
    """Say whether a folder is a report that qkspec wrote, by the head of its report.json."""
    try:
        if folder.entries().get(_REPORT) is not False:
            return False
        blob = folder.blob(_REPORT)
        try:
            return _KIND in bytes(blob.read(0, min(blob.size, 64)))
        finally:
            blob.close()
    except CheckpointError:
        return False


def _own_files(folder: Folder) -> tuple[str, ...] | None:
    """Return the files of the checkpoint that a folder is; () when it is a broken one, None when it is none."""
    folder.entries()
    try:
        place = find_place(folder)
    except CheckpointError:
        return ()
    return place.files if place else None


def _own_run(folder: Folder, own: tuple[str, ...] | None) -> list[str]:
    """Return the files of a folder that are a checkpoint each.

    Beside a folder's own model they count only when they are numbered: they may be other forms of that model.
    """
    files = [name for name in weight_files(folder) if name not in (own or ())]
    if own is None:
        return files
    numbered = [name for name in files if step_of(name) is not None]
    return numbered if len(numbered) > 1 else []


def _is_checkpoint(folder: Folder, name: str) -> bool:
    """Say whether a folder is a checkpoint, a broken one included."""
    try:
        return (place_below(folder) if says_step(name) else find_place(folder)) is not None
    except CheckpointError:
        return True


def _folder_source(folder: Folder, name: str) -> Source:
    step = read_step(folder) if _listable(folder) else None
    own = _own_files(folder) or () if _listable(folder) else ()
    step = step_of(name) if step is None else step
    if step is None and len(own) == 1 and own[0] != METADATA and not is_generic(stem_of(own[0])):
        name, step = stem_of(own[0]), step_of(own[0])
    return Source(name, folder.path, step, folder)


def _file_source(folder: Folder, file: str) -> Source:
    """Return a source for one file; a file without a name of its own (model.safetensors) is called after its folder."""
    stem, path = stem_of(file), folder.join(file)
    name = _base(folder.path) if is_generic(stem) and _base(folder.path) else stem
    step = step_of(file)
    if step is None:
        step = peek_step(folder, file)
    return Source(name, path, step_of(name) if step is None else step, folder, file)


def _listable(folder: Folder) -> bool:
    try:
        folder.entries()
    except CheckpointError:
        return False
    return True


def _without_links(sources: Sequence[Source], ignored: dict[str, str]) -> list[Source]:
    """Keep one of several names of one file or folder (``latest`` and the step it points to): one that tells a step."""
    kept: dict[str, Source] = {}
    for source in sorted(sources, key=lambda source: step_of(source.name) is None):
        identity = source.folder.same_as(source.file)
        if identity in kept:
            ignored[source.path] = f"is a link to {kept[identity].name}"
        else:
            kept[identity] = source
    return list(kept.values())


def _ordered(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Sort by step, then by name in natural order, and make the names distinct."""
    order = sorted(sources, key=lambda s: (s.step is None, s.step or 0, natural(s.name), natural(s.path)))
    names = _distinct([source.name for source in order], [source.path for source in order])
    return tuple(replace(source, name=name) for source, name in zip(order, names, strict=True))


def _distinct(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Replace equal names by as much of the end of their paths as tells them apart."""
    names, parts = list(names), 1
    while parts < 32 and (twice := {name for name, count in Counter(names).items() if count > 1}):
        for index, name in enumerate(names):
            if name in twice:
                names[index] = "/".join(PurePath(paths[index]).parts[-parts:])
        parts += 1
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names


def _base(path: str) -> str:
    """Return a folder's own name, also of "." and "run/"."""
    return PurePath(path).name or os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119 - links stay as typed
