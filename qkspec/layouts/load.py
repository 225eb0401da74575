"""Read one attention module: the only place of this room where tensor data is touched."""

from typing import Literal

import numpy as np

from qkspec.checkpoints.store import Checkpoint, Store
from qkspec.errors import LayoutError
from qkspec.layouts import facts
from qkspec.layouts.cut import (
    Rows,
    as_matrix,
    latent_key_factor,
    latent_keys,
    latent_queries,
    parts_of,
    span,
    spread,
    take,
)
from qkspec.layouts.heads import group_count
from qkspec.layouts.layout import InputNorm, Latent, QKNormAt
from qkspec.layouts.modules import Module, Plan
from qkspec.layouts.roles import BATCH_NORM
from qkspec.qk import Array, Factored, Norm, QKLayer, QKNorm


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # products and norms of anything: NaN stays NaN
def read(checkpoint: Checkpoint, plan: Plan, module: Module) -> QKLayer:  # noqa: ARG001 - it vouches for the module
    """Return one attention module with its weights cut into heads; only its own tensors are read.

    Args:
        checkpoint: the checkpoint that was planned.
        plan: its plan.
        module: one of the plan's modules.

    Raises:
        LayoutError: a tensor's shape is not what the layout needs.
        CheckpointError: the bytes cannot be read.
    """
    row, store = module.row, checkpoint.store
    q_factors = k_factors = None
    if isinstance(row.weights, Latent):
        q, k, q_factors, k_factors = _latent(store, module)
    else:
        q, k = _weights(store, module)
        if "q_a" in module.roles:
            q, q_factors = _second_factor(store, module, q)
    q_bias, k_bias = _biases(store, module)
    q, q_bias = _folded(store, module, "q", q, q_bias)
    k, k_bias = _folded(store, module, "k", k, k_bias)
    q_input = _norm(store, module, "q_input", row.norm)
    k_input = _norm(store, module, "k_input", row.k_norm) if row.k_norm is not None else q_input
    return QKLayer(
        name=module.name,
        layer=module.layer,
        block=module.block,
        q=q,
        k=k,
        scale=facts.logit_scale(row, module.config, module.d_q, module.layer),
        stored=module.stored,
        q_bias=q_bias,
        k_bias=k_bias,
        q_input=q_input,
        k_input=k_input,
        q_factors=q_factors,
        k_factors=k_factors,
        qk_norm=_qk_norm(store, module),
        rotary=facts.rotary(row, module.config, module.d_q, module.layer),
        softcap=(facts.number(module.config, row.softcap) if row.softcap else None) or None,  # 0 is off
        clamp=(facts.number(module.config, row.clamp) if row.clamp else None) or None,
        causal=facts.causal(row, module.config),
        softmax=row.softmax and "linear" not in module.roles,
        context=facts.context(row, module.config),
        remarks=module.remarks + facts.remarks(row, module.config, module.layer),
        unknown=module.unknown + _unknown(module),
    )


def _latent(store: Store, module: Module) -> tuple[Array, Array, Factored | None, Factored | None]:
    """Return q and k of multi-head latent attention, and their factors where a norm stands between them."""
    roles, counts = module.roles, module.counts
    read = {role: store.read(roles[role]) for role in ("q", "q_b", "q_a", "kv_b", "kv_a") if role in roles}
    gains = {role: store.read(roles[role]).reshape(-1) for role in ("q_latent_norm", "kv_latent_norm") if role in roles}
    widths = {"q_latent_norm": len(read["q_a"]) if "q_a" in read else None, "kv_latent_norm": read["kv_b"].shape[1]}
    for role, width in widths.items():
        if role in gains and width is not None and gains[role].size != width:
            raise LayoutError(f"{module.name}: {roles[role]} has {gains[role].size} entries for a latent of {width}")
    assert isinstance(module.row.weights, Latent)
    if module.row.weights.joined:
        read["q_a"] = np.concatenate([read["q_a"], read["q_a"]])
    if "q_b" in read and read["q_b"].shape[1] != len(read["q_a"]):
        made, taken = len(read["q_a"]), read["q_b"].shape[1]
        raise LayoutError(f"{roles['q_a']} makes {made} entries, {roles['q_b']} takes {taken}")
    if module.row.weights.joined:  # behind each head's queries stand its gates
        by_head = read["q_b"].reshape(counts.heads, -1, len(read["q_a"]))
        read["q_b"] = by_head[:, : counts.d_q].reshape(-1, len(read["q_a"]))
    if module.row.weights.scaled:
        for role in {"q_b", "kv_b"} & set(read):
            read[role] = read[role] * np.sqrt(module.d_model / read[role].shape[1])
    q = latent_queries([read[role] for role in ("q", "q_b", "q_a") if role in read], counts)
    k = latent_keys(read["kv_b"], read["kv_a"], counts)
    q_factors = k_factors = None
    if "q_latent_norm" in gains and "q_a" in read:
        q_factors = Factored(read["q_b"].reshape(counts.heads, counts.d_q, -1), read["q_a"], gains["q_latent_norm"])
    if "kv_latent_norm" in gains:
        k_factors = Factored(
            latent_key_factor(read["kv_b"], read["kv_a"], counts), read["kv_a"], gains["kv_latent_norm"]
        )
    return q, k, q_factors, k_factors


def _second_factor(store: Store, module: Module, up: Array) -> tuple[Array, Factored | None]:
    """Return q = up down (heads, d_q, d) of a query that is a product, and its factors where a norm parts them."""
    down, norm = store.read(module.roles["q_a"]), module.roles.get("q_latent_norm")
    if up.shape[2] != len(down):
        raise LayoutError(
            f"{module.name}: {module.roles['q_a']} makes {len(down)} entries, its query takes {up.shape[2]}"
        )
    whole = up.astype(np.float64) @ down
    return whole, None if norm is None else Factored(up, down, store.read(norm).reshape(-1))


def _weights(store: Store, module: Module) -> tuple[Array, Array]:
    row, counts, roles = module.row, module.counts, module.roles
    q_rows, k_rows = parts_of(row, counts)
    q_name, k_name = roles.get("q", roles.get("qkv", "")), roles.get("k", roles.get("qkv", ""))
    if q_name == k_name and not row.inputs_first:
        both = _rows(store, q_name, np.concatenate([q_rows, k_rows]), module)
        q, k = both[: q_rows.size], both[q_rows.size :]
    elif q_name == k_name:
        whole = as_matrix(store.read(q_name), row)
        q, k = take(whole, q_rows), take(whole, k_rows)
    else:
        q, k = _rows(store, q_name, q_rows, module), _rows(store, k_name, k_rows, module)
    return q.reshape(counts.heads, counts.d_q, -1), k.reshape(counts.kv_heads, counts.d_q, -1)


def _rows(store: Store, name: str, rows: Rows, module: Module) -> Array:
    """Return rows of a weight as (len(rows), d), reading no others where they are contiguous in the file."""
    row = module.row
    groups = getattr(row.weights, "groups", None)
    plain = (
        not row.inputs_first
        and groups is None
        and not getattr(row.weights, "heads_first", False)
        and not getattr(row.weights, "experts", False)
    )
    stretch = span(rows) if plain else None
    if stretch is not None and stretch != slice(0, store.shape(name)[0]):
        return take(as_matrix(store.read(name, rows=stretch), row), rows - stretch.start)
    whole = as_matrix(store.read(name), row)
    if groups is not None:
        whole = spread(whole, group_count(module.config, groups, is_key=name == module.roles["k"]))
    return take(whole, rows)


def _biases(store: Store, module: Module) -> tuple[Array | None, Array | None]:
    """Return the (heads, d_q) and (kv_heads, d_q) biases, each None where the model has none."""
    roles, counts, row = module.roles, module.counts, module.row
    if isinstance(row.weights, Latent):
        return None, None
    found: list[Array | None] = []
    q_rows, k_rows = parts_of(row, counts)
    for role, cut, heads in (("q_bias", q_rows, counts.heads), ("k_bias", k_rows, counts.kv_heads)):
        name = roles.get(role, roles.get("qkv_bias"))
        if name is None:
            found.append(None)
            continue
        rows = np.arange(heads * counts.d_q) if role in roles and "qkv" in roles else cut
        if "qkv_bias" in roles and "k" in roles and role == "k_bias":  # q, k and v apart, but one bias for all three
            rows = rows + counts.heads * counts.d_q
        stored = store.read(name).reshape(-1)
        if stored.size <= int(rows.max()):
            raise LayoutError(
                f"{module.name}: {name} has {stored.size} entries, too few for {heads} heads of {counts.d_q}"
            )
        found.append(stored[rows].reshape(heads, counts.d_q))
    return found[0], found[1]


def _folded(store: Store, module: Module, side: str, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Return a projection with what stands behind it folded in: a gain on each coordinate of q, or a batch norm.

    Args:
        store: where the tensors are.
        module: their roles.
        side: "q" or "k".
        weight: (heads, d_q, d).
        bias: (heads, d_q) or None.
    """
    roles, shape = module.roles, weight.shape[:2]
    if side == "q" and "gain" in roles and module.row.qk_norm is None:
        factor = _gain(store, module)
        return weight * factor[:, None], None if bias is None else bias * factor
    role = "qkv_batch_norm" if "qkv_batch_norm.weight" in roles else f"{side}_batch_norm"
    if f"{role}.weight" not in roles:
        return weight, bias
    rows = parts_of(module.row, module.counts)[side == "k"]
    gain, shift, mean, variance = (store.read(roles[f"{role}.{part}"])[rows].reshape(shape) for part in BATCH_NORM)
    factor = gain / np.sqrt(variance + 1e-5)
    return weight * factor[..., None], shift + ((0.0 if bias is None else bias) - mean) * factor


def _gain(store: Store, module: Module) -> Array:
    """Return the learned factor on each coordinate of a query, softplus(x) / softplus(0)."""
    factor: Array = np.logaddexp(0.0, store.read(module.roles["gain"]).reshape(-1)) / np.log(2.0)
    return factor


def _norm(store: Store, module: Module, role: str, at: InputNorm | None) -> Norm | None:
    if at is None or at.kind == "none":
        return None
    name = module.roles.get(role)
    if name is None:
        return Norm("layer" if at.kind == "layer" else "rms") if at.at is None else None
    bias = module.roles.get(f"{role}_bias")
    kind: Literal["layer", "rms"] = "layer" if at.kind == "layer" or (at.kind == "auto" and bias is not None) else "rms"
    return Norm(kind, store.read(name).reshape(-1) + at.offset, None if bias is None else store.read(bias).reshape(-1))


def _qk_norm(store: Store, module: Module) -> QKNorm | None:
    at, roles = module.row.qk_norm, module.roles
    if at is None:
        return None
    q, k = _gains(store, module, "q_norm", at), _gains(store, module, "k_norm", at)
    temperature = None
    if at.temperature is not None and "temperature" in roles:
        temperature = np.exp(np.minimum(store.read(roles["temperature"]).reshape(-1), np.log(100.0)))
        if temperature.size != module.heads:
            raise LayoutError(f"{roles['temperature']} has {temperature.size} entries for {module.heads} heads")
    if q is None and k is None and not (at.flag is not None and module.config.get(at.flag)) and temperature is None:
        return None
    if "gain" in roles:  # it stands behind the norm
        q = np.ones((module.heads, module.d_q)) * _gain(store, module) * (1.0 if q is None else q)
    q_bias, k_bias = _gains(store, module, "q_norm_bias", at), _gains(store, module, "k_norm_bias", at)
    automatic: Literal["layer", "rms"] = "rms" if q_bias is None else "layer"
    return QKNorm(automatic if at.kind == "auto" else at.kind, at.per_head, q, k, q_bias, k_bias, temperature)


def _gains(store: Store, module: Module, role: str, at: QKNormAt) -> Array | None:
    """Return a norm's gain or bias as (heads, d_q): shared by the heads, one a head, or over the full width."""
    heads = module.heads if role.startswith("q") else module.kv_heads
    names = (
        [module.roles[role]]
        if role in module.roles
        else [name for key, name in module.roles.items() if key.startswith(f"{role}.")]
    )
    if not names:
        return None
    stored = np.concatenate([store.read(name).reshape(-1) for name in names])
    if not role.endswith("_bias"):
        stored = stored + at.offset
    if stored.size == module.d_q:
        return np.broadcast_to(stored, (heads, module.d_q))
    if stored.size != heads * module.d_q:
        raise LayoutError(
            f"{module.name}: {names[0]} has {stored.size} entries, neither one head's {module.d_q} nor {heads} heads'"
        )
    return stored.reshape(heads, module.d_q)


def _unknown(module: Module) -> tuple[str, ...]:
    """Return what could not be learned about the logits."""
    row, found = module.row, []
    for role, at, what in (("q_input", row.norm, "input norm"), ("k_input", row.k_norm, "norm of the keys' input")):
        if role == "k_input" and at is None:
            continue
        if at is None or (at.kind != "none" and at.at is not None and role not in module.roles):
            found.append(what)
        elif at.kind == "none" and row.qk_norm is None:
            found.append("scale of the attention input, which no norm sets")
    if isinstance(row.weights, Latent):
        found += _unknown_of_latents(module)
    return tuple(found)


def _unknown_of_latents(module: Module) -> list[str]:
    """Return what stands between the factors of latent attention and is not followed."""
    weights, roles = module.row.weights, module.roles
    assert isinstance(weights, Latent)
    wanted = (("q_latent_norm", weights.q_norm, "q_a"), ("kv_latent_norm", weights.kv_norm, "kv_a"))
    lost = [f"norm behind {of}" for role, at, of in wanted if at and of in roles and role not in roles]
    found = [*lost, "input norm"] if lost else []  # without it no logit is known
    biased = [role for role in ("q_bias", "q_a_bias", "q_b_bias", "kv_a_bias", "kv_b_bias") if role in roles]
    return found + (["biases of the factors of latent attention"] if biased else [])
