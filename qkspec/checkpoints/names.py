"""What names of files and folders tell: the training step, natural order, and which of them are no checkpoints."""

import re

MAX_STEP = 1 << 53
_KEYED = tuple(
    re.compile(
        rf"(?:^|[^a-z])(?:{words})[-_=. ]?(\d+)([km])?(?![a-z0-9.])|(?:^|[^a-z])(?:{words})[-_=. ]?(\d+)(?!\d)", re.I
    )
    for words in (
        "global[-_]?steps?|steps?",
        "iterations?|iters?|iter_num|it|updates?",
        "checkpoint|ckpt|chkpt|cp",
        "epochs?|ep",
    )
)
_LAST = re.compile(r"(?<![.\d=])(?:^|[-_=])(\d+)$")
_PART = re.compile(r"-\d+-of-\d+$")
_DIGITS = re.compile(r"(\d+)")
_SUFFIX = re.compile(r"\.(safetensors|pt|pth|bin|ckpt|th|tar|index|json|distcp)$", re.I)

# Beside the weights, savers write the state of everything else, in the same containers.
_STATE = re.compile(
    r"^(optimizer|optim|optimizer_state|scheduler|lr_scheduler|sched|rng_state|rng|random_states?|scaler|grad_scaler|loss_scaler|"
    r"training_args|trainer_state|train_state|training_state|sampler|dataloader|dl_state|loader_state|ema_state|custom_checkpoint|"
    r"pytorch_model_fsdp_optim|mixed_precision|zero_pp_rank|zero3?_|bf16_zero|dist_optimizer|layer_\d+-model|value_head|reward_head)"
    r"(?=$|[-_.\d])|(?:_|\.)optim(_states?|izer)?(?=$|[-_.\d])|optim_states",
    re.I,
)
_TEMPORARY = re.compile(
    r"^(tmp|temp)([-_.]|$)|\.(tmp|temp|part|partial|incomplete|lock|swp|bak|crdownload|download)([-_.]|$)|"
    r"[-_.](tmp|temp|partial|incomplete|in_progress|unfinished|staging)([-_.]\w*)?$|~$|^__",
    re.I,
)
_GENERIC = re.compile(
    r"^(model|pytorch_model|weights?|ckpt|checkpoint|last|best|final|latest|consolidated[.\d]*|state_dict|params|index|"
    r"diffusion_pytorch_model|mp_rank_\d+_model_states|open_clip_pytorch_model)$",
    re.I,
)


def step_of(name: str) -> int | None:
    """Return the training step in a name ("step-000100", "epoch=3-step=900.ckpt", "1000"), or None.

    A number counts when a word such as "step" or "checkpoint" stands before it, or when it ends the name behind a
    separator; "gpt2" and "llama-7b" tell no step.
    """
    stem = _PART.sub("", stem_of(name))
    for pattern in _KEYED:
        if match := pattern.search(stem):
            digits, unit = match[1] or match[3], (match[2] or "").lower()
            return _number(digits, {"k": 1000, "m": 1_000_000}.get(unit, 1))
    match = _LAST.search(stem)
    return _number(match[1], 1) if match else None


def says_step(name: str) -> bool:
    """Say whether a name is one that savers give to a step's folder, such as "checkpoint-500" or "1000"."""
    stem = _PART.sub("", stem_of(name))
    return stem.isdecimal() or any(pattern.search(stem) for pattern in _KEYED)


def stem_of(name: str) -> str:
    """Return a file's name without its checkpoint suffixes; a folder's name has none."""
    while (shorter := _SUFFIX.sub("", name)) != name and shorter:
        name = shorter
    return name


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts "ckpt_9" before "ckpt_10"; digits are compared as text, for they may be endless."""
    parts = _DIGITS.split(name)
    return tuple(
        (1, len(part.lstrip("0")), part.lstrip("0")) if index % 2 else (0, 0, part.casefold())
        for index, part in enumerate([*parts, "", name])
    )


def is_trainer_state(name: str) -> bool:
    """Say whether a file's name is one that savers give to optimizer, scheduler, random or data-loader state."""
    return _STATE.search(stem_of(name)) is not None


def is_temporary(name: str) -> bool:
    """Say whether savers give such a name to what is not complete yet."""
    return _TEMPORARY.search(name) is not None


def is_generic(stem: str) -> bool:
    """Say whether a file's name tells nothing, so that its folder's name is the better one."""
    return _GENERIC.search(stem) is not None


def _number(digits: str, unit: int) -> int | None:
    if len(digits) > 16:
        return None
    value = int(digits) * unit
    return value if value < MAX_STEP else None
