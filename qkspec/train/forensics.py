"""What is kept at an alarm, in one folder: the batch, what every tensor did, and the attention maps of the moment."""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from qkspec.optim import sigma
from qkspec.optim.roles import choose_role, flat, views
from qkspec.train import maps, probes, save
from qkspec.train.lab import Lab, undivided
from qkspec.train.loop import Step
from qkspec.train.models.anatomy import choose
from qkspec.train.world import whole

BLOCKS = 8  # at most, whose maps are drawn: first, last, and evenly between
EVIDENCE, MAPS = "alarm.json", "maps.png"


def name_of(step: int) -> str:
    """Return the name of an alarm's folder."""
    return f"alarm-{step:06d}"


@dataclass(frozen=True)
class Evidence:
    """What an alarm finds: ``data`` for alarm.json and the picture of the maps."""

    data: dict[str, Any]
    page: Image.Image


def examine(lab: Lab, step: Step) -> Evidence:
    """Look at everything that may explain an alarm; each process of a run takes part, and nothing of the run changes.

    alarm.json holds why; ``batch``, by whose positions the data of the step can be found again; ``tensors``, each
    weight and its gradient in this step; ``matrices``, what the last update made did to each; ``probe``, as in
    probes.jsonl. After a crash the weights are those of the checkpoint beside it; after a spike, those that the step
    left behind.
    """
    tensors = {
        name: figures(whole(weight), None if weight.grad is None else whole(weight.grad))
        for name, weight in lab.model.named_parameters()
    }
    first = next((name for name, row in tensors.items() if row["gradient_not_finite"]), None)
    data: dict[str, Any] = {
        "schema": 2,
        "why": step.alarm,
        "outcome": step.outcome,
        "step": step.step,
        "updates_made": lab.step,
    }
    data |= {"loss": _number(step.loss), "gradient_norm": _number(step.grad_norm), "learning_rate": step.lr}
    data |= {"batch": batch(lab, step.step - 1), "first_gradient_not_finite": first, "tensors": tensors}
    data |= {"matrices": matrices(lab.optimizer, lab.model)}
    lab = undivided(lab)
    data["probe"] = probes.probe(lab)
    parts, _, _ = probes.probed(lab)
    everything = choose("all", parts)
    shown = np.unique(np.linspace(0, len(parts) - 1, BLOCKS).round().astype(int))
    heads = {int(i): everything[int(i)] for i in shown}
    title = f"step {step.step}: {step.alarm}"
    return Evidence(data, maps.still(probes.maps(lab, heads), heads, title, causal=parts[0].causal))


def keep(evidence: Evidence, run: Path) -> Path:
    """Write an alarm's folder, over one that a killed run left there, and return it."""
    folder = run / name_of(evidence.data["step"])
    folder.mkdir(exist_ok=True)
    save.write_json(folder / EVIDENCE, evidence.data)
    maps.save(evidence.page, folder / MAPS)
    return folder


def batch(lab: Lab, step: int) -> dict[str, Any]:
    """Return where the data of an update came from, each micro-batch with the SHA-256 of its inputs and targets."""
    micros = []
    for micro in range(lab.config.accumulate):
        inputs, targets = lab.data.batch("train", step, micro)
        positions = lab.data.positions("train", step, micro)
        micros.append({"positions": positions, "inputs_sha256": _sha256(inputs), "targets_sha256": _sha256(targets)})
    where = {"split": "train", "seed": lab.config.seed, "step": step, "data": lab.data.name}
    return where | {"data_sha256": lab.data.digest, "micro_batches": micros}


def figures(weight: Tensor, grad: Tensor | None) -> dict[str, Any]:
    """Return of a weight and its gradient: l2 norm and largest absolute value (finite elements), and what is lost."""
    found: dict[str, Any] = {}
    for name, values in (("weight", weight.detach()), ("gradient", torch.zeros(()) if grad is None else grad)):
        sound = values.nan_to_num(0.0, 0.0, 0.0).double()
        found |= {f"{name}_norm": float(sound.norm()), f"{name}_largest": float(sound.abs().max())}
        found[f"{name}_not_finite"] = int((~torch.isfinite(values)).sum())
    return found


def matrices(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return σ1 of each matrix and of its last update, the learning rate applied, and whether AdamW² cut it.

    For torch's AdamW the update is taken from its moments, and σ1(W) from the weight as it stands.
    """
    readings = getattr(optimizer, "readings", None)
    if readings is not None:
        rows = [dataclasses.asdict(reading) for reading in readings()]
        return {row.pop("name"): {k: _number(v) for k, v in row.items()} for row in rows}
    names = {weight: name for name, weight in model.named_parameters()}
    cuts: list[tuple[str, float, Tensor, Tensor]] = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            role = choose_role(names[weight], weight.shape, None)
            if role.kind == "matrix" and optimizer.state[weight]:
                moved = _last_update(optimizer.state[weight], group)
                for view in views(names[weight], role, weight.shape):
                    sides = flat(weight.shape, view)
                    w, u = (sigma.matrix(view, t.reshape(sides)) for t in (whole(weight.detach()), whole(moved)))
                    cuts.append((view.name, group["lr"], w, u))
    found = [float(x) for x in probes.spectral_norms([(t,) for _, _, *pair in cuts for t in pair])]
    return {
        name: {"sigma1_w": _number(w), "sigma1_u": _number(u), "lr": lr, "effective_lr": lr, "bound": False}
        for (name, lr, _, _), w, u in zip(cuts, found[::2], found[1::2], strict=True)
    }


def _last_update(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return the direction of AdamW's last update, before any learning rate."""
    first, second = (1 - beta ** float(state["step"]) for beta in group["betas"])
    moved: Tensor = state["exp_avg"] / first / ((state["exp_avg_sq"] / second).sqrt() + group["eps"])
    return moved


def _sha256(values: Tensor) -> str:
    array: NDArray[Any] = values.contiguous().numpy()
    return hashlib.sha256(array.data).hexdigest()


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
