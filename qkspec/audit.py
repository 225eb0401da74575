"""What happened to the weights between consecutive checkpoints, held against Rule 1 of AdamW².

Rule 1 keeps σ_1(W_t) ≤ (1 + τ) σ_1(W_{t-1}) at every step by cutting α σ_1(∇W_t) to τ σ_1(W_{t-1}). Over n steps that
respect it, σ_1(W_{t+n} - W_t) ≤ ((1 + τ)^n - 1) σ_1(W_t). Where the left side is larger, at least one step of the n
was one that AdamW² at τ would have cut; where it is not, nothing follows, since steps may have undone one another.
Weight decay is part of a step here as it is in the optimizer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec.checkpoints.sequence import Run, Source
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import InputError, QkspecError
from qkspec.layouts.load import read
from qkspec.measuring import Settings, chosen, plan_for
from qkspec.qk import QKLayer
from qkspec.spectrum import singular_values
from qkspec.terms import Block, blocks, norm

F64 = NDArray[np.float64]

PRECISION = {"bfloat16": 8, "float16": 11, "float8_e4m3fn": 4, "float8_e5m2": 3, "float64": 53}  # bits; float32 has 24


@dataclass(frozen=True)
class Increment:
    """One projection of one module between two checkpoints.

    Args:
        module: path of the attention module.
        layer: its number.
        projection: "q" or "k", all heads together.
        before, after: the steps.
        ratio: σ_1(W_after - W_before) / σ_1(W_before); infinite where W_before is zero.
        limit: (1 + τ)^(after - before) - 1.
        tau: the least τ under which no step need have been cut, (1 + ratio)^(1/n) - 1.
        rounding: what the stored dtype's rounding of both weights may add to the ratio.
    """

    module: str
    layer: int
    projection: str
    before: int
    after: int
    ratio: float
    limit: float
    tau: float
    rounding: float

    @property
    def bound(self) -> bool:
        """Whether AdamW² at τ would have cut at least one of these steps; NaN is not within the limit."""
        return not self.ratio <= self.limit + self.rounding


@dataclass(frozen=True)
class Change:
    """How M = W_q'W_k of each head of a module changed between two checkpoints, and by whose change.

    ΔM = ΔW_q'W_k + W_q'ΔW_k + ΔW_q'ΔW_k exactly.

    Args:
        module: path of the attention module.
        before, after: the steps.
        whole: (heads,) ‖ΔM‖_F / ‖M_before‖_F.
        by_q, by_k, by_both: (heads,) the same of each of the three parts.
        sigma1: (heads,) σ_1(ΔM) / σ_1(M_before).
    """

    module: str
    before: int
    after: int
    whole: F64
    by_q: F64
    by_k: F64
    by_both: F64
    sigma1: F64


@dataclass(frozen=True)
class Audit:
    """The audit of one run.

    Args:
        run: its name.
        tau: of Rule 1.
        increments: in the order of steps and layers.
        changes: likewise.
        terms: step and the blocks' terms of equation 1, if they were asked for.
        skipped: checkpoint to why it was left out.
    """

    run: str
    tau: float
    increments: tuple[Increment, ...]
    changes: tuple[Change, ...]
    terms: tuple[tuple[int, tuple[Block, ...]], ...]
    skipped: tuple[tuple[str, str], ...]

    def first_bound(self) -> Increment | None:
        """Return the first increment that Rule 1 would have cut, the largest of those at one step; None if none."""
        bound = [i for i in self.increments if i.bound]
        return min(bound, key=lambda i: (i.after, -i.ratio), default=None)


def audit(run: Run, tau: float, settings: Settings | None = None, *, terms: bool = False) -> Audit:
    """Hold the increments of a run's query and key projections against Rule 1.

    Args:
        run: its checkpoints.
        tau: of Rule 1, above 0.
        settings: layout, head counts and the choice of layers.
        terms: measure the weight terms of equation 1 as well.

    Raises:
        InputError: fewer than two checkpoints can be read, or their steps are not known.
    """
    settings = settings or Settings()
    increments: list[Increment] = []
    changes: list[Change] = []
    found: list[tuple[int, tuple[Block, ...]]] = []
    skipped: list[tuple[str, str]] = []
    steps: list[int] = []
    before: tuple[int, dict[str, QKLayer]] | None = None
    for source in run.sources:
        try:
            now, blocks_now = _read(source, settings, terms=terms)
        except QkspecError as error:
            skipped.append((source.name, str(error)))
            continue
        if before is not None and now[0] > before[0]:
            for layer in now[1].values():
                if layer.name in before[1]:
                    old = before[1][layer.name]
                    increments += _increments(old, layer, before[0], now[0], tau)
                    changes.append(change(old, layer, before[0], now[0]))
        before = now
        steps.append(now[0])
        found.append((now[0], blocks_now))
    if len(set(steps)) < 2:
        reason = skipped[0][1] if skipped else "an audit needs two checkpoints"
        raise InputError(f"{run.path}: has fewer than two checkpoints of known steps ({reason})")
    return Audit(run.name, tau, tuple(increments), tuple(changes), tuple(found) if terms else (), tuple(skipped))


def change(old: QKLayer, new: QKLayer, before: int, after: int) -> Change:
    """Split the change of every head's M by whose change it is.

    Args:
        old: the module at the first checkpoint.
        new: the same at the second.
        before: step of the first.
        after: step of the second.
    """
    group = new.heads // new.kv_heads
    q, k = (np.asarray(w, dtype=np.float64) for w in (old.q, np.repeat(old.k, group, axis=0)))
    dq = np.asarray(new.q, dtype=np.float64) - q
    dk = np.repeat(np.asarray(new.k, dtype=np.float64), group, axis=0) - k
    size = _product_norm(q, k)
    # ΔM = [ΔW_q; W_q + ΔW_q]' [W_k; ΔW_k]: one product of width 2 d_q, so its σ are found without forming ΔM.
    left, right = np.concatenate([dq, q + dq], axis=1), np.concatenate([k, dk], axis=1)
    top, own = singular_values(left, right), singular_values(q, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, by_q, by_k, by_both = (
            _product_norm(a, b) / size for a, b in ((left, right), (dq, k), (q, dk), (dq, dk))
        )
        sigma1 = top[:, 0] / own[:, 0]
    return Change(new.name, before, after, whole, by_q, by_k, by_both, sigma1)


def _read(
    source: Source, settings: Settings, *, terms: bool
) -> tuple[tuple[int, dict[str, QKLayer]], tuple[Block, ...]]:
    checkpoint: Checkpoint = source.open()
    try:
        if checkpoint.step is None:
            raise InputError(f"{source.path}: its step is not known, and Rule 1 counts steps; name it like step-000100")
        found = plan_for(checkpoint, settings)
        modules = [found.modules[place] for place in chosen(found, settings)]
        layers = {module.name: read(checkpoint, found, module) for module in modules}
        own = tuple(blocks(checkpoint, found)) if terms else ()
        return (checkpoint.step, layers), own
    finally:
        checkpoint.store.close()


def _increments(old: QKLayer, new: QKLayer, before: int, after: int, tau: float) -> Iterator[Increment]:
    steps = after - before
    limit = math.expm1(steps * math.log1p(tau))
    for projection in ("q", "k"):
        was, is_now = (np.asarray(getattr(layer, projection), dtype=np.float64) for layer in (old, new))
        flat = was.reshape(-1, was.shape[2])
        size, moved = norm(flat), norm(is_now.reshape(flat.shape) - flat)
        ratio = moved / size if size > 0 else (math.nan if math.isnan(size) else math.inf if moved > 0 else 0.0)
        implied = math.expm1(math.log1p(ratio) / steps) if math.isfinite(ratio) else ratio
        noise = _rounding(flat, new.stored) / size if size > 0 else 0.0
        yield Increment(new.name, new.layer, projection, before, after, ratio, limit, implied, noise)


def _rounding(w: F64, stored: str) -> float:
    """Return the spectral norm to expect of the rounding errors of two weights like w (rows, columns).

    Errors are at most 2^-p relative with p bits of precision, independent and even: a random matrix whose largest
    singular value is near (√rows + √columns) times their root mean square.
    """
    unit = 2.0 ** -PRECISION.get(stored, 24)
    size = float(np.sqrt(np.mean(w**2)))
    return unit * math.sqrt(2 / 3) * size * (math.sqrt(w.shape[0]) + math.sqrt(w.shape[1]))


def _product_norm(a: F64, b: F64) -> F64:
    """Return ‖a'b‖_F of each head for a (heads, r, d), b (heads, r, d'), by two r x r Gram matrices."""
    grams = np.einsum("hij,hkj->hik", a, a), np.einsum("hij,hkj->hik", b, b)
    return np.asarray(np.sqrt(np.maximum(np.sum(grams[0] * grams[1], axis=(1, 2)), 0.0)))


def summary(found: Audit) -> Sequence[tuple[int, int, int, int, float, float]]:
    """Return a row an interval: before, after, projections cut, projections, largest ratio, least τ that cuts none."""
    rows = []
    for before, after in dict.fromkeys((i.before, i.after) for i in found.increments):
        own = [i for i in found.increments if (i.before, i.after) == (before, after)]
        worst = max(own, key=lambda i: math.inf if math.isnan(i.ratio) else i.ratio)
        rows.append((before, after, sum(i.bound for i in own), len(own), worst.ratio, worst.tau))
    return rows
