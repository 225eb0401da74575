"""Checkpoints that model-parallel trainers write as ranks: read where one file holds all, refused by name elsewhere."""

import re
from typing import NoReturn

from qkspec.checkpoints.files import Folder
from qkspec.errors import CheckpointError

_STATES = re.compile(r"mp_rank_(\d+)_model_states\.pt$")
_STAGE_3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt$")
_PIPELINE = re.compile(r"layer_\d+-model_\d+-model_states\.pt$")
_META = re.compile(r"consolidated\.(\d+)\.pth$")


def find(folder: Folder) -> tuple[str, ...]:
    """Return the file in which DeepSpeed's ZeRO stage 0 to 2 keep the whole model, () when there is none.

    Raises:
        CheckpointError: the weights are split over ranks (ZeRO stage 3, tensor or pipeline parallelism).
    """
    names = sorted(name for name, is_folder in folder.entries().items() if not is_folder)
    if any(map(_STAGE_3.search, names)):
        _refuse(
            folder,
            "is a DeepSpeed ZeRO stage 3 checkpoint, whose weights are split over ranks",
            "run the zero_to_fp32.py beside it and give its output",
        )
    if any(map(_PIPELINE.match, names)):
        _refuse(
            folder,
            "is a pipeline-parallel DeepSpeed checkpoint",
            "gather it with DeepSpeed's universal checkpoint tool",
        )
    states = [name for name in names if _STATES.match(name)]
    if len(states) > 1:
        _refuse(
            folder,
            f"holds {len(states)} tensor-parallel parts of a DeepSpeed model",
            "merge them with the trainer's tool",
        )
    parts = [name for name in names if _META.match(name)]
    if len(parts) > 1:
        _refuse(
            folder,
            f"holds {len(parts)} model-parallel parts (consolidated.*.pth) of a Meta checkpoint",
            "convert it with transformers' convert_llama_weights_to_hf.py",
        )
    return tuple(states)


def _refuse(folder: Folder, what: str, then: str) -> NoReturn:
    raise CheckpointError(f"{folder.path}: {what}; {then}")
