"""What Megatron-core keeps beside its tensors: ``common.pt`` with the run's arguments and the iteration.

The weights themselves are a distributed checkpoint (dcp.py) whose layers are stacked (stacked.py).
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from qkspec.checkpoints.config import find_step
from qkspec.checkpoints.files import Folder
from qkspec.checkpoints.formats import COMMON
from qkspec.checkpoints.pickles import keep
from qkspec.checkpoints.torchfile import HANDLERS, TorchFile
from qkspec.checkpoints.wrappers import children, plain
from qkspec.errors import CheckpointError

_MAX_COMMON = 8 << 20  # bytes of its pickle


class _Inert(dict[str, Callable[..., Any]]):
    """Handlers that keep every call as its name and arguments: a run's arguments hold enumerations of all kinds."""

    def get(self, path: str, default: Any = None) -> Any:  # noqa: ARG002 - the signature of Mapping
        return self[path] if path in self else keep(path)


def read_common(folder: Folder) -> tuple[Mapping[str, Any], int | None]:
    """Return the run's arguments as a config, and the iteration; {} and None where they cannot be told.

    What cannot be read is not an error here: the count of heads is then asked for, never guessed.
    """
    try:
        with closing(folder.blob(COMMON)) as blob:
            top = children(TorchFile(blob, _MAX_COMMON, _Inert(HANDLERS)).root) or {}
    except CheckpointError:
        return {}, None
    config = plain(top.get("args"))
    if not isinstance(config, dict) or "num_attention_heads" not in config:
        return {}, find_step(top)
    if not config.get("group_query_attention"):
        config.pop("num_query_groups", None)  # it is 1 then, and each head has a key head of its own
    return {**config, "model_type": "megatron-core"}, find_step(top)
