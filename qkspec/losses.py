"""The loss of a run, read from what trainers leave beside their checkpoints."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from qkspec import events
from qkspec.checkpoints.jsonfile import MAX_BRACKETS
from qkspec.curve import Curve

MAX_BYTES = 256 << 20
MAX_STEP = 1 << 62
Point = tuple[int, float]


def find(checkpoints: Sequence[str]) -> Curve | None:
    """Return the training loss of a run, or None if there is none to be read.

    ``metrics.jsonl`` (qkspec train), ``trainer_state.json`` (transformers' Trainer) and TensorBoard's event files are
    looked for in the folder that holds the checkpoints; trainer_state.json in the newest checkpoint as well. A damaged
    file is passed over: a loss is evidence beside the weights, and its absence changes no verdict.

    Args:
        checkpoints: paths of the run's checkpoints in step order; at least two, else there is no course to speak of.
    """
    if len(checkpoints) < 2 or any("://" in path for path in checkpoints):
        return None
    parents = {PurePath(path).parent for path in checkpoints}
    folders = [Path(parent) for parent in parents] if len(parents) == 1 else []
    for folder, pattern, read in _places(folders, Path(checkpoints[-1])):
        for file in sorted(folder.glob(pattern)):
            curve = _read(file, read)
            if curve is not None:
                return curve
    return None


def _places(folders: Sequence[Path], newest: Path) -> Iterator[tuple[Path, str, Callable[[Path], Iterator[Point]]]]:
    for folder in folders:
        yield folder, "metrics.jsonl", _lines
        yield folder, "trainer_state.json", _trainer
    if newest.is_dir():
        yield newest, "trainer_state.json", _trainer
    for folder in folders:
        for pattern in ("*tfevents*", "runs/*/*tfevents*", "runs/*tfevents*", "logs/*tfevents*", "logs/*/*tfevents*"):
            yield folder, pattern, _tensorboard


def _read(file: Path, read: Callable[[Path], Iterator[Point]]) -> Curve | None:
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return None
        points = dict(read(file))
    except (OSError, ValueError, ArithmeticError, RecursionError):
        return None
    if len(points) < 2:
        return None
    steps = sorted(points)
    return Curve(np.array(steps, dtype=np.int64), np.array([points[step] for step in steps]), str(file))


def _lines(file: Path) -> Iterator[Point]:
    """Yield step and loss of a JSONL file; a last line that a kill cut short ends it."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            yield from _point(json.loads(line))


def _trainer(file: Path) -> Iterator[Point]:
    data = file.read_bytes()
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:  # "[]," takes 3 bytes and becomes 64
        return
    state = json.loads(data.decode("utf-8"))
    history = state.get("log_history") if isinstance(state, dict) else None
    for row in history if isinstance(history, list) else ():
        yield from _point(row)


def _tensorboard(file: Path) -> Iterator[Point]:
    wanted = ("train/loss", "train_loss", "loss", "Loss/train", "loss/train", "train_loss_step", "train/total_loss")
    found: dict[str, list[Point]] = {}
    for tag, step, value in events.scalars(file.read_bytes()):
        if tag in wanted and step <= MAX_STEP:  # -1 is written as the largest number that fits
            found.setdefault(tag, []).append((step, value))
    for tag in wanted:
        if tag in found:
            yield from found[tag]
            return


def _point(row: Any) -> Iterator[Point]:
    if not isinstance(row, dict):
        return
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        return
    loss = row.get("loss")
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        yield step, float(loss)
    elif "loss" in row or row.get("outcome") not in (None, "ok"):
        yield step, math.nan  # strict JSON has no NaN: the trainer wrote null, or a word
