"""The model's config and the trainer's step, from the small files beside the weights."""

import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from qkspec.checkpoints.files import Folder
from qkspec.checkpoints.jsonfile import parse_object, read_object
from qkspec.errors import CheckpointError

# config.json of transformers and others; params.json of Meta's Llama and of Mistral.
CONFIGS = ("config.json", "params.json", "model_args.json", "model_config.json")
STATES = ("trainer_state.json", "train_state.json", "training_state.json")
STEP_KEYS = ("global_step", "iter_num", "global_steps", "step", "iteration", "num_updates", "steps", "iter")
MAX_CONFIG = 8 << 20  # bytes; the largest hold tens of thousands of class labels
_MAX_STEP = 1 << 53
_HEAD = 1 << 16
_STEP = re.compile(rb'"(?:global_step|step)"\s*:\s*(\d{1,15})\b')


def read_config(folder: Folder) -> Mapping[str, Any]:
    """Return the first config file of a folder as plain data, or {}.

    Raises:
        CheckpointError: there is one, and it cannot be read: guessing head counts instead could give wrong numbers.
    """
    entries = folder.entries()
    for name in CONFIGS:
        if entries.get(name) is False:
            with closing(folder.blob(name)) as blob:
                return read_object(blob, MAX_CONFIG)
    return {}


def read_step(folder: Folder) -> int | None:
    """Return the step that the trainer's state in a folder names, or None when there is none that can be read.

    transformers writes its whole log into that file, up to tens of megabytes; the step stands in front of it, so a
    large file is searched from its start instead of parsed.
    """
    entries = folder.entries()
    for name in STATES:
        if entries.get(name) is not False:
            continue
        try:
            with closing(folder.blob(name)) as blob:
                head = bytes(blob.read(0, min(_HEAD, blob.size)))
                if blob.size <= _HEAD:
                    return find_step(parse_object(head, blob.path))
        except CheckpointError:
            return None
        match = _STEP.search(head)
        return int(match[1]) if match else None
    return None


def find_step(values: Mapping[Any, Any]) -> int | None:
    """Return the training step that a trainer's state names, or None."""
    for key in STEP_KEYS:
        value = values.get(key)
        if type(value) is int and 0 <= value < _MAX_STEP:
            return value
    return None
