"""What a bounded step did, matrix by matrix: kept on the device until someone asks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

COLUMNS = ("sigma1_w", "sigma1_u", "sigma1_u_upper", "lr", "effective_lr", "bound", "floored")


@dataclass(frozen=True)
class Reading:
    """What one step did to one bounded matrix.

    Args:
        name: the parameter's name, with "[q]" and the like for one matrix of a fused projection.
        sigma1_w: σ₁ of the weight before the step, estimated from below.
        sigma1_u: σ₁ of the update ∇W before any learning rate, estimated from below.
        sigma1_u_upper: a bound on it from above; None unless certified.
        lr: the group's learning rate.
        effective_lr: the learning rate that was applied (or, in observe mode, would have been).
        bound: whether it was truncated.
        floored: whether σ₁ of the weight was below the floor, which then stood in for it.
    """

    name: str
    sigma1_w: float
    sigma1_u: float
    sigma1_u_upper: float | None
    lr: float
    effective_lr: float
    bound: bool
    floored: bool

    @property
    def relative_step(self) -> float:
        """The step lr · σ₁(∇W)/σ₁(W) that Rule 1 compares with τ. Infinite for a zero weight, 0 for a zero update."""
        if self.sigma1_u == 0:
            return 0.0
        return self.lr * self.sigma1_u / self.sigma1_w if self.sigma1_w else float("inf")


def to_readings(names: Sequence[str], records: Sequence[Tensor]) -> tuple[Reading, ...]:
    """Bring one step's records to the host.

    Args:
        names: of the matrices, in the records' order.
        records: (matrices, 7) each, columns as in ``COLUMNS``.
    """
    if not records:
        return ()
    rows = torch.cat([r.to("cpu", torch.float64) for r in records]).tolist()
    return tuple(
        Reading(name, w, u, None if isnan(upper) else upper, lr, alpha, bool(bound), bool(floored))
        for name, (w, u, upper, lr, alpha, bound, floored) in zip(names, rows, strict=True)
    )


def bound_fraction(records: Sequence[Tensor]) -> float:
    """Return the share of matrices whose learning rate was truncated; NaN where none was bounded."""
    if not records:
        return float("nan")
    return torch.cat([r[:, 5].to("cpu") for r in records]).mean().item()


def suggest_tau(readings: Iterable[Reading], share: float = 0.5) -> float:
    """Return the τ that would have truncated the given share of one step's matrices; NaN where there are none.

    A run whose every update is truncated trains at the growth rate e^τ a step whatever its learning rate says; this is
    the τ to try instead.

    Args:
        readings: of one step.
        share: from 0 to 1.
    """
    steps = sorted(r.relative_step for r in readings)
    if not steps:
        return float("nan")
    return steps[min(len(steps) - 1, int((1 - share) * len(steps)))]
