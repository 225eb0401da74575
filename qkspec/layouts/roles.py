"""Which tensor plays which part for one attention module: weights, biases, the norms around the projection."""

import re
from collections.abc import Iterable, Mapping

from qkspec.checkpoints.store import Store
from qkspec.errors import LayoutError
from qkspec.layouts.layout import Fused, InputNorm, Latent, Layout, Separate, fill
from qkspec.layouts.match import Claim

Names = Mapping[str, str]
GAINS = (".weight", ".gamma", ".scale", ".g", ".w", "_weight", "")
NORM_LIKE = re.compile(r"(?:^|[._])(?:q|k|qk|query|key)\w*(?:norm|ln|layernorm)")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
INNER = re.compile(r"\.(?:compressor|indexer)\.")  # a module inside attention, with queries and keys of its own
SHIFTS = (".bias", ".beta", ".b", "_bias")


def roles(claim: Claim, names: Names, heads: int) -> dict[str, str]:
    """Return role ▸ canonical tensor name for everything that ``read`` will need; absent roles are absent tensors.

    Raises:
        LayoutError: the checkpoint has the query weight but not the key weight, or half of a factorisation.
    """
    found = weights(claim, names)
    found |= _biases(claim, names, found)
    row = claim.row
    for role, norm in (("q_input", row.norm), ("k_input", row.k_norm)):
        if norm is not None and norm.at is not None and norm.kind != "none":
            found |= _norm(role, norm, claim, names)
    for role, key in (("q_latent_norm", "q_norm"), ("kv_latent_norm", "kv_norm")):
        at = getattr(row.weights, key, "")
        found |= _first(role, _at(claim, at), GAINS, names) if at else {}
    if row.qk_norm is not None:
        for role, pattern in (("q_norm", row.qk_norm.q), ("k_norm", row.qk_norm.k)):
            found |= _qk_norm(role, pattern, claim, names, heads)
        if row.qk_norm.temperature is not None:
            found |= _first("temperature", _at(claim, row.qk_norm.temperature), ("", ".weight"), names)
    found |= _behind(claim, names)
    if row.linear is not None:
        found |= _first("linear", _at(claim, row.linear), ("", ".weight"), names)
    return found


def _behind(claim: Claim, names: Names) -> dict[str, str]:
    """Return the roles of what stands behind the projections: a gain on queries, batch norms."""
    row, found = claim.row, dict[str, str]()
    if row.gain is not None:
        found |= _first("gain", _at(claim, row.gain), ("", ".weight"), names)
    for side, pattern in zip(("qkv",) if len(row.batch_norm) == 1 else ("q", "k"), row.batch_norm, strict=False):
        for part in BATCH_NORM:
            name = f"{_at(claim, pattern)}.{part}"
            if name not in names:
                raise LayoutError(f"{claim.path} has no {name}, so what its batch norm does to q and k is not known")
            found[f"{side}_batch_norm.{part}"] = name
    return found


def weights(claim: Claim, names: Names) -> dict[str, str]:
    """Return the roles of the weights alone."""
    match claim.row.weights:
        case Fused():
            return {"qkv": claim.anchor}
        case Separate(k=k, q_a=q_a):
            found = {"q": claim.anchor, "k": _must(claim, k, names)}
            return found | ({"q_a": _must(claim, q_a, names)} if q_a else {})
        case Latent(q=q, q_a=q_a, q_b=q_b, kv_a=kv_a):
            found = {"kv_b": claim.anchor, "kv_a": _must(claim, kv_a, names)}
            if _at(claim, q) + claim.suffix in names:
                return found | {"q": _must(claim, q, names)}
            return found | {"q_a": _must(claim, q_a, names), "q_b": _must(claim, q_b, names)}


def count_of_heads(claim: Claim, names: Names, store: Store, kv_heads: int | None) -> int | None:
    """Return the count of heads that a tensor's shape carries, or None; where experts ask, each asks every key head."""
    row = claim.row
    if isinstance(row.weights, Separate) and row.weights.experts:
        return store.shape(names[claim.anchor])[0] * kv_heads if kv_heads else None
    if isinstance(row.weights, Separate) and row.weights.heads_first:
        return store.shape(names[claim.anchor])[0]
    if row.heads_at is None:
        return None
    pattern, axis = row.heads_at
    name = next((stem for stem in (_at(claim, pattern), _at(claim, pattern) + ".weight") if stem in names), None)
    if name is None:
        return None
    shape = store.shape(names[name])
    if axis >= len(shape):
        raise LayoutError(f"{names[name]} has shape {shape}, so it does not tell the number of heads")
    return shape[axis]


def norm_like(names: Names) -> tuple[str, ...]:
    """Return the tensors whose names speak of a norm of queries or keys."""
    return tuple(name for name in names if NORM_LIKE.search(name) and not INNER.search(name))


def strangers(claim: Claim, norms: Iterable[str], taken: Mapping[str, str]) -> list[str]:
    """Return norm-like tensors beside the weights that no role accounts for: something else happens to q or k."""
    start, known = claim.path + ".", set(taken.values())
    return [name for name in norms if name.startswith(start) and name not in known]


def _at(claim: Claim, pattern: str) -> str:
    return claim.prefix + fill(pattern, claim.numbers)


def _must(claim: Claim, pattern: str, names: Names) -> str:
    name = _at(claim, pattern) + claim.suffix
    if name not in names:
        raise LayoutError(f"{claim.anchor} is there but {name} is not, so {claim.path} cannot be measured")
    return name


def _first(role: str, stem: str, suffixes: tuple[str, ...], names: Names) -> dict[str, str]:
    return next(({role: stem + suffix} for suffix in suffixes if stem + suffix in names), {})


def _biases(claim: Claim, names: Names, found: Mapping[str, str]) -> dict[str, str]:
    stated = claim.row.biases
    if stated is not None:
        pairs = zip(("qkv_bias",) if len(stated) == 1 else ("q_bias", "k_bias"), stated, strict=True)
        return {role: _at(claim, at) for role, at in pairs if at is not None and _at(claim, at) in names}
    biases = {f"{role}_bias": weight.removesuffix(".weight") + ".bias" for role, weight in found.items()}
    present = {role: name for role, name in biases.items() if name in names}
    # BEiT and DeBERTa keep q's bias apart from a fused weight, and have none for k.
    apart = {f"{part}_bias": f"{claim.path}.{part}_bias" for part in "qk"}
    return present or {role: name for role, name in apart.items() if name in names}


def _norm(role: str, norm: InputNorm, claim: Claim, names: Names) -> dict[str, str]:
    stem = _norm_stem(norm, claim, names)
    if not stem:
        return {}
    gain = _first(role, stem, GAINS, names)
    if not gain and norm.instead is not None:
        stem = _at(claim, norm.instead)
        gain = _first(role, stem, GAINS, names)
    return gain | _first(f"{role}_bias", stem, SHIFTS, names)


def _norm_stem(norm: InputNorm, claim: Claim, names: Names) -> str:
    """Return the name of the norm that feeds a module, without its suffix; "" where it is not known."""
    at = norm.at or ""
    if norm.last:
        return claim.prefix + fill(at, (_last(claim.prefix, at, names),)) if "{}" in at else claim.prefix + at
    if norm.first is None:
        return _at(claim, at)
    if claim.numbers and claim.numbers[-1] > 0:
        return claim.prefix + fill(at, (*claim.numbers[:-1], claim.numbers[-1] - 1))
    return claim.prefix + norm.first if norm.first else ""


def _last(prefix: str, at: str, names: Names) -> int:
    regex = re.compile(re.escape(prefix + at).replace(r"\{\}", r"(\d{1,9})") + r"(?:\.\w+)?")
    return max((int(match[1]) for name in names if (match := regex.fullmatch(name))), default=0)


def _qk_norm(role: str, pattern: str | None, claim: Claim, names: Names, heads: int) -> dict[str, str]:
    if pattern is None:
        return {}
    if "[head]" not in pattern:
        stem = _at(claim, pattern)
        return _first(role, stem, GAINS, names) | _first(f"{role}_bias", stem, SHIFTS, names)
    found: dict[str, str] = {}
    for head in range(heads):
        stem = _at(claim, pattern.replace("[head]", str(head)))
        found |= _first(f"{role}.{head}", stem, GAINS, names) | _first(f"{role}_bias.{head}", stem, SHIFTS, names)
    return found


def is_latent(row: Layout) -> bool:
    """Return whether a row's weights are products of factors."""
    return isinstance(row.weights, Latent)
