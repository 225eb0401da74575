"""When a run wants to be looked at, and a ring of the last steps' weights that then joins the checkpoint sequence."""

import math
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from qkspec.train import save
from qkspec.train.lab import Lab
from qkspec.train.loop import Step

SPIKE = 6.0  # standard deviations of the loss above its running mean
RISE = 0.05  # of the run's first loss: less is no spike, however even the losses were, or near zero
MEMORY = 50  # steps over which mean and deviation are taken, and for which an alarm silences the next


class Spikes:
    """Tell a loss that stands out from those before it.

    Args:
        losses: all that came before, where a run goes on.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=MEMORY)
        self._first = losses[0] if losses else None

    def see(self, loss: float) -> bool:
        """Take in a loss and say whether it is a spike; the first ``MEMORY`` never are."""
        self._first = loss if self._first is None else self._first
        full = len(self._losses) == MEMORY
        mean = math.fsum(self._losses) / MEMORY
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self._losses) / MEMORY)
        self._losses.append(loss)
        return full and loss > mean + max(SPIKE * deviation, RISE * self._first)


class Alarm:
    """Fires at a spike of the loss and when a run ends in a number that is not finite.

    Args:
        losses: all those before the first step that it will watch, where a run goes on.
        silent: the last step that a spike of before still silences.
    """

    def __init__(self, losses: Sequence[float] = (), silent: int = 0) -> None:
        self._spikes, self._silent = Spikes(losses), silent

    def why(self, step: Step) -> str | None:
        """Take in a step and return why it is alarming, or None."""
        if step.outcome != "ok":
            return step.outcome
        if step.loss is None or not self._spikes.see(step.loss) or step.step <= self._silent:
            return None
        self._silent = step.step + MEMORY
        return "loss spike"


class Ring:
    """The weights of the last ``size`` steps, in memory until an alarm."""

    def __init__(self, size: int) -> None:
        self._past: deque[tuple[Step, dict[str, Tensor]]] = deque(maxlen=size)

    def hold(self, lab: Lab, step: Step) -> None:
        """Take in the weights that a step left behind; a crash left none."""
        if self._past.maxlen and step.outcome == "ok":
            self._past.append((step, {name: t.to("cpu", copy=True) for name, t in save.weights(lab).items()}))

    def past(self) -> list[tuple[Step, dict[str, Tensor]]]:
        """Return the steps held with their weights, oldest first, and forget them."""
        held = list(self._past)
        self._past.clear()
        return held
