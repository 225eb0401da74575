"""A ring of the last steps' weights that joins the checkpoint sequence when something goes wrong."""

import math
from collections import deque

from torch import Tensor

from qkspec.train import save
from qkspec.train.lab import Lab
from qkspec.train.loop import Step

SPIKE = 6.0  # standard deviations of the loss above its running mean
MEMORY = 50  # steps over which mean and deviation are taken


class Spikes:
    """Tell a loss that stands out from those before it."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=MEMORY)

    def see(self, loss: float) -> bool:
        """Take in a loss and say whether it is a spike; the first ``MEMORY`` never are."""
        full = len(self._losses) == MEMORY
        mean = math.fsum(self._losses) / MEMORY
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self._losses) / MEMORY)
        self._losses.append(loss)
        return full and loss > mean + SPIKE * deviation


class Ring:
    """The weights of the last ``size`` steps, in memory until an alarm.

    An alarm is a spike of the loss, or a run that ends in a number that is not finite. For ``size`` steps after one,
    there is no other.
    """

    def __init__(self, size: int) -> None:
        self._past: deque[tuple[Step, dict[str, Tensor]]] = deque(maxlen=size)
        self._spikes = Spikes()
        self._silent_until = 0

    def watch(self, lab: Lab, step: Step) -> str | None:
        """Take in a step and return why an alarm fires, or None."""
        if not self._past.maxlen:
            return None
        crashed = step.outcome != "ok"
        spike = not crashed and step.loss is not None and self._spikes.see(step.loss)
        if not crashed:
            self._past.append((step, {name: tensor.clone() for name, tensor in save.weights(lab).items()}))
        if crashed:
            return step.outcome
        if spike and step.step >= self._silent_until:
            self._silent_until = step.step + self._past.maxlen
            return "loss spike"
        return None

    def past(self) -> list[tuple[Step, dict[str, Tensor]]]:
        """Return the steps held with their weights, oldest first, and forget them."""
        held = list(self._past)
        self._past.clear()
        return held
