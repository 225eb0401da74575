"""What a plan holds: the attention modules of a checkpoint, known from headers and config alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qkspec.checkpoints.store import Store
from qkspec.errors import LayoutError
from qkspec.layouts.heads import Given, Heads, count, given, group_count, matrix_shape, settle
from qkspec.layouts.layout import Config, Latent, Layout, Separate
from qkspec.layouts.match import Claim, side
from qkspec.layouts.roles import count_of_heads, is_latent, norm_like, roles, strangers, weights
from qkspec.layouts.unlisted import CROSS

LOGITS = "input norm"
BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class Module:
    """One attention module whose queries and keys can be read.

    Args:
        name: its path in the checkpoint ("model.layers.0.self_attn").
        layer: its own number; in pyramids, its ordinal over stages and blocks.
        block: "self", "encoder.self", "decoder.cross", "vision.self", ...
        heads, kv_heads, d_q, d_model: the heads, the key heads, a head's width, the width of the queries' input.
        tensors: names of all tensors that ``read`` will read.
        stored: dtype of the query weight in the file.
        nbytes: bytes in the file of the tensors that hold query and key weights, values left out where rows can be.
        row, config: the layout that cuts it, and the config that speaks for it.
        roles: what each tensor is ("q", "k", "q_bias", "q_input", ...).
        remarks, unknown: as in QKLayer, as far as headers tell.
    """

    name: str
    layer: int
    block: str
    heads: int
    kv_heads: int
    d_q: int
    d_model: int
    tensors: tuple[str, ...]
    stored: str
    nbytes: int
    row: Layout = field(repr=False)
    config: Config = field(repr=False)
    roles: Mapping[str, str] = field(repr=False)
    remarks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def counts(self) -> Heads:
        """The three counts that cut a weight."""
        return Heads(self.heads, self.kv_heads, self.d_q)


@dataclass(frozen=True)
class Plan:
    """Everything that will be measured in a checkpoint, and everything that looks like attention and will not.

    Args:
        family: names of the layouts used ("llama", "clip").
        modules: in the order of blocks and layers.
        skipped: module path ▸ why it is not measured.
        remarks: what holds for the whole checkpoint.
    """

    family: str
    modules: tuple[Module, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finder:
    """Turns claims into modules.

    Args:
        store: the tensors, of which only headers are used.
        names: canonical name ▸ name in the file.
        heads, kv_heads: counts from the command line, for files that carry none.
    """

    store: Store
    names: Mapping[str, str]
    heads: int | None = None
    kv_heads: int | None = None

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """The tensors whose names speak of a norm of queries or keys."""
        return norm_like(self.names)

    def counts(self, claim: Claim) -> Heads:
        """Return the head counts of a claimed module.

        Raises:
            LayoutError: nobody says how many heads there are, or the shapes disagree.
        """
        row, found = claim.row, weights(claim, self.names)
        order = ("kv_b", "kv_a", "q", "q_b") if isinstance(row.weights, Latent) else ("qkv", "q", "k")
        shapes = [self._matrix(found[role], claim) for role in order if role in found]
        stated = given(row, claim.scope.config, claim.numbers or _digits(claim.path), side(claim.path))
        for said, asked in ((stated.heads, self.heads), (stated.kv_heads, self.kv_heads)):
            if said is not None and asked is not None and said != asked:
                raise LayoutError(
                    f"{claim.path}: the config says {said} heads, the command line {asked}; leave that option out"
                )
        heads = stated.heads or count_of_heads(claim, self.names, self.store, stated.kv_heads) or self.heads
        if heads is None and row.head_width is not None:
            keys = row.head_width if isinstance(row.head_width, int) else (row.head_width,)
            width = count(claim.scope.config, keys, claim.numbers)
            wide = shapes[0][0 if isinstance(row.weights, Separate) else 1]  # a head's share of the queries' rows
            heads = wide // width if width and wide % width == 0 else None
        kv_heads = heads if row.kv_heads == () else stated.kv_heads or self.kv_heads
        return settle(row, Given(heads, kv_heads, stated.head_dim), shapes, claim.path)

    def module(self, claim: Claim, ordinal: int, guess: str = "") -> Module:
        """Return the module of a claim.

        Args:
            claim: a row that matches.
            ordinal: its place among the modules of the same row, its layer where it has no one number.
            guess: what to say where the model_type did not call for the row.
        """
        row, counts = claim.row, self.counts(claim)
        parts = roles(claim, self.names, counts.heads)
        query = parts.get("qkv") or parts.get("q") or parts["q_b"]
        odd = [] if is_latent(row) else strangers(claim, self.norms, parts)
        # A model of an unknown kind has its weights cut by names; what else shapes its logits is anybody's guess.
        guessed = (guess,) if guess and claim.scope.model_type else ()
        return Module(
            name=claim.path,
            layer=_layer(claim, ordinal),
            block=_block(claim),
            heads=counts.heads,
            kv_heads=counts.kv_heads,
            d_q=counts.d_q,
            d_model=self._matrix(parts.get("q_a", query), claim)[1],
            tensors=tuple(self.names[name] for name in parts.values()),
            stored=self.store.dtype(self.names[query]),
            nbytes=self._nbytes(parts, counts),
            row=row,
            config=claim.scope.config,
            roles={role: self.names[name] for role, name in parts.items()},
            remarks=row.remarks,
            unknown=row.unknown
            + guessed
            # a norm of q and k that is not followed leaves no logit known, as an unknown input norm does
            + tuple(f"{name}, which the {row.name} layout does not know" for name in odd[:1])
            + (LOGITS,) * bool(odd),
        )

    def _matrix(self, name: str, claim: Claim) -> tuple[int, ...]:
        shape = self.store.shape(self.names[name])
        rows, d = matrix_shape(shape, claim.row)
        if claim.row.unlisted and len(shape) > 2 and rows != d:
            raise LayoutError(f"{name} is a convolution of {shape}, whose groups nobody tells; write a --layout")
        groups = getattr(claim.row.weights, "groups", None)
        return rows, d * group_count(claim.scope.config, groups, is_key=name != claim.anchor)

    def _nbytes(self, parts: Mapping[str, str], counts: Heads) -> int:
        total = 0
        for role in ("qkv", "q", "k", "q_a", "q_b", "kv_a", "kv_b"):
            if role in parts:
                name = self.names[parts[role]]
                size = BYTES.get(self.store.dtype(name), 1)
                for length in self.store.shape(name):
                    size *= length
                if role == "qkv":
                    size = size * (counts.heads + counts.kv_heads) // (counts.heads + 2 * counts.kv_heads)
                total += size
        return total


def _block(claim: Claim) -> str:
    row, kinds = claim.row, claim.scope.kinds
    if row.unlisted:
        kind = "cross" if CROSS.search(claim.path) else "self"
        part = kinds[-1] if kinds else side(claim.path)
        return f"{part}.{kind}" if part else kind
    return f"{kinds[-1]}.{row.block}" if kinds and row.block == "self" else row.block


def _digits(path: str) -> tuple[int, ...]:
    return tuple(int(part) for part in path.split(".") if part.isdigit() and len(part) < 10)


def _layer(claim: Claim, ordinal: int) -> int:
    """Return a module's number: its pattern's, else (in pyramids) its ordinal, else the last number of its path."""
    if len(claim.numbers) != 1:
        elsewhere = _digits(claim.path)
        return ordinal if claim.numbers or not elsewhere else elsewhere[-1]
    return claim.numbers[0]
