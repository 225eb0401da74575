"""The training loop, as a generator: the caller prints and saves."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qkspec.train.lab import Lab, bound_fraction, learning_rate, undivided
from qkspec.train.probes import maps, probe
from qkspec.train.schedule import drawn
from qkspec.train.world import local_only, whole


@dataclass(frozen=True)
class Step:
    """One update, or the initial state.

    Args:
        step: updates done; 0 is the initial state, which has no loss and no learning rate.
        loss: mean training loss in nats of the batch that made this update, measured before it.
        lr: learning rate of this update.
        grad_norm: global l2 norm of the gradient before clipping; None where it is not measured.
        bound: share of bounded tensors that AdamW² cut in this update; None for another optimizer.
        validation: mean validation loss in nats after this update, where one was due.
        seconds: wall time of this update.
        probe: what ``probes.probe`` saw after this update, where it was due.
        maps: what ``probes.maps`` saw after this update, where they were due.
        outcome: "ok", or what went wrong ("loss is NaN"): the update was then not made, and the run ends here.
        alarm: why the run wants to be looked at; its evidence is in the folder ``forensics.name_of(step)``.
    """

    step: int
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    bound: float | None = None
    validation: float | None = None
    seconds: float = 0.0
    probe: Mapping[str, Any] | None = None
    maps: Mapping[str, Tensor] | None = None
    outcome: str = "ok"
    alarm: str | None = None


def train(lab: Lab) -> Iterator[Step]:
    """Train from where the lab stands to the configured number of steps, yielding after every update.

    A loss or a gradient that is not finite is a result: it is yielded, its update is not made, and the run is over.
    """
    config, world = lab.config, lab.world
    if lab.step == 0:
        yield Step(0, validation=validate(lab), **looks(lab))
    while lab.step < config.steps:
        start = time.perf_counter()
        lr = learning_rate(config, lab.step)
        for group in lab.optimizer.param_groups:
            group["lr"] = lr

        lab.model.train()
        lab.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=lab.device)
        for micro in range(world.rank, config.accumulate, world.size):
            more = micro + world.size < config.accumulate
            with local_only(lab.shared) if more else nullcontext():
                loss = batch_loss(lab, "train", lab.step, micro) / config.accumulate
                torch.autograd.backward(loss * world.size)  # DDP and FSDP2 take the mean
            total += loss.detach()
        world.sum(total)
        grads = [weight.grad for weight in lab.model.parameters() if weight.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        if config.clip:
            torch.nn.utils.clip_grads_with_norm_(lab.model.parameters(), config.clip, norm)

        figures = (lab.step + 1, float(total), lr, float(norm))
        outcome = verdict(figures[1], figures[3])
        if outcome != "ok":
            yield Step(*figures, seconds=time.perf_counter() - start, outcome=outcome)
            return
        lab.optimizer.step()
        lab.step += 1

        seconds = time.perf_counter() - start
        due = lab.step % config.eval_every == 0 or lab.step == config.steps
        yield Step(
            *figures,
            bound=bound_fraction(lab.optimizer),
            validation=validate(lab) if due else None,
            seconds=seconds,
            **looks(lab),
        )


def looks(lab: Lab) -> dict[str, Any]:
    """Return what a step sees inside the model, where that is due: its ``probe`` and its ``maps``."""
    config = lab.config
    probing, drawing = config.probe_every and lab.step % config.probe_every == 0, drawn(lab.step, config)
    if probing or drawing:
        lab = undivided(lab)
    return {"probe": probe(lab) if probing else None, "maps": maps(lab, lab.shown) if drawing else None}


def batch_loss(lab: Lab, split: str, step: int, micro: int) -> Tensor:
    """Return the mean cross-entropy, in nats, of one micro-batch; in training with the config's label smoothing."""
    x, y = lab.feed.take(split, step, micro)
    smoothing = lab.config.smoothing if split == "train" else 0.0
    with autocast(lab), chance(lab, step, micro):
        logits = lab.forward(x)
    targets = y if y.is_floating_point() else y.flatten()
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets, label_smoothing=smoothing)


@contextmanager
def chance(lab: Lab, step: int, micro: int) -> Iterator[None]:
    """Draw what a forward pass draws (``drop_path``) from a stream of this micro-batch alone, as a resume needs it."""
    if not lab.config.drop_path:
        yield
        return
    devices = [lab.device] if lab.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence((lab.config.seed, step, micro)).generate_state(1, np.uint64)[0]))
        yield


def autocast(lab: Lab) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 where the config says so."""
    if lab.config.dtype == "float32":
        return nullcontext()
    return torch.autocast(lab.device.type, dtype=torch.bfloat16)


@torch.no_grad()
def validate(lab: Lab) -> float:
    """Return the mean loss over the same validation batches each time, in nats."""
    lab.model.eval()
    count, total = lab.config.eval_batches, torch.zeros((), dtype=torch.float64, device=lab.device)
    for i in range(lab.world.rank, count, lab.world.size):
        total += batch_loss(lab, "validation", 0, i)
    return float(lab.world.sum(total)) / count


def verdict(loss: float, grad_norm: float) -> str:
    """Return "ok", or what is not finite."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if math.isnan(value):
            return f"{name} is NaN"
        if math.isinf(value):
            return f"{name} is infinite"
    return "ok"
