"""Checkpoints of a run: how they are published whole or not at all, and how a run resumes."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from qkspec.errors import CheckpointError, InputError, OutputError, QkspecError
from qkspec.optim.sigma_reparam import fold
from qkspec.train import state, stream
from qkspec.train.config import TrainConfig, from_dict
from qkspec.train.lab import Lab
from qkspec.train.loop import Step
from qkspec.train.models import registry
from qkspec.train.schedule import kept
from qkspec.train.world import divided

WEIGHTS, CONFIG, TRAINER, RESUME = "model.safetensors", "config.json", "trainer_state.json", "resume.safetensors"


def name_of(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:06d}"


def publish(lab: Lab, run: Path, last: Step) -> Path:
    """Write the checkpoint of the lab's step, then take resume states from all but the newest ``full_states``.

    Everything is written into a hidden sibling, synced to disk and renamed: a reader meets a whole checkpoint or none.
    OutputError when the disk is full or cannot be written; what was published before is then untouched.
    """
    return _publish(lab, run / name_of(lab.step), weights(lab), last, resumable=lab.config.full_states > 0)


def take_part(lab: Lab) -> None:
    """Give this process's parts of the checkpoint that rank 0 publishes meanwhile; nothing where weights are whole."""
    if lab.config.fsdp:
        stream.write(None, _chosen(lab, weights(lab)), {})
        if lab.config.full_states:
            _write_state(lab, None)


def publish_past(lab: Lab, run: Path, past: Step, tensors: dict[str, Tensor]) -> None:
    """Write the weights of an earlier step as a checkpoint without a resume state, unless that step has one already."""
    if not (run / name_of(past.step)).exists():
        _publish(lab, run / name_of(past.step), tensors, past, resumable=False)


def _publish(lab: Lab, target: Path, tensors: dict[str, Tensor], last: Step, *, resumable: bool) -> Path:
    run, partial = target.parent, target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        _write(lab, partial, tensors, last)
        if resumable:
            _write_state(lab, partial / RESUME)
        for file in sorted(partial.iterdir()):
            _sync(file)
        _sync(partial)
        _put(partial, target)
        _retire(lab.config, run)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{target}: the checkpoint could not be written ({reason}); make room and use --resume"
        ) from error
    return target


def checkpoints(run: Path) -> dict[int, Path]:
    """Return the published checkpoints of a run by step, ascending."""
    found = {int(p.name[5:]): p for p in run.glob("step-*") if p.name[5:].isdecimal() and (p / TRAINER).is_file()}
    return dict(sorted(found.items()))


def restore(lab: Lab, run: Path) -> Path | None:
    """Bring the lab to the newest checkpoint with a resume state and return it; None if there is none."""
    for folder in reversed(checkpoints(run).values()):
        if (folder / RESUME).is_file():
            saved = state.load(folder / RESUME, lambda at, tensor: _placed(lab, at, tensor))
            exact = saved["weights"]
            try:
                if exact is None:
                    exact = stream.read(folder / WEIGHTS, lambda name, t: _placed(lab, ("weights", name), t))
                    lab.model.load_state_dict(exact, strict=not _tied(lab.config))
                else:
                    lab.model.load_state_dict(exact)
                _load_optimizer(lab, saved["optimizer"])
            except (RuntimeError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{folder}: its state does not fit this model; resume with the same settings"
                ) from error
            lab.step = saved["step"]
            return folder
    return None


def _placed(lab: Lab, at: tuple[Any, ...], tensor: Tensor) -> Tensor:
    """Return what this process keeps of a stored tensor, told by what keys it was found."""
    if at[0] == "weights":
        return divided(tensor, lab.model.state_dict().get(at[1], tensor))
    if at[:2] == ("optimizer", "state") and "exp_avg" in at[3]:  # the moments lie as the weight does
        return divided(tensor, [p for group in lab.optimizer.param_groups for p in group["params"]][at[2]])
    return tensor


def _load_optimizer(lab: Lab, saved: dict[str, Any]) -> None:
    """Take over the optimizer's state, but not the settings it was saved with: those are the config's."""
    groups = lab.optimizer.param_groups
    wanted = [{k: v for k, v in g.items() if k not in ("params", "param_names", "bounded_steps")} for g in groups]
    lab.optimizer.load_state_dict(saved)
    for group, settings in zip(lab.optimizer.param_groups, wanted, strict=True):
        group.update(settings)


def tidy(run: Path) -> None:
    """Remove what a killed run left half-written, and put back a checkpoint that had only just stepped aside."""
    for aside in run.glob(".step-*.was-*"):
        target = run / aside.name[1:].split(".")[0]
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
    for file in run.glob(".*.json*.partial-*"):
        file.unlink()
    for leftover in [*run.glob(".step-*.partial-*"), *run.glob(".step-*.old-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def weights(lab: Lab) -> dict[str, Tensor]:
    """Return the model's weights under their published names, where they lie; σReparam is folded into them."""
    tensors = {name: tensor.detach() for name, tensor in fold(lab.model.state_dict()).items()}
    if _tied(lab.config):
        del tensors["lm_head.weight"]
    return tensors


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, whole or not at all; ValueError for NaN or infinity."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; a full disk leaves what was there."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the place of a file that takes that of ``path`` when the block ends well; OSError leaves what was there."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _write(lab: Lab, folder: Path, tensors: dict[str, Tensor], last: Step) -> None:
    config = lab.config
    dtype = torch.bfloat16 if config.save_dtype == "bfloat16" else None
    stream.write(folder / WEIGHTS, _chosen(lab, tensors), {"format": "pt"}, dtype)
    write_json(folder / CONFIG, registry.module(config.model).config_json(config) | {"dtype": config.save_dtype})
    step = last.step if last.outcome == "ok" else lab.step  # a crash is of the step that was not made
    record = {"global_step": step, "max_steps": config.steps, "loss": _number(last.loss), "outcome": last.outcome}
    record |= {"validation_loss": _number(last.validation), "learning_rate": last.lr, "data_sha256": lab.data.digest}
    write_json(folder / TRAINER, record | {"train_config": config.as_dict()})


def _chosen(lab: Lab, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if lab.config.keep == "all":
        return tensors
    belongs = registry.module(lab.config.model).attention_weight
    return {name: tensor for name, tensor in tensors.items() if belongs(name, lab.config)}


def _write_state(lab: Lab, path: Path | None) -> None:
    config = lab.config
    exact = config.keep == "all" and config.save_dtype == "float32" and config.reparam == "none"
    weights_too = None if exact else lab.model.state_dict()
    state.dump({"step": lab.step, "weights": weights_too, "optimizer": lab.optimizer.state_dict()}, path)


def _put(partial: Path, target: Path) -> None:
    """Rename a checkpoint into place. One of the same step steps aside and goes last, so that one is always whole."""
    aside = target.with_name(f".{target.name}.was-{os.getpid()}")
    if target.exists():
        target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _retire(config: TrainConfig, run: Path) -> None:
    """Leave the resume state in the newest checkpoints only; an older one that was not due goes altogether."""
    if not config.full_states:
        return
    resumable = [(step, folder) for step, folder in checkpoints(run).items() if (folder / RESUME).is_file()]
    for step, folder in resumable[: -config.full_states]:
        if kept(step, config) or _was_due(step, folder):
            (folder / RESUME).unlink()
        else:
            _remove(folder)


def _was_due(step: int, folder: Path) -> bool:
    """Say whether a checkpoint was due by the settings that it was written under; a resumed run may have others."""
    try:
        found = json.loads((folder / TRAINER).read_text(encoding="utf-8"))
        return kept(step, from_dict(found["train_config"]))
    except (OSError, ValueError, KeyError, TypeError, QkspecError):
        return True  # what cannot be told is left where it is


def forget(run: Path, step: int) -> None:
    """Remove the checkpoints of steps after ``step``: the run goes on from there, perhaps on another course."""
    for later, folder in checkpoints(run).items():
        if later > step:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Take a checkpoint away in one rename, so that nobody meets half of it."""
    hidden = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _tied(config: TrainConfig) -> bool:
    return config.model == "gpt" and config.tied


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file; a last line that a kill cut short is left out."""
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            if line.endswith("\n"):
                yield _row(line, f"{path}: line {number}")


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is damaged; take it out, or begin in a new folder") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} holds no record; take it out, or begin in a new folder")
    return row
