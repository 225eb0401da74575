"""The Hugging Face hub's cache on disk: the revisions of one model that are in it, as one sequence.

``models--org--name/`` holds ``refs/<revision>``, small files with a commit's hash, and ``snapshots/<hash>/`` with
links to the files.
"""

from contextlib import closing

from qkspec.checkpoints.files import Folder
from qkspec.errors import CheckpointError

_MAX_REF = 128  # bytes; a hash has 40


def is_cache(folder: Folder) -> bool:
    """Say whether a folder is one model of a hub cache."""
    entries = folder.entries()
    return bool(entries.get("snapshots")) and bool(entries.get("refs") or entries.get("blobs"))


def snapshots(folder: Folder) -> dict[str, Folder]:
    """Return the snapshots by the names of their revisions, or by their hashes where no revision points to them.

    A snapshot with two revisions goes by the one that is not "main".
    """
    found = folder.folder("snapshots")
    hashes = [name for name, is_folder in found.entries().items() if is_folder]
    refs = _refs(folder.folder("refs"), "") if folder.entries().get("refs") else []
    names = {commit: name for name, commit in sorted(refs, key=lambda ref: ref[0] != "main")}
    return {names.get(commit, commit[:12]): found.folder(commit) for commit in sorted(hashes)}


def _refs(folder: Folder, prefix: str, depth: int = 0) -> list[tuple[str, str]]:
    """Return (revision, hash) for every readable reference; "refs/pr/1" is nested."""
    refs = []
    for name, is_folder in folder.entries().items():
        if is_folder:
            refs += _refs(folder.folder(name), f"{prefix}{name}/", depth + 1) if depth < 3 else []
            continue
        try:
            with closing(folder.blob(name)) as blob:
                commit = bytes(blob.read(0, min(blob.size, _MAX_REF))).decode("ascii", "replace").strip()
        except CheckpointError:
            continue
        refs.append((prefix + name, commit))
    return refs
