"""What is kept when a run crashes: enough to replay the step and to see which tensor went first."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkspec.train import save
from qkspec.train.lab import Lab
from qkspec.train.loop import Step

CRASH = "crash.json"


def keep(lab: Lab, folder: Path, step: Step) -> None:
    """Write crash.json: the outcome, the batch by its coordinates, and each tensor's weight and gradient.

    The gradients are those of the update that was not made; the weights are those of the checkpoint beside it.
    """
    config = lab.config
    batch = {"split": "train", "seed": config.seed, "step": lab.step, "micro_batches": config.accumulate}
    tensors = {name: figures(weight, weight.grad) for name, weight in lab.model.named_parameters()}
    first = next((name for name, row in tensors.items() if row["gradient_not_finite"]), None)
    data = {"schema": 1, "outcome": step.outcome, "step": step.step, "checkpoint": save.name_of(lab.step)}
    data |= {"batch": batch | {"data_sha256": lab.data.digest}, "first_gradient_not_finite": first, "tensors": tensors}
    save.write_json(folder / CRASH, data)


def figures(weight: Tensor, grad: Tensor | None) -> dict[str, Any]:
    """Return largest absolute value (of the finite elements) and count of elements that are not finite."""
    gradient = torch.zeros(()) if grad is None else grad
    return {
        "weight_largest": _largest(weight.detach()),
        "weight_not_finite": _broken(weight.detach()),
        "gradient_largest": _largest(gradient),
        "gradient_not_finite": _broken(gradient),
    }


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(0.0, 0.0, 0.0).abs().max())


def _broken(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum())
