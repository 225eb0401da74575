"""The weight terms of the paper's equation 1 in each block: W_q, W_k, W_v, W_o, W_1, W_2, their products, γ and β.

Queries and keys come from the layouts. The other weights are found by the names that model families give them, inside
the block of the attention module; what is not found there is missing, never guessed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkspec.checkpoints.store import Checkpoint, Store
from qkspec.layouts.cut import as_matrix, rows_of
from qkspec.layouts.find import Module, Plan
from qkspec.layouts.layout import Fused
from qkspec.layouts.load import read
from qkspec.qk import Array, QKLayer

F64 = NDArray[np.float64]

MATRICES = ("W_q", "W_k", "W_v", "W_o", "W_1", "W_2")
PRODUCTS = ("W_q'W_k", "W_oW_v", "W_2W_1")
VECTORS = ("gamma_1", "beta_1", "gamma_2", "beta_2")
TERMS = (*MATRICES, *PRODUCTS, *VECTORS)

DENSE = 512  # the lesser side up to which a Gram matrix is cheaper than an iteration

_VALUE = r"(?:v_proj|value|v_lin|wv|v|to_v|value_proj)"
_OUTPUT = r"(?:o_proj|out_proj|c_proj|proj|dense|output\.dense|wo|o|to_out\.0|out_lin|out)"
_FIRST = r"(?:c_fc|fc1|fc_in|up_proj|dense_h_to_4h|intermediate\.dense|lin1|wi|wi_1|w3|linear1|fc|lin_1|mlp\.0)"
_SECOND = r"(?:c_proj|fc2|fc_out|down_proj|dense_4h_to_h|output\.dense|lin2|wo|w2|linear2|proj|lin_2|mlp\.2)"
_ATTENTION = re.compile(r"(?:^|\.)(?:attn|self_attn|attention|self_attention|SelfAttention|self)(?:\.|$)")
_NORM = re.compile(r"(?:^|\.)(?:ln_?\d?\w*|\w*norm\w*|\w*LayerNorm\w*|layernorm_\w+)$", re.IGNORECASE)
_SECOND_NORM = re.compile(r"(?:ln_2|ln2|norm2|post_attention_layernorm|layernorm_after|ffn_norm|final_layer_norm)$")
_AFTER_ATTENTION = re.compile(r"attention\.output\.LayerNorm$")


@dataclass(frozen=True)
class Block:
    """The weight terms of one block.

    Args:
        module: path of its attention module.
        layer: its number.
        values: term to spectral norm (matrices and products) or l2 norm (γ, β); a term that was not found is missing.
            W_q'W_k is the largest over heads.
    """

    module: str
    layer: int
    values: Mapping[str, float]


def blocks(checkpoint: Checkpoint, plan: Plan) -> Iterator[Block]:
    """Yield the terms of every block of a checkpoint, one block's weights in memory at a time."""
    from qkspec.spectrum import singular_values

    names = list(checkpoint.store.names())
    for module in plan.modules:
        layer = read(checkpoint, plan, module)
        found = weights(checkpoint.store, names, module, layer)
        values = {term: norm(matrix) for term, matrix in found.items() if term in MATRICES}
        values["W_q'W_k"] = float(np.max(singular_values(layer.q, layer.k)[:, 0]))
        if "W_v" in found and "W_o" in found:
            value = np.repeat(_by_head(found["W_v"], layer.kv_heads), layer.heads // layer.kv_heads, axis=0)
            spread = value.reshape(-1, found["W_v"].shape[1])
            if spread.shape[0] == found["W_o"].shape[1]:
                values["W_oW_v"] = norm(found["W_o"], spread)
        if "W_1" in found and "W_2" in found and found["W_2"].shape[1] == found["W_1"].shape[0]:
            values["W_2W_1"] = norm(found["W_2"], found["W_1"])
        values |= {term: float(np.linalg.norm(found[term])) for term in VECTORS if term in found}
        yield Block(module.name, module.layer, {term: values[term] for term in TERMS if term in values})


def weights(store: Store, names: list[str], module: Module, layer: QKLayer) -> dict[str, F64]:
    """Return the matrices (outputs, inputs) and the norms' vectors of a module's block, by term."""
    found = {"W_q": _flat(layer.q), "W_k": _flat(layer.k)}
    if "qkv" in module.roles and isinstance(module.row.weights, Fused) and "v" in module.row.weights.parts:
        whole = as_matrix(store.read(module.roles["qkv"]), module.row)
        rows = rows_of("v", module.row.weights.parts, module.row.weights.units, module.counts)
        found["W_v"] = np.asarray(whole[rows], dtype=np.float64)
    for name in names:
        path, inner = _inside(name, module)
        if path is None or len(store.shape(name)) > 2:
            continue
        term = _matrix_term(inner, found) if len(store.shape(name)) == 2 else _vector_term(inner, name)
        if term is not None and term not in found:
            stored = store.read(name)
            matrix = as_matrix(stored, module.row) if stored.ndim == 2 else stored
            found[term] = np.asarray(matrix, dtype=np.float64)
    return found


def norm(*factors: Array) -> float:
    """Return the spectral norm of a matrix, or of a product of matrices without forming it; NaN if not finite.

    Small ones by a Gram matrix; large ones by Lanczos iteration from a fixed start, to 1e-9 relative.
    """
    parts = [np.asarray(factor, dtype=np.float64) for factor in factors]
    # A matrix is large: NaN passes through max() and min(), and neither makes another of its size, as abs() would.
    tops = [max(float(part.max(initial=0.0)), -float(part.min(initial=0.0))) for part in parts]
    if not all(map(math.isfinite, tops)):
        return float("nan")
    size = 1.0
    for i, largest in enumerate(tops):
        if largest == 0.0:
            return 0.0
        parts[i], size = parts[i] / largest, size * largest
    if len(parts) == 1 and min(parts[0].shape) <= DENSE:
        w = parts[0] if parts[0].shape[0] <= parts[0].shape[1] else parts[0].T
        return size * float(np.sqrt(max(np.linalg.eigvalsh(w @ w.T)[-1], 0.0)))
    return size * _lanczos(parts)


def _lanczos(parts: list[F64]) -> float:
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = parts[-1].shape[1]

    def gram(x: F64) -> F64:
        y = x
        for part in reversed(parts):
            y = part @ y
        for part in parts:
            y = part.T @ y
        return y

    if n <= 2:
        return float(np.sqrt(np.linalg.eigvalsh(gram(np.eye(n)))[-1]))
    start = np.random.default_rng(n).standard_normal(n)
    operator = LinearOperator((n, n), matvec=gram, dtype=np.float64)
    top = eigsh(operator, k=1, v0=start, tol=1e-9, return_eigenvectors=False, ncv=min(n, 32))
    return float(np.sqrt(max(top[0], 0.0)))


def _inside(name: str, module: Module) -> tuple[str | None, str]:
    """Return the block's path and the tensor's name within it, or None for a tensor of another block."""
    match = re.match(r"(.*?\.)?\d+(?=\.)", module.name)
    path = _block_path(module.name)
    for lead in ("", *(prefix for prefix in _wrappers(name, path) if match)):
        if name.startswith(lead + path + "."):
            return path, name[len(lead + path) + 1 :].removesuffix(".weight")
    return None, ""


def _wrappers(name: str, path: str) -> Iterator[str]:
    at = name.find(path + ".")
    if at > 0 and name[at - 1] == ".":
        yield name[:at]


def _block_path(module: str) -> str:
    """Return the path up to the block's own number: "transformer.h.0" of "transformer.h.0.attn"."""
    numbered = [m.end() for m in re.finditer(r"(?:^|\.)\d+(?=\.)", module)]
    return module[: numbered[-1]] if numbered else module.rpartition(".")[0]


def _matrix_term(inner: str, found: Mapping[str, F64]) -> str | None:
    in_attention = _ATTENTION.search(inner) is not None
    if in_attention and "W_v" not in found and re.search(rf"(?:^|\.){_VALUE}$", inner):
        return "W_v"
    if in_attention and re.search(rf"(?:^|\.){_OUTPUT}$", inner):
        return "W_o"
    if not in_attention and re.search(rf"(?:^|\.){_FIRST}$", inner):
        return "W_1"
    if not in_attention and re.search(rf"(?:^|\.){_SECOND}$", inner):
        return "W_2"
    return None


def _vector_term(inner: str, name: str) -> str | None:
    kind = "beta" if name.endswith(".bias") else "gamma"
    stem = inner.removesuffix(".bias")
    if not _NORM.search(stem) or (_ATTENTION.search(stem) and not _AFTER_ATTENTION.search(stem)):
        return None
    second = _SECOND_NORM.search(stem) or stem == "output.LayerNorm"
    return f"{kind}_{2 if second else 1}"


def _flat(w: Array) -> F64:
    return np.asarray(w, dtype=np.float64).reshape(-1, w.shape[2])


def _by_head(w: F64, heads: int) -> F64:
    return w.reshape(heads, -1, w.shape[1])
