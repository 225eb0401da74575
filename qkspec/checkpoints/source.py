"""A checkpoint that is not opened yet, and a run of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qkspec.checkpoints import fingerprint
from qkspec.checkpoints.config import read_config
from qkspec.checkpoints.files import Folder, LocalFolder
from qkspec.checkpoints.formats import SAFETENSORS, Opened, Place, find_place, open_place
from qkspec.checkpoints.names import is_temporary, is_trainer_state
from qkspec.checkpoints.renamed import without_wrappers
from qkspec.checkpoints.scaled import unscaled
from qkspec.checkpoints.stacked import unstacked
from qkspec.checkpoints.store import Checkpoint, Store
from qkspec.errors import CheckpointError

MAX_NAME = 1024  # characters of a tensor's name; the longest that real checkpoints hold have some 200


@dataclass(frozen=True)
class Source:
    """One checkpoint of a run, not opened yet.

    Args:
        name: unique within its run.
        path: the file or folder, as the user would write it.
        step: from the trainer's state or the name; ``open`` may know better from inside the file.
        folder: the checkpoint's folder, or the one that its file lies in.
        file: the file, "" when the folder is the checkpoint.
    """

    name: str
    path: str
    step: int | None = None
    folder: Folder = field(default_factory=lambda: LocalFolder("."), repr=False, compare=False)
    file: str = field(default="", repr=False, compare=False)

    def open(self) -> Checkpoint:
        """Open the checkpoint: headers only.

        Raises:
            CheckpointError: it is damaged, incomplete, or of a format that is not read.
        """
        place = self.place()
        opened = open_place(place)
        try:
            _check_names(opened.store, self.path)
            config = _config(
                opened, place.folder, *(() if place.folder.path == self.folder.path else (self.folder.again(),))
            )
            store = unscaled(unstacked(without_wrappers(opened.store)), config, self.path)
        except BaseException:
            opened.store.close()
            raise
        return Checkpoint(self.name, self.step if opened.step is None else opened.step, config, store, self.path)

    def fingerprint(self) -> str:
        """Return a key for a cache of results: 32 hexadecimal digits that change when a file of the checkpoint does.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return fingerprint.fingerprint(self.place(), self.folder.again())

    def digest(self) -> str:
        """Return the content's identity, wherever it lies, for provenance; fingerprint.py says what it rests on.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return fingerprint.digest(self.place(), self.folder.again())

    def size(self) -> int:
        """Return the bytes of the files that hold the weights.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return fingerprint.size(self.place())

    def place(self) -> Place:
        """Return which files hold the weights; CheckpointError when there are none."""
        folder = self.folder.again()  # it may have been listed long ago
        if self.file:
            if self.file.startswith("adapter_model."):
                raise _adapter(self.path)
            return Place(folder, (self.file,), SAFETENSORS)
        place = place_below(folder)
        if place is not None:
            return place
        if "adapter_config.json" in folder.entries():
            raise _adapter(self.path)
        raise CheckpointError(f"{self.path}: holds no model weights; the save is not complete, or they lie elsewhere")


@dataclass(frozen=True)
class Run:
    """A sequence of checkpoints of one model, in step order.

    Args:
        name: unique among the runs of one call.
        sources: by step; those without one last, in the natural order of names.
        path: what the user gave.
        skipped: path to reason, for folders that could not be looked into: what they hold is not known.
        ignored: path to reason, for what was passed over on purpose: temporary folders of savers, reports, and links
            to a checkpoint that is there already.
    """

    name: str
    sources: tuple[Source, ...]
    path: str
    skipped: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)


def _check_names(store: Store, path: str) -> None:
    """Refuse names that no library writes: patterns are matched against each, in time that may grow as its square."""
    for name in store.names():
        if len(name) > MAX_NAME:
            raise CheckpointError(
                f"{path}: has a tensor whose name is {len(name)} characters long, more than {MAX_NAME}"
            )


def place_below(folder: Folder) -> Place | None:
    """Return the checkpoint that a folder is, or that the one fitting folder inside it is (DeepSpeed, accelerate).

    None when there is none, or more than one.
    """
    if place := find_place(folder):
        return place
    inner = [name for name, is_folder in folder.entries().items() if is_folder and not name.startswith(".")]
    found = (
        find_place(folder.folder(name))
        for name in sorted(inner)[:32]
        if not is_temporary(name) and not is_trainer_state(name)
    )
    places = [place for place in found if place]
    return places[0] if len(places) == 1 else None


def _config(opened: Opened, *folders: Folder) -> Mapping[str, Any]:
    """Return the config that says most about these weights: inside the file, beside it, or the run's arguments."""
    if opened.architecture:
        return opened.config
    for folder in folders:
        if config := read_config(folder):
            return config
    return opened.config


def _adapter(path: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is a LoRA adapter, not a model; call merge_and_unload() in peft, save the model and give its folder"
    )
