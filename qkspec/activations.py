"""What a model's attention modules are given on real data: recorded in a forward pass, read back from a file.

A file is safetensors. Its tensors are named by the attention module ("h.0.attn"), or by checkpoint and module
("step-000100/h.0.attn"), and hold what the module's query projection is given, behind the input norm:
(batch, tokens, d), or (tokens, d). What a cross-attention's keys are given stands beside it as "<module>.keys".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qkspec.checkpoints.memory import from_state_dict
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import InputError
from qkspec.layouts.find import plan
from qkspec.qk import QKLayer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

KEYS = ".keys"
MAX_TOKENS, MAX_SEQUENCES = 512, 16  # of which maps are made: their memory grows with the square of the tokens
ARGUMENTS = ("hidden_states", "query", "x", "query_states")
KEY_ARGUMENTS = ("key_value_states", "encoder_hidden_states", "key", "context")


class Runner(Protocol):
    """Runs the models of checkpoints, and says what their attention maps are then: see qkspec.running.

    ``kind`` is that of the maps, one of ``theorem.KINDS``.
    """

    kind: str

    def __call__(self, checkpoint: Checkpoint, layer: QKLayer) -> Mapping[str, F64]:
        """Return the columns of one module's maps, (heads,) each.

        Raises:
            InputError: the checkpoint's model cannot be run.
        """

    def maps(self, checkpoint: Checkpoint, layer: QKLayer) -> F32:
        """Return one module's maps of the first input themselves, (heads, t, t): see ``given.of_inputs``.

        Raises:
            InputError: the checkpoint's model cannot be run.
        """


def load(path: str | Path) -> dict[str, F32]:
    """Read a file of activations.

    Raises:
        InputError: it cannot be read, or holds a tensor that is not (batch, tokens, d) of finite numbers.
    """
    store = open_checkpoint(str(path)).store
    try:
        found = {name: np.asarray(store.read(name), dtype=np.float32) for name in store.names()}
    finally:
        store.close()
    for name, value in found.items():
        if value.ndim not in (2, 3) or value.shape[-2] < 2:
            raise InputError(
                f"{path}: {name!r} has shape {value.shape}; activations are (batch, tokens, d) or (tokens, d)"
            )
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {name!r} holds NaN or Inf; record activations of a model that still computes")
    return {name: value if value.ndim == 3 else value[None] for name, value in found.items()}


def loaded(path: str) -> Mapping[str, F32]:
    """Return what ``load`` does of the file that was asked for last, read again only when it was written anew."""
    try:
        status = Path(path).stat()
    except OSError:
        return load(path)  # which says what is wrong
    return _loaded(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(path: str, _size: int, _mtime_ns: int) -> Mapping[str, F32]:
    return load(path)


def of_module(activations: Mapping[str, F32], layer: QKLayer, checkpoint: str) -> tuple[F32 | None, F32 | None]:
    """Return what a module's queries and keys were given, the checkpoint's own before what is for all; None if nothing.

    Raises:
        InputError: their width is not the module's.
    """
    for name in (f"{checkpoint}/{layer.name}", layer.name):
        if name in activations:
            x, y = activations[name], activations.get(name + KEYS)
            for given, width, kind in ((x, layer.q.shape[2], "queries"), (y, layer.k.shape[2], "keys")):
                if given is not None and given.shape[2] != width:
                    raise InputError(
                        f"activations {name!r} are {given.shape[2]} wide, the module's {kind} take {width}"
                    )
            return _cut(x), None if y is None else _cut(y)
    return None, None


def record(model: Any, *args: Any, config: Mapping[str, Any] | None = None, **kwargs: Any) -> dict[str, F32]:
    """Run a torch model once and return what its attention modules were given, by module name, for ``load``'s file.

    Args:
        model: a torch module whose state dict qkspec reads; its ``config`` gives the head counts where it has one.
        args: of the forward pass (token ids, images, ...).
        config: as of config.json, for a model that has none of its own.
        kwargs: likewise.
    """
    import torch

    own: Any = getattr(model, "config", None)
    plain = config if config is not None else own.to_dict() if hasattr(own, "to_dict") else {}
    names = [module.name for module in plan(from_state_dict(model.state_dict(), plain)).modules]
    found: dict[str, F32] = {}

    def keep(name: str, x: F32, y: F32 | None) -> None:
        found[name] = np.array(x, order="C")  # the model may go on in the same memory; safetensors writes it as it lies
        if y is not None:
            found[name + KEYS] = np.array(y, order="C")

    with torch.no_grad(), watching(model, names, keep):
        model(*args, **kwargs)
    return found


@contextmanager
def watching(model: Any, names: Sequence[str], seen: Callable[[str, F32, F32 | None], None]) -> Iterator[None]:
    """Call ``seen`` with what each attention module is given, whenever the model runs within the block.

    Args:
        model: a torch module.
        names: paths of its attention modules; a wrapper's name may stand in front of them in the model.
        seen: is given the path, what the queries come from, (batch, tokens, d), and the keys if that is something else.
    """
    handles = []
    for name, module in model.named_modules():
        owner = next((known for known in names if name == known or name.endswith("." + known)), None)
        if owner is not None:
            handles.append(module.register_forward_pre_hook(_hook(owner, seen), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, seen: Callable[[str, F32, F32 | None], None]) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tensors = [value for value in args if hasattr(value, "detach") and value.ndim == 3]
        x = next((kwargs[key] for key in ARGUMENTS if key in kwargs), tensors[0] if tensors else None)
        y = next((kwargs[key] for key in KEY_ARGUMENTS if kwargs.get(key) is not None), None)
        if x is not None:
            seen(name, _array(x), None if y is None else _array(y))

    return hook


def _array(x: Any) -> F32:
    values: F32 = x.detach().float().cpu().numpy()
    return values


def _cut(x: F32) -> F32:
    return x[:MAX_SEQUENCES, :MAX_TOKENS]
