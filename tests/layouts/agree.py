"""Compare what the layouts read from a saved model with what the running model computes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qkspec.layouts.find import plan
from qkspec.layouts.load import read

if TYPE_CHECKING:
    from layouts.capture import Map

    from qkspec.checkpoints.store import Checkpoint
    from qkspec.qk import Norm, QKLayer, Rotary

TOLERANCE = 1e-6
EVERY, NONE, DECODER = "", "$^", r"decoder\.layers\.\d+\.self_attn$"
MASKED = {  # where no module says whether its mask is causal, or a wrong thing: the paths of those whose mask is
    **dict.fromkeys(
        ("bloom", "codegen", "doge", "gpt_neox_japanese", "groupvit_text_model", "imagegpt", "mpt", "openai-gpt"), EVERY
    ),
    **dict.fromkeys(("clvp_decoder", "cpmant", "xglm"), EVERY),
    **dict.fromkeys(
        ("bigbird_pegasus", "fsmt", "led", "mvp", "nllb-moe", "pegasus_x", "speecht5", "t5gemma2", "trocr"), DECODER
    ),
    **dict.fromkeys(("lightglue", "phi4_multimodal_audio"), NONE),  # copied from Llama; the masks look both ways
    **dict.fromkeys(("informer", "informer full"), DECODER),
    "videoprism_text_model": EVERY,
    "bridgetower": NONE,  # its modules say so, its masks look both ways
    "blip": r"^text_model\.",
    "idefics": r"^layers\.",  # of its cross-attention, whose mask is that of the images
    "sam3": r"^text_encoder\.",  # as CLIP's: the model says so at the call, its layers run by themselves do not
    "phi4_multimodal": r"^layers\.",  # of its tower, for which the model makes a mask of both directions
}
TURNED_ELSEWHERE = ("roformer", "clvp_encoder")  # by a method that the capture does not see; run without
KEYS_APART = ("maskformer",)  # DETR's rows, whose keys come from another model's pixels here
FED_BARE = ("layoutlmv3", "marian")  # these put no norm in front of layer 0, or only where there are images


def layers_of(checkpoint: Checkpoint, **options) -> list[QKLayer]:
    found = plan(checkpoint, **options)
    return [read(checkpoint, found, module) for module in found.modules]


def pair_up(layers: Sequence[QKLayer], maps: Iterable[Map]) -> list[tuple[QKLayer, Map]]:
    """Pair layers that were read with modules that ran, the most alike paths first; each is used once."""
    truths = {found.path: found for found in maps}
    ranked = sorted(
        ((alike(layer.name, path), i, path) for i, layer in enumerate(layers) for path in truths), reverse=True
    )
    pairs: dict[int, str] = {}
    for _, i, path in ranked:
        if i not in pairs and path not in pairs.values():
            pairs[i] = path
    return [(layers[i], truths[path]) for i, path in sorted(pairs.items())]


def alike(one: str, two: str) -> tuple[int, int]:
    """Return how well two module paths match: equal numbers in order, then common parts from the end."""
    a, b = one.split("."), two.split(".")
    numbers = [part for part in a if part.isdigit()] == [part for part in b if part.isdigit()]
    same = next(
        (i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b))
    )
    return (int(numbers), 10 * same + len(set(a) & set(b)))


def forms(wq: np.ndarray, wk: np.ndarray) -> np.ndarray:
    """Return (heads, d + 1, d' + 1): the bilinear form of every query head's logits, biases included."""
    group = wq.shape[0] // wk.shape[0]
    return np.stack([wq[head].T @ wk[head // group] for head in range(wq.shape[0])])


def affine(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    last = np.zeros(weight.shape[:2]) if bias is None else bias
    return np.concatenate([np.asarray(weight, float), np.asarray(last, float)[..., None]], axis=2)


def check_layer(layer: QKLayer, truth: Map, *, norms: bool = True, inside: tuple[str, ...] = ()) -> None:
    """Assert that a layer's spectra, bilinear form, scale and norms are the model's own."""
    where = f"{layer.name} against {truth.path}"
    scale = np.full(layer.heads, layer.scale)
    if layer.qk_norm is not None and layer.qk_norm.temperature is not None:
        scale = np.asarray(layer.qk_norm.temperature, float)
    mine = forms(affine(layer.q, layer.q_bias), affine(layer.k, layer.k_bias)) * scale[:, None, None]
    assert layer.softmax == (not np.isnan(truth.factor).any()) or layer.softmax is False, f"{where}: no softmax ran"
    theirs = forms(truth.wq, truth.wk) * np.where(np.isnan(truth.factor), scale, truth.factor)[:, None, None]
    assert mine.shape == theirs.shape, f"{where}: heads and widths {mine.shape}, the model's {theirs.shape}"
    for head in range(layer.heads):
        m, w = mine[head, :-1, :-1], theirs[head, :-1, :-1]
        s, t = (np.linalg.svd(x, compute_uv=False)[: layer.d_q] for x in (m, w))
        np.testing.assert_allclose(s, t, rtol=TOLERANCE, atol=TOLERANCE * t[0], err_msg=f"{where}: σ of head {head}")
        for k in (1, 2, 4, 8):
            if k <= layer.d_q:
                assert math.isclose(
                    (s[:k] ** 2).sum() / (s**2).sum(), (t[:k] ** 2).sum() / (t**2).sum(), rel_tol=TOLERANCE
                ), where
        if m.shape[0] == m.shape[1]:
            assert abs(np.trace(m) - np.trace(w)) <= TOLERANCE * np.abs(w).sum(), f"{where}: trace of head {head}"
            assert positive_fraction(m, layer.d_q) == positive_fraction(w, layer.d_q), (
                f"{where}: positive fraction of head {head}"
            )
    np.testing.assert_allclose(
        mine, theirs, atol=10 * TOLERANCE * np.abs(theirs).max(), rtol=0, err_msg=f"{where}: logits"
    )
    if norms:
        check_norm(layer, layer.q_input, truth.natural, "q_input", where)
    if norms and layer.k_input is not None:
        check_norm(layer, layer.k_input, truth.natural_y, "k_input", where)
    if [name for name in truth.normed if not inside or not name.endswith(inside)]:
        assert (
            layer.qk_norm is not None or layer.k_factors is not None or any("norm" in line for line in layer.unknown)
        ), f"{where}: {truth.normed} ran, none was read"
    else:
        assert layer.qk_norm is None or layer.qk_norm.kind == "l2", f"{where}: read a norm of q and k that did not run"


def check_facts(layer: QKLayer, truth: Map, case: str) -> None:
    """Assert that whom a token sees, whether it rotates and how logits are held back are the model's own."""
    where = f"{layer.name} against {truth.path}"
    seen = re.search(MASKED[case], truth.path) is not None if case in MASKED else truth.causal is True
    assert layer.causal == seen, f"{where}: read causal={layer.causal}, the model's is {seen}"
    if case not in TURNED_ELSEWHERE:
        assert (layer.rotary is not None) == truth.turned, f"{where}: read {layer.rotary}, rotated: {truth.turned}"
    assert (layer.softcap, layer.clamp) == (truth.softcap, truth.clamp), f"{where}: caps on logits, q and k"


def check_norms_found(checkpoint: Checkpoint, case: str) -> None:
    """Assert that every norm that a row names is in the checkpoint; post-LN rows may say that layer 0 has none."""
    for module in plan(checkpoint).modules:
        for role, norm in (("q_input", module.row.norm), ("k_input", module.row.k_norm)):
            if norm is None or norm.kind == "none" or norm.at is None:
                continue
            if role == "k_input" and case in KEYS_APART:
                continue
            layer = re.findall(r"\.(\d+)(?=\.)", f".{module.name}.")[-1:]
            if norm.first is not None and layer == ["0"] and (not norm.first or case in FED_BARE):
                continue
            assert role in module.roles, f"{module.name}: no tensor for its {role} norm {norm.at!r}"


def check_rotation(layer: QKLayer, rest: Map, turned: Map, offset: int) -> None:
    """Assert that queries at a position and keys at position zero meet as the layer's rotary says."""
    if any("rescaled" in line for line in layer.remarks):
        return
    if any("backwards" in line for line in layer.remarks):
        offset = -offset
    theirs = forms(turned.wq, rest.wk)
    mine = forms(rotated(affine(layer.q, layer.q_bias), layer.rotary, offset), affine(layer.k, layer.k_bias))
    mine, theirs = mine * layer.scale, theirs * rest.factor[:, None, None]
    np.testing.assert_allclose(
        mine, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0, err_msg=f"{layer.name}: rotation"
    )


def rotated(q: np.ndarray, rotary: Rotary | None, position: int) -> np.ndarray:
    """Return (heads, d_q, d) with every pair of coordinates turned by its own angle, one pair at a time."""
    turned = q.copy()
    for i in range(rotary.dims // 2 if rotary else 0):
        angle = position * rotary.theta ** (-2 * i / rotary.dims)
        first, second = (2 * i, 2 * i + 1) if rotary.pairing == "adjacent" else (i, i + rotary.dims // 2)
        a, b = q[:, rotary.start + first], q[:, rotary.start + second]
        turned[:, rotary.start + first] = a * np.cos(angle) - b * np.sin(angle)
        turned[:, rotary.start + second] = a * np.sin(angle) + b * np.cos(angle)
    return turned


def positive_fraction(m: np.ndarray, d_q: int) -> float:
    """Return the share with positive real part among the d_q eigenvalues of largest size."""
    values = np.linalg.eigvals(m)
    values = values[np.argsort(-np.abs(values))][:d_q]
    return float((values.real > 0).mean())


def check_norm(layer: QKLayer, norm: Norm | None, natural: np.ndarray, role: str, where: str) -> None:
    """Assert that undoing a norm's gain and bias on the real input leaves unit vectors (centred, for a LayerNorm)."""
    if norm is None:
        assert any("input" in line or "keys" in line for line in layer.unknown) or layer.qk_norm is not None, (
            f"{where}: {role} is neither read nor unknown"
        )
        return
    if not np.isfinite(natural).all():
        return
    rows = natural
    if norm.bias is not None:
        rows = rows - norm.bias
    if norm.gain is not None:
        rows = rows / norm.gain
    assert np.abs((rows**2).mean(1) - 1).max() < 0.05, f"{where}: {role} does not normalise the model's input"
    if norm.kind == "layer":
        assert np.abs(rows.mean(1)).max() < 1e-3, f"{where}: {role} does not centre the model's input"


def open_saved(folder: Path) -> Checkpoint:
    from qkspec.checkpoints.sequence import open_checkpoint

    return open_checkpoint(folder)
