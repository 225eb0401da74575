"""The three attention modes of the paper's appendix G: normal, malignant and benign, from chosen spectra.

The appendix leaves out 1/√d_q and takes W_q, W_k ~ N(0, 1), so that its "normal" head has a logit standard deviation
near 6,000 and entropy 0. ``as_printed`` does that; with a chosen κ the three modes separate as figure 3 shows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qkspec import attention, energy, metrics, theorem
from qkspec.attention import map_indices
from qkspec.errors import UsageError
from qkspec.qk import QKLayer
from qkspec.readings import Readings
from qkspec.theorem import Condition, Limits, Verdict

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

MALIGNANT_FACTORS = (3.0, 2.0, 1.0)  # on the three singular values that the appendix keeps
NORMAL, MALIGNANT, BENIGN = "normal", "malignant", "benign"
MODES = (NORMAL, MALIGNANT, BENIGN)
PICTURED = {NORMAL: 0.3, MALIGNANT: 2.0, BENIGN: 0.6}  # κ at which a mode looks as in figure 3


@dataclass(frozen=True)
class Setup:
    """What to simulate; the defaults are the appendix's.

    Args:
        d_q: width of the head.
        d: width of the model.
        tokens: T.
        kappa: freezing ratio of every mode; None takes each mode's own of ``PICTURED``.
        as_printed: the appendix to the letter: no scale at all.
        seed: of weights and tokens.
    """

    d_q: int = 64
    d: int = 768
    tokens: int = 197
    kappa: float | None = None
    as_printed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.d_q <= self.d:
            raise UsageError(f"--d-q {self.d_q} must lie between 1 and --d {self.d}")
        if self.tokens < 2:
            raise UsageError(f"--tokens {self.tokens}: a map needs at least 2")
        if self.kappa is not None and not 0 < self.kappa < math.inf:
            raise UsageError(f"--kappa is {self.kappa!r}: give a number above 0")
        if self.as_printed and self.kappa is not None:
            raise UsageError("--as-printed has no scale to set: leave out --kappa")


@dataclass(frozen=True)
class Mode:
    """One simulated head.

    Args:
        name: of MODES.
        sigma: (d_q,) singular values of M.
        map: (T, T) its attention map, rows are queries.
        values: metric to value, the map's indices under predicted_*.
        verdict: by the limits.
        conditions: behind the verdict.
    """

    name: str
    sigma: F64
    map: F32
    values: Mapping[str, float]
    verdict: Verdict
    conditions: tuple[Condition, ...]


def simulate(setup: Setup | None = None, limits: Limits | None = None) -> tuple[Mode, ...]:
    """Return the three modes.

    Args:
        setup: sizes, κ and seed.
        limits: thresholds of the verdicts.
    """
    setup, limits = setup or Setup(), limits or Limits()
    rng = np.random.default_rng(setup.seed)
    w_q, w_k = rng.standard_normal((2, setup.d_q, setup.d))
    x = rng.standard_normal((setup.tokens, setup.d)).astype(np.float32)
    u, sigma, v = _svd(w_q, w_k)
    few = np.zeros(setup.d_q)
    kept = min(len(MALIGNANT_FACTORS), setup.d_q)
    few[:kept] = sigma[:kept] * MALIGNANT_FACTORS[:kept]
    shapes = {NORMAL: (u, sigma, v), MALIGNANT: (u, few, v), BENIGN: (u, sigma, u)}
    return tuple(_mode(name, *shapes[name], x, setup, limits) for name in MODES)


def _svd(w_q: F64, w_k: F64) -> tuple[F64, F64, F64]:
    """Return U (d, d_q), σ (d_q,), V (d, d_q) of w_q'w_k without forming it."""
    a, r = np.linalg.qr(w_q.T)
    b, s = np.linalg.qr(w_k.T)
    left, sigma, right = np.linalg.svd(r @ s.T)
    return np.asarray(a @ left), np.asarray(sigma), np.asarray(b @ right.T)


def _mode(name: str, u: F64, sigma: F64, v: F64, x: F32, setup: Setup, limits: Limits) -> Mode:
    """Make the head M = U diag(σ) V' and look at its map of tokens x (T, d)."""
    root = np.sqrt(sigma)[:, None]
    layer = QKLayer(name, 0, "self", (root * u.T)[None], (root * v.T)[None], 1.0, "float64", context=setup.tokens)
    if not setup.as_printed:
        kappa = PICTURED[name] if setup.kappa is None else setup.kappa
        layer = replace(layer, scale=kappa / float(metrics.freezing_ratio(metrics.logit_std(layer), setup.tokens)[0]))
    pattern = attention.softmax(attention.logits(layer, x, x), causal=False)
    indices = map_indices(pattern, causal=False)
    values, found = metrics.measure(layer)
    for index in ("entropy", "rank", "diagonal", "columns"):
        values[f"predicted_{index}"] = getattr(indices, index)
    readings = Readings(values)
    rank = np.array([energy.random_init(setup.d, setup.d, setup.d_q, energy.star(setup.d_q))[2]])
    return Mode(
        name,
        found[0],
        pattern[0],
        {metric: float(value[0]) for metric, value in values.items()},
        theorem.classify(readings, limits, np.array([True]), rank)[0],
        theorem.evidence(readings, limits, 0, float(rank[0])),
    )
