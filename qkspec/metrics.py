"""The metrics of a head: what its weights say of its logits, and METRICS, one line each."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec import latent
from qkspec.attention import (
    DEFAULT_CONTEXT,
    MapIndices,
    entropy_error,
    entropy_floor,
    map_indices,
    measured,
    predicted_map,
    rotated,
)
from qkspec.energy import (
    directions_for,
    frobenius,
    positive_fraction,
    sec,
    spectral_effective_rank,
    stable_rank,
    star,
)
from qkspec.qk import Array, Norm, QKLayer
from qkspec.spectrum import Spectra, spectra

F64 = NDArray[np.float64]

DEFAULT_SIZES = (1, 2, 4, 8)  # the s of sec_s
EMBEDDED, RANDOM, MEASURED = (  # columns of maps of given inputs, by what these were
    tuple(f"{kind}_{index}" for index in ("entropy", "rank", "diagonal", "columns", "logit_std"))
    for kind in ("embedded", "random", "measured")
)
_GIVEN = {"embedded": EMBEDDED, "random": RANDOM, "measured": MEASURED}


def folding(layer: QKLayer) -> tuple[Array, Array, Array | None, Array | None]:
    """Return the arguments of ``spectra``: with the input norms' gains where the logits are x' M y of known x and y."""
    if layer.qk_norm is not None or "input norm" in layer.unknown:
        return layer.q, layer.k, None, None
    return layer.q, layer.k, _gain(layer.q_input), _gain(layer.k_input)


def folded_spectra(layer: QKLayer, *, eigenvalues: bool = True) -> Spectra:
    """Return the spectra of a module with its norms' gains folded in; ``eigenvalues`` as of ``spectra``."""
    return spectra(*folding(layer), eigenvalues=eigenvalues)


def logit_std(layer: QKLayer, found: Spectra | None = None) -> F64:
    """Return the standard deviation of a logit between independent tokens x ~ N(0, I), (heads,).

    ‖diag(γ_q) M diag(γ_k)‖_F · scale with the input norms' gains folded in. Under QK-norm the projections have unit size
    whatever M is, and it is scale · ‖γ_q∘γ_k‖ of that norm's gains.

    Args:
        layer: the module.
        found: its ``folded_spectra``, if they are at hand.

    Returns:
        (heads,) float64; NaN where the layer's ``unknown`` names the input norm, or the weights are not finite.
    """
    if layer.qk_norm is not None:
        return _normalised_logit_std(layer)
    if "input norm" in layer.unknown:
        return np.full(layer.heads, np.nan)
    if layer.k_factors is not None:
        return latent.logit_std(layer)
    return np.asarray((found or folded_spectra(layer)).gained * abs(layer.scale))


def mean_diagonal_logit(layer: QKLayer, found: Spectra | None = None) -> F64:
    """Return the mean logit of a token on itself, scale · trace(diag(γ) M diag(γ)), (heads,) (appendix C).

    NaN in cross-attention, under QK-norm, and where the input norm is unknown. Arguments as of ``logit_std``.
    """
    if layer.qk_norm is not None or "input norm" in layer.unknown:
        return np.full(layer.heads, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        gained = (found or folded_spectra(layer)).gained_trace * layer.scale
        out = gained if layer.k_factors is None else latent.mean_diagonal_logit(layer)
    return np.where(np.isfinite(out), out, np.nan)


@dataclass(frozen=True)
class Facts:
    """One module with what was computed of it, the argument of every metric."""

    layer: QKLayer
    spectra: Spectra
    predicted: MapIndices
    predicted_error: F64
    logit_std: F64
    mean_diagonal: F64


def facts(layer: QKLayer, *, seed: int = 0, found: Spectra | None = None, eigenvalues: bool = True) -> Facts:
    """Compute the spectra (unless ``found``) and the predicted map of one module. Arguments as of ``measure``."""
    maps = predicted_map(layer, seed=seed)
    indices, error = map_indices(maps, causal=layer.causal), entropy_error(maps, causal=layer.causal)
    if "input norm" in layer.unknown and layer.qk_norm is None:
        error = np.full(layer.heads, np.nan)
        indices = MapIndices(error, error, error, error)
    found = folded_spectra(layer, eigenvalues=eigenvalues) if found is None else found
    return Facts(layer, found, indices, error, logit_std(layer, found), mean_diagonal_logit(layer, found))


def freezing_ratio(std: F64, context: int | None) -> F64:
    """Return κ = logit std / √(2 ln T): at 1 a row of T Gaussian logits freezes onto a few tokens."""
    return np.asarray(std / np.sqrt(2 * np.log(max(context or DEFAULT_CONTEXT, 2))))


def logit_bound(layer: QKLayer) -> F64:
    """Return the largest |logit| that QK-norm allows whatever the input, (heads,); NaN without QK-norm.

    A normalised vector has length √d_q (1 for "l2"; over all heads together, √(heads · d_q)), so with gains γ the
    product is at most that length squared times max|γ_q∘γ_k|; biases add by the triangle inequality.
    """
    norm = layer.qk_norm
    if norm is None:
        return np.full(layer.heads, np.nan)
    group = layer.heads // layer.kv_heads
    gain_q, gain_k = _or_ones(norm.q_gain, layer.heads, layer.d_q), _or_ones(norm.k_gain, layer.kv_heads, layer.d_q)
    bias_q = np.zeros_like(gain_q) if norm.q_bias is None else norm.q_bias.astype(np.float64)
    bias_k = np.zeros_like(gain_k) if norm.k_bias is None else norm.k_bias.astype(np.float64)
    gain_k, bias_k = np.repeat(gain_k, group, axis=0), np.repeat(bias_k, group, axis=0)
    together = (1, 1) if norm.per_head else (layer.heads, layer.kv_heads)
    long_q, long_k = (1.0, 1.0) if norm.kind == "l2" else np.sqrt(np.multiply(together, layer.d_q))
    size = long_q * long_k * np.abs(gain_q * gain_k).max(axis=1)
    size += long_q * np.linalg.norm(gain_q * bias_k, axis=1) + long_k * np.linalg.norm(gain_k * bias_q, axis=1)
    size += np.abs(np.sum(bias_q * bias_k, axis=1))
    scale = layer.scale if norm.temperature is None else norm.temperature.astype(np.float64)
    bound = np.abs(scale) * size
    return np.asarray(bound if layer.softcap is None else np.minimum(bound, layer.softcap))


def floor(std: F64, context: int | None) -> F64:
    """Return σReparam's lower bound on the entropy of a row of T logits of standard deviation ``std``, / ln T, (heads,)."""
    tokens = max(context or DEFAULT_CONTEXT, 2)
    return entropy_floor(std * math.sqrt(tokens), tokens) / math.log(tokens)


def at_offsets(layer: QKLayer, offsets: Sequence[int]) -> dict[str, F64]:
    """Return σ_1 and SEC(d_q, s*) of W_q' R_Δ W_k for each offset Δ, (heads,); NaN without rotary position.

    With rotary position a query sees a key Δ tokens before it through this matrix; Δ = 0 is M itself.
    """
    out: dict[str, F64] = {}
    for offset in offsets:
        sigma = np.full((layer.heads, layer.d_q), np.nan)
        if layer.rotary is not None:
            sigma = spectra(layer.q, rotated(layer.k, layer.rotary, -offset)).sigma
        out[f"sigma1_at_{offset}"] = np.asarray(sigma[:, 0])
        out[f"sec_star_at_{offset}"] = sec(sigma, star(layer.d_q))
    return out


def on_activations(
    layer: QKLayer, x: Array | None, y: Array | None = None, *, kind: str = "measured"
) -> dict[str, F64]:
    """Return the indices of a module's maps of given inputs, (heads,) each; NaN where there are none.

    Args:
        layer: the module.
        x: (batch, tokens, d) what its query projection was given in a forward pass, behind the input norm.
        y: (batch, tokens, d') likewise for the keys; None in self-attention.
        kind: "measured" for real activations, "random" for those of random tokens, "embedded" for embeddings of such.
    """
    columns = _GIVEN[kind]
    if x is None:
        return {name: np.full(layer.heads, np.nan) for name in columns}
    indices, std = measured(layer, x.astype(np.float32), None if y is None else y.astype(np.float32))
    return dict(zip(columns, (indices.entropy, indices.rank, indices.diagonal, indices.columns, std), strict=True))


@dataclass(frozen=True)
class Metric:
    """One column: its name, what it is in a sentence, where that comes from, and how it is computed from Facts."""

    name: str
    meaning: str
    source: str
    compute: Callable[[Facts], F64]


METRICS = (
    Metric("sigma1", "largest singular value of M = W_q'W_k", "Theorem 1", lambda f: f.spectra.sigma[:, 0]),
    Metric("sigma2", "second singular value of M", "Theorem 1", lambda f: _second(f.spectra.sigma)),
    Metric("frobenius", "‖M‖_F, the root of the summed squares of the singular values", "", lambda f: frobenius(f.spectra.sigma)),
    Metric("stable_rank", "Σσ² / σ_1²", "", lambda f: stable_rank(f.spectra.sigma)),
    Metric("effective_rank", "exp of the entropy of the shares σ²/Σσ²", "after Roy & Vetterli 2007, with σ² for σ", lambda f: spectral_effective_rank(f.spectra.sigma)),
    Metric("s90", "least s with SEC(d_q, s) ≥ 0.9", "equation 4", lambda f: directions_for(f.spectra.sigma, 0.9)),
    Metric("s99", "least s with SEC(d_q, s) ≥ 0.99", "equation 4", lambda f: directions_for(f.spectra.sigma, 0.99)),
    Metric("sec_star", "SEC(d_q, s*) with s* = max(1, ⌈d_q/16⌉), the paper's 4 at d_q = 64", "equation 4", lambda f: sec(f.spectra.sigma, star(f.layer.d_q))),
    Metric("trace", "trace of M", "appendix C", lambda f: f.spectra.trace),
    Metric("positive_fraction", "share of the d_q eigenvalues of M with a positive real part", "appendix O", lambda f: positive_fraction(f.spectra.eigenvalues)),
    Metric("sigma1_wq", "spectral norm of W_q", "equation 1", lambda f: f.spectra.sigma1_q),
    Metric("sigma1_wk", "spectral norm of W_k", "equation 1", lambda f: np.repeat(f.spectra.sigma1_k, f.layer.heads // f.layer.kv_heads)),
    Metric("logit_std", "standard deviation of a logit for independent x ~ N(0, I) behind the input norm", "appendix D", lambda f: f.logit_std),
    Metric("freezing_ratio", "κ = logit std / √(2 ln T); a row of logits freezes near 1", "random energy model", lambda f: freezing_ratio(f.logit_std, f.layer.context)),
    Metric("logit_bound", "under QK-norm: the largest |logit| that the norm's gains, biases and scale allow, whatever the input", "", lambda f: logit_bound(f.layer)),
    Metric("entropy_floor", "least entropy / ln T that a row of mean-zero logits of this standard deviation can have", "σReparam, Zhai et al. 2023", lambda f: floor(f.logit_std, f.layer.context)),
    Metric("mean_diagonal", "mean logit of a token on itself, scale · trace(M) with the gains folded in", "appendix C", lambda f: f.mean_diagonal),
    Metric("predicted_entropy", "mean row entropy / ln(row length) of the map that the weights predict", "figure 3", lambda f: f.predicted.entropy),
    Metric("predicted_rank", "effective rank / tokens of the predicted map", "figure 3", lambda f: f.predicted.rank),
    Metric("predicted_diagonal", "mean mass on the diagonal of the predicted map", "figure 3", lambda f: f.predicted.diagonal),
    Metric("predicted_columns", "distinct arg-max columns / tokens of the predicted map", "figure 3", lambda f: f.predicted.columns),
    Metric("predicted_entropy_error", "Monte-Carlo standard error of predicted_entropy, which comes from one draw of at most 64 tokens", "grouped jackknife", lambda f: f.predicted_error),
)  # fmt: skip


def sec_metrics(sizes: Sequence[int]) -> tuple[Metric, ...]:
    """Return one metric sec_s for each s of sizes."""
    return tuple(
        Metric(f"sec_{s}", f"SEC(d_q, {s}), the share of Σσ² in the {s} largest", "equation 4", _sec_of(s))
        for s in sizes
    )


def names(
    sizes: Sequence[int] = DEFAULT_SIZES,
    offsets: Sequence[int] = (),
    kinds: Collection[str] = (),
) -> tuple[str, ...]:
    """Return the metric columns in the order of heads.csv; those of offsets and of ``kinds`` of maps stand last."""
    ordered = [metric.name for metric in METRICS]
    at = ordered.index("s99") + 1
    further = [f"{name}_at_{offset}" for offset in offsets for name in ("sigma1", "sec_star")]
    further += [column for kind, columns in _GIVEN.items() if kind in kinds for column in columns]
    return (*ordered[:at], *(f"sec_{s}" for s in sizes), *ordered[at:], *further)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # weights may be anything; what is not finite is empty
def measure(
    layer: QKLayer,
    sizes: Sequence[int] = DEFAULT_SIZES,
    *,
    seed: int = 0,
    found: Spectra | None = None,
    eigenvalues: bool = True,
) -> tuple[dict[str, F64], F64]:
    """Compute every metric of one module.

    Args:
        layer: the module.
        sizes: the s of sec_s.
        seed: of the predicted map's tokens.
        found: its ``folded_spectra`` if another back end computed them.
        eigenvalues: whether positive_fraction is wanted; it is NaN otherwise.

    Returns:
        {metric: (heads,) float64} in the order of ``names``, and sigma (heads, d_q).
    """
    known = facts(layer, seed=seed, found=found, eigenvalues=eigenvalues)
    values = {metric.name: metric.compute(known) for metric in (*METRICS, *sec_metrics(sizes))}
    return {name: values[name] for name in names(sizes)}, known.spectra.sigma


def largest(values: F64) -> float | None:
    """Return the largest finite value, or None if there is none."""
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else None


def _sec_of(s: int) -> Callable[[Facts], F64]:
    return lambda f: sec(f.spectra.sigma, s)


def _second(sigma: F64) -> F64:
    return np.full(len(sigma), np.nan) if sigma.shape[1] < 2 else np.asarray(sigma[:, 1])


def _gain(norm: Norm | None) -> Array | None:
    return None if norm is None else norm.gain


def _normalised_logit_std(layer: QKLayer) -> F64:
    assert layer.qk_norm is not None
    norm = layer.qk_norm
    gain_q = _or_ones(norm.q_gain, layer.heads, layer.d_q)
    gain_k = np.repeat(_or_ones(norm.k_gain, layer.kv_heads, layer.d_q), layer.heads // layer.kv_heads, axis=0)
    size = np.sqrt(np.sum((gain_q * gain_k) ** 2, axis=1))
    if norm.kind == "l2":  # unit vectors: each coordinate has variance 1/d_q
        size = size / layer.d_q
    scale = layer.scale if norm.temperature is None else norm.temperature.astype(np.float64)
    return np.asarray(np.abs(scale) * size)


def _or_ones(gain: Array | None, heads: int, d_q: int) -> F64:
    return np.ones((heads, d_q)) if gain is None else gain.astype(np.float64)
