"""What a parameter is to the optimizer: a matrix, q, k and v fused, a stack of experts, an embedding, or a vector.

No tensor is touched here: names and shapes in, ``Role`` and ``View`` out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

from qkspec.errors import UsageError

Kind = Literal["matrix", "embedding", "vector"]
KINDS: tuple[Kind, ...] = ("matrix", "embedding", "vector")


@dataclass(frozen=True)
class Role:
    """How a parameter is bounded.

    Args:
        kind: "matrix", "embedding" or "vector"; the optimizer's ``exempt`` names the kinds that keep the plain lr.
        parts: (name, size) of the matrices fused in this one, in stored order; empty: it is one matrix.
        dim: the dimension they lie along: 0 for nn.Linear (outputs first), 1 for GPT-2's Conv1D (inputs first).
        units: the dimension falls into this many equal runs and each holds every part (1, or the head count where
            q, k and v are interleaved per head, as in GPT-NeoX). Sizes are those within one run.
        stacked: a parameter (experts, m, n) that is one matrix an expert; it has no parts.
    """

    kind: Kind
    parts: tuple[tuple[str, int], ...] = ()
    dim: Literal[0, 1] = 0
    units: int = 1
    stacked: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"{self.kind!r} is no kind of parameter; use one of {', '.join(KINDS)}")
        if self.stacked and self.parts:
            raise UsageError(f"the matrices of a stack are bounded whole: leave out its parts {dict(self.parts)}")
        if self.units < 1 or any(size < 1 for _, size in self.parts):
            raise UsageError(f"a role needs units and part sizes of at least 1, not {self.units} and {self.parts}")


@dataclass(frozen=True)
class View:
    """One matrix inside a parameter that has been reshaped to (rows, columns), see ``flat``.

    Args:
        name: the parameter's name, with "[q]" and the like where several matrices are fused.
        dim, units, start, size: the cut; see ``Role``. ``size`` -1 is the whole parameter.
        stacked: the parameter is a stack of matrices, one above the other in (rows, columns).
    """

    name: str
    dim: Literal[0, 1] = 0
    units: int = 1
    start: int = 0
    size: int = -1
    stacked: bool = False


_EMBEDDING = re.compile(
    r"wte|wpe|tte|.*embed|.*embeds|.*embeddings?|embed_(tokens|positions|in|out)|tok_emb|pos_emb|.*pos_embedding"
    r"|relative_position_bias_table|relative_attention_bias|positional_encoding|(cls|mask|dist|reg)_tokens?"
    r"|(class|query)_embed\w*"
)
_FUSED = re.compile(r"c_attn|qkv|qkv_proj|to_qkv|Wqkv|attn_qkv|in_proj|in_proj_weight")
_BIAS = re.compile(r"(.*_)?bias(es)?")  # those of stacked experts are matrices by shape
_STACKED = re.compile(r"(.*[._])?(experts?|moe)[._].*")
_ALWAYS_THIRDS = ("in_proj_weight", "to_qkv")  # nn.MultiheadAttention and its like: thirds of the rows by definition
_TALL = 8192  # rows from which an unnamed, tall matrix is taken for a vocabulary


def find_role(name: str | None, shape: Sequence[int]) -> Role:
    """Return the role that a parameter's name and shape give it.

    A fused projection is cut only where the shape settles which way it lies (3d x d or d x 3d); any other stays one
    matrix, which bounds it as a whole, and needs a ``Role`` from the user to be cut. A parameter of three dimensions
    below a module of experts is one matrix an expert; any other, as a convolution's, is its rows by all the rest.

    Args:
        name: dotted name ("h.0.attn.c_attn.weight"), or None where the optimizer was given bare tensors.
        shape: the parameter's shape.
    """
    leaf = _leaf(name)
    if leaf and _EMBEDDING.fullmatch(leaf):
        return Role("embedding")
    if len(shape) < 2 or max(shape) == prod(shape) or (leaf and _BIAS.fullmatch(leaf)):
        return Role("vector")
    if not name or not leaf:
        rows, columns = shape[0], prod(shape[1:])
        return Role("embedding" if len(shape) == 2 and rows >= _TALL and rows > 8 * columns else "matrix")
    if len(shape) == 3 and _STACKED.fullmatch(name) and "conv" not in leaf:
        return Role("matrix", stacked=True)
    return _fused_role(leaf, *shape) if len(shape) == 2 and _FUSED.fullmatch(leaf) else Role("matrix")


def _fused_role(leaf: str, rows: int, columns: int) -> Role:
    if rows == 3 * columns or (leaf in _ALWAYS_THIRDS and rows % 3 == 0):
        return Role("matrix", _qkv(rows // 3), 0)
    return Role("matrix", _qkv(columns // 3), 1) if columns == 3 * rows else Role("matrix")


def choose_role(name: str | None, shape: Sequence[int], roles: Mapping[str, Role | str] | None) -> Role:
    """Return the user's role for a parameter, where a pattern of ``roles`` matches its name, or the one found.

    Args:
        name: dotted name or None.
        shape: the parameter's shape.
        roles: shell patterns over names to a ``Role`` or a word: "matrix", "embedding", "vector",
            "qkv rows", "qkv columns" or "experts"; the first match counts.

    Raises:
        UsageError: a word is unknown, or a cut does not add up to the parameter's shape.
    """
    for pattern, role in (roles or {}).items():
        if fnmatchcase(name or "", pattern):
            chosen = _from_word(role, shape, name or "a parameter") if isinstance(role, str) else role
            _check(chosen, shape, name or "a parameter")
            return chosen
    return find_role(name, shape)


def flat(shape: Sequence[int], view: View) -> tuple[int, int]:
    """Return (rows, columns) of a parameter as the matrix that its views cut; a number is 1 x 1."""
    if view.stacked:
        return shape[0] * shape[1], shape[2]
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def views(name: str, role: Role, shape: Sequence[int]) -> tuple[View, ...]:
    """Return the matrices of a parameter of this shape that are bounded on their own."""
    if role.stacked:
        m = shape[1]
        return tuple(View(f"{name}[{e}]", 0, 1, e * m, m, stacked=True) for e in range(shape[0]))
    if not role.parts:
        return (View(name),)
    starts = [sum(size for _, size in role.parts[:i]) for i in range(len(role.parts))]
    return tuple(
        View(f"{name}[{part}]", role.dim, role.units, start, size)
        for (part, size), start in zip(role.parts, starts, strict=True)
    )


def _leaf(name: str | None) -> str | None:
    """The last word of a name that says what a parameter is: the module's for "weight", else its own."""
    if not name:
        return None
    words = name.split(".")
    return words[-2] if words[-1] == "weight" and len(words) > 1 else words[-1]


def _qkv(size: int) -> tuple[tuple[str, int], ...]:
    return (("q", size), ("k", size), ("v", size))


def _from_word(word: str, shape: Sequence[int], name: str) -> Role:
    if word in ("qkv rows", "qkv columns"):
        dim: Literal[0, 1] = 0 if word == "qkv rows" else 1
        return Role("matrix", _qkv(max(1, shape[dim] // 3) if len(shape) > dim else 1), dim)
    if word == "experts":
        return Role("matrix", stacked=True)
    for kind in KINDS:
        if word == kind:
            return Role(kind)
    raise UsageError(
        f"{name}: {word!r} is no role; use {', '.join(KINDS)}, 'qkv rows', 'qkv columns', 'experts' or a Role"
    )


def _check(role: Role, shape: Sequence[int], name: str) -> None:
    if role.stacked and len(shape) != 3:
        raise UsageError(f"{name}: {tuple(shape)} is no stack of matrices (experts, m, n); correct the role")
    if not role.parts:
        return
    sides = (shape[0], prod(shape[1:])) if len(shape) > 1 else (0, 0)
    total = role.units * sum(size for _, size in role.parts)
    if total != sides[role.dim]:
        raise UsageError(
            f"{name}: parts {dict(role.parts)} x {role.units} add up to {total}, but dimension {role.dim} "
            f"of {tuple(shape)} is {sides[role.dim]}; correct the role"
        )
    if role.dim == 1 and len({size for _, size in role.parts}) > 1:
        raise UsageError(f"{name}: parts along dimension 1 must be of one size, not {dict(role.parts)}; bound it whole")
