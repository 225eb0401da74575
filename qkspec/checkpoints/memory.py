"""A live model's state dict as a checkpoint, so that a trainer's callback measures by the road that files take."""

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np

from qkspec.checkpoints.renamed import strip_wrappers
from qkspec.checkpoints.safetensors import check_float, row_range
from qkspec.checkpoints.store import Checkpoint, Store
from qkspec.errors import CheckpointError
from qkspec.qk import Array


class MemoryStore(Store):
    """Tensors in memory: torch tensors on any device, or NumPy arrays. Nothing is copied before it is read.

    A sharded parameter (DTensor) is gathered when it is read, so every rank has to read it.
    """

    format = "memory"

    def __init__(self, state_dict: Mapping[str, Any], path: str = "memory") -> None:
        self.path = path
        self._tensors = {
            name: value
            for name, value in strip_wrappers(state_dict).items()
            if hasattr(value, "shape") and hasattr(value, "dtype")
        }

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(int(size) for size in self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        value, dtype = self._tensors[name], self.dtype(name)
        check_float(self.path, name, dtype)
        if rows is not None:
            first, last = row_range(self.path, name, self.shape(name), rows)
            rows = slice(first, last)
        wide = np.float64 if dtype == "float64" else np.float32
        if isinstance(value, np.ndarray):
            return cast(Array, np.array(value if rows is None else value[rows], dtype=wide))
        if getattr(value, "is_meta", False):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is on the meta device and has no numbers; load the weights first"
            )
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        value = (value if rows is None else value[rows]).detach().to("cpu")
        # The copy matters: .numpy() of a float32 CPU parameter is the parameter, which the next step changes.
        array = np.asarray((value.double() if dtype == "float64" else value.float()).numpy(), dtype=wide).copy()
        return cast(Array, array)


def from_state_dict(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    name: str = "model",
    step: int | None = None,
) -> Checkpoint:
    """Return a checkpoint over ``model.state_dict()`` (torch tensors or NumPy arrays); names lose wrappers' prefixes.

    Args:
        state_dict: tensors by name; values that are no tensors are left out.
        config: the model's config as plain data, for head counts (``model.config.to_dict()``).
        name: what readings call it.
        step: training step.
    """
    return Checkpoint(name, step, dict(config or {}), MemoryStore(state_dict, name), name)
