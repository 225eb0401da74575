"""Weights that lie on several ranks, measured by rank 0: it says what it reads, and the others take their part.

Gathering a DTensor takes all ranks. What is read, and in which order, depends on the settings and on what fails, so
the others do not guess it: before it gathers, rank 0 broadcasts the tensor's name, and at the end the outcome.
"""

from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from torch import distributed

from qkspec.callbacks.judgement import Judgement
from qkspec.checkpoints.memory import MemoryStore
from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError, QkspecError
from qkspec.qk import Array

Outcome = Judgement | Exception


class Leading(MemoryStore):
    """The weights as rank 0 reads them.

    A thread may still be reading when the measurement fails: nothing is gathered once the outcome is told.
    """

    def __init__(self, state_dict: Mapping[str, Any], path: str) -> None:
        super().__init__(state_dict, path)
        self._turn, self._over = Lock(), False

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says; the other ranks are told to gather it, too, if they hold a part."""
        with self._turn:
            if self._over:
                raise CheckpointError(f"{self.path}: the measurement is over; measure again")
            if hasattr(self._tensors.get(name), "full_tensor"):
                _broadcast(name)
            return super().read(name, rows)

    def tell(self, outcome: Outcome) -> None:
        """Tell the other ranks what came out; an error that is not the package's own goes as its words."""
        with self._turn:
            self._over = True
            own = isinstance(outcome, Judgement | QkspecError)
            _broadcast(outcome if own else RuntimeError(f"rank 0 failed with {type(outcome).__name__}: {outcome}"))


def follow_rank_0(store: Store) -> Judgement:
    """Gather what rank 0 reads, until it tells the judgement, which is returned, or the error, which is raised."""
    while isinstance(said := _broadcast(None), str):
        with suppress(QkspecError):  # rank 0 meets the same one
            store.read(said)
    if isinstance(said, Exception):
        raise said
    assert said is not None
    return said


def _broadcast(said: Outcome | str | None) -> Outcome | str | None:
    """Return on every rank what rank 0 says."""
    box = [said]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
