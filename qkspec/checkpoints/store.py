"""Bytes to named tensors: the one interface that every checkpoint format implements."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qkspec.qk import Array


class Store(ABC):
    """Named tensors that are read one at a time; opening reads headers only.

    ``format`` names the container ("safetensors", "torch", "dcp", "memory"). Every method raises CheckpointError,
    naming the file, when the bytes do not hold what the header promised.
    """

    format: str

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return the tensor names, in file order where there is one."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its data; KeyError if there is no such tensor."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Return the stored dtype by its torch name: "float32", "bfloat16", "float8_e4m3fn", "int64", ..."""

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a floating-point tensor, decoded without loss: float64 stays, everything narrower becomes float32.

        Args:
            name: the tensor.
            rows: contiguous rows (first axis) to read; only their bytes travel where the format allows it.
        """

    def close(self) -> None:  # noqa: B027 - memory has nothing to release
        """Release files and connections."""

    @property
    def bytes_read(self) -> int | None:
        """Bytes of the source read so far, headers included; None where the format cannot tell."""
        return None


@dataclass(frozen=True)
class Checkpoint:
    """One state of one model.

    Args:
        name: how the user knows it ("step-000100"), unique within its run.
        step: training step, or None when neither the trainer's state nor the name tells.
        config: the model's config.json (or the equivalent inside the file) as plain data; {} when there is none.
        store: its tensors.
        path: where it came from, for messages and provenance.
    """

    name: str
    step: int | None
    config: Mapping[str, Any]
    store: Store
    path: str = ""
