"""Find the attention modules of a checkpoint from its headers, and read them one at a time."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from qkspec.checkpoints.names import natural
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import LayoutError
from qkspec.layouts import refuse
from qkspec.layouts.facts import borrows_keys
from qkspec.layouts.families import FAMILIES
from qkspec.layouts.keyless import APART, BORROWED, INDEXER, NO_SOFTMAX, OTHERWISE, REASONS, TOKENS, without_keys
from qkspec.layouts.layout import Layout
from qkspec.layouts.match import COPIES, Claim, candidates, claims, scopes
from qkspec.layouts.modules import Finder, Module, Plan
from qkspec.layouts.unlisted import UNLISTED, recurrent
from qkspec.qk import QKLayer

__all__ = ["Module", "Plan", "attention_layers", "plan"]

MAX_SCOPES = 64  # configs in a config; the models of transformers have a dozen at most
SUSPECTS = frozenset(
    (
        *(
            "q_proj",
            "query",
            "query_key_value",
            "c_attn",
            "qkv",
            "qkv_proj",
            "Wqkv",
            "wqkv",
            "W_pack",
            "q_lin",
            "query_proj",
        ),
        *("to_q", "to_qkv", "wq", "q_b_proj", "W_Q", "linear_q", "linear_qkv", "in_proj_weight"),
    )
)


def plan(
    checkpoint: Checkpoint,
    *,
    layout: Layout | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> Plan:
    """Return what can be measured in a checkpoint, from names, shapes, dtypes and config alone.

    Args:
        checkpoint: an open checkpoint; no tensor is read.
        layout: the user's own row; the table is not consulted then.
        num_heads: count of query heads, for files that carry none; it must not contradict the config.
        num_kv_heads: the same for key heads.

    Raises:
        LayoutError: nothing is recognised, a layout does not add up (the message shows pattern and shapes), or the
            weights are packed or only an adapter.
    """
    try:
        return _plan(checkpoint, layout, num_heads, num_kv_heads)
    except LayoutError as error:
        where = checkpoint.path or checkpoint.name
        if where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error


def attention_layers(
    checkpoint: Checkpoint,
    *,
    layout: Layout | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> Iterator[QKLayer]:
    """Yield every attention module with its weights, one in memory at a time. Errors as of ``plan`` and ``read``."""
    from qkspec.layouts.load import read

    found = plan(checkpoint, layout=layout, num_heads=num_heads, num_kv_heads=num_kv_heads)
    for module in found.modules:
        yield read(checkpoint, found, module)


def _chosen(
    finder: Finder, found: Mapping[str, list[Claim]], reasons: Mapping[str, str], *, forced: bool
) -> tuple[list[Claim], dict[str, str]]:
    """Return the claims that hold, and why the modules are skipped that only a guess would read and that do not fit.

    Raises:
        LayoutError: a module that its model type, or the user, calls by its layout does not fit that layout.
    """
    chosen: list[Claim] = []
    problems: dict[str, str] = {}
    for rivals in found.values():
        listed = forced or any(claim.called for claim in rivals)
        if not forced and rivals[0].scope.model_type in OTHERWISE:
            problems[rivals[0].path] = OTHERWISE[rivals[0].scope.model_type]
            continue
        if not listed and rivals[0].path in reasons:
            problems[rivals[0].path] = reasons[rivals[0].path]
            continue
        if listed and borrows_keys(rivals[0].scope.config, rivals[0].numbers):
            problems[rivals[0].path] = BORROWED
            continue
        try:
            chosen.append(_settled(finder, rivals))
        except LayoutError as problem:
            if listed:
                raise
            problems[rivals[0].path] = str(problem)
    return sorted(chosen, key=_order), problems


def _order(claim: Claim) -> tuple[object, ...]:
    return (claim.row.name, claim.row.block, natural(claim.prefix), claim.numbers)


def _numbered(chosen: list[Claim]) -> Iterator[tuple[Claim, int]]:
    """Yield each claim with its ordinal among those of the same row and prefix."""
    before: tuple[object, ...] | None = None
    ordinal = 0
    for claim in chosen:
        group = _order(claim)[:3]
        ordinal = ordinal + 1 if group == before else 0
        before = group
        yield claim, ordinal


def _without_copies(found: Mapping[str, list[Claim]]) -> tuple[dict[str, list[Claim]], dict[str, str]]:
    """Return the claims without averaged copies and optimizer moments of weights, and why each of those is skipped.

    A file that holds nothing but such a copy is read: an exported average is a model.
    """
    copies = {anchor for anchor in found if COPIES.search(anchor)}
    if len(copies) == len(found):
        return dict(found), {}
    skipped = {found[anchor][0].path: "a copy of the weights (moving average or optimizer state)" for anchor in copies}
    return {anchor: rivals for anchor, rivals in found.items() if anchor not in copies}, skipped


def _settled(finder: Finder, rivals: list[Claim]) -> Claim:
    """Return the one claim whose layout fits the shapes.

    Raises:
        LayoutError: none fits, or several that would cut the weights differently do.
    """
    fits: list[Claim] = []
    error: LayoutError | None = None
    for claim in rivals:
        try:
            finder.counts(claim)
        except LayoutError as problem:
            error = error or problem
        else:
            fits.append(claim)
    if not fits:
        raise error or LayoutError("no layout matches")
    ways = {(claim.row.weights, claim.row.inputs_first) for claim in fits}
    if len(ways) > 1:
        rows = ", ".join(dict.fromkeys(claim.row.name for claim in fits))
        raise LayoutError(
            f"{fits[0].anchor} fits several layouts ({rows}); say which with config.json's model_type or --layout"
        )
    return fits[0]


def _plan(checkpoint: Checkpoint, layout: Layout | None, num_heads: int | None, num_kv_heads: int | None) -> Plan:
    refuse.adapter(checkpoint)
    names = {name: name for name in checkpoint.store.names()}
    parts = tuple(islice(scopes(checkpoint.config), MAX_SCOPES + 1))
    if len(parts) > MAX_SCOPES:  # every name is held against every one
        raise LayoutError(f"config.json: describes more than {MAX_SCOPES} models in one another; is it the right file?")
    pairs = candidates((layout,) if layout else (*FAMILIES, *UNLISTED), parts, forced=layout is not None)
    finder = Finder(checkpoint.store, names, num_heads, num_kv_heads)
    found, skipped = _without_copies(claims(names, pairs, parts))
    keyless = without_keys(names, {part.model_type for part in parts})
    reasons = dict.fromkeys(recurrent(names), NO_SOFTMAX) | keyless
    chosen, problems = _chosen(finder, found, reasons, forced=layout is not None)
    skipped |= keyless | problems
    if not chosen:
        raise next(
            (LayoutError(why) for why in problems.values() if why not in REASONS),
            refuse.unrecognised(checkpoint, names, [row for row, _ in pairs], problems | reasons),
        )
    guesses = {claim.anchor: "" if layout else _guess(claim) for claim in chosen}
    modules = tuple(finder.module(claim, ordinal, guesses[claim.anchor]) for claim, ordinal in _numbered(chosen))
    refuse.packed(checkpoint, modules)
    read_here = {name for module in modules for name in module.tensors}
    for name, stored in names.items():
        if (
            name.removesuffix(".weight").rpartition(".")[2] in SUSPECTS
            and stored not in read_here
            and not COPIES.search(name)
        ):
            stem = name.removesuffix(".weight")
            skipped.setdefault(stem.rpartition(".")[0] or stem, _why_unread(name, names))
    remarks = tuple(dict.fromkeys(filter(None, guesses.values())))
    known = {claim.scope.model_type for claim in chosen if claim.called}
    if known:
        strange = {rivals[0].path for rivals in found.values() if rivals[0].scope.model_type not in known}
        skipped, apart = _apart(skipped, reasons, strange)
        remarks += apart
    return Plan(" + ".join(dict.fromkeys(module.row.name for module in modules)), modules, skipped, remarks)


def _apart(
    skipped: Mapping[str, str], reasons: Mapping[str, str], strange: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what is left to skip of a model that the table knows, and remarks on its modules without a spectrum.

    Such modules are part of the architecture (every hybrid has them), so they are no gap in what was measured. In
    ``strange`` parts, which no row reads, that is a guess, and they stay skipped.
    """
    told = []
    for why in APART:
        paths = {path for path, reason in (*skipped.items(), *reasons.items()) if reason == why} - set(strange)
        outer = sorted((path for path in paths if path.rpartition(".")[0] not in paths), key=natural)
        if outer:
            told.append(f"{len(outer)} of its modules ({outer[0]}{', …' if len(outer) > 1 else ''}): {why}")
    return {path: why for path, why in skipped.items() if why not in APART or path in strange}, tuple(told)


def _why_unread(name: str, names: Collection[str]) -> str:
    if "linear_attn" in name or "mamba" in name:
        return NO_SOFTMAX
    if ".indexer." in name:
        return INDEXER
    path, _, leaf = name.removesuffix(".weight").rpartition(".")
    keys = f"{path}.key" if path else "key"
    alone = leaf == "query" and not any(other.startswith(keys) for other in names)
    return TOKENS if alone else f"no layout reads {name}"


def _guess(claim: Claim) -> str:
    """Return what to say of a module that was recognised by its tensors' names alone; "" where its type is listed."""
    if claim.called:
        return ""
    kind = claim.scope.model_type
    what = f"model_type {kind!r} is not in the table" if kind else "the config names no model_type"
    return f"{what}: read as {claim.row.name} by its tensor names"
