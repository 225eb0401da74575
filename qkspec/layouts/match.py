"""Which rows of the table read which tensors: by the config's model types, or by names and shapes alone."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qkspec.layouts.heads import SIDES, look_up, sided
from qkspec.layouts.layout import Config, Layout, expression, fill

COPIES = re.compile(r"(^|\.)(\w*_)?(ema|exp_avg|exp_avg_sq|optimizer\w*|momentum|shadow|teacher)(_\w+)?\.")
OTHER_CONFIGS = ("quantization_config", "attn_config", "ffn_config", "generation_config")
PARTS = ("encoder", "decoder", "generator", "text_encoder", "audio_encoder", "question_encoder")
WORDS = {  # a text or an image that is only attended to ("cross_attn_image", "text_proj") speaks of no part
    "vision": r"vision(?!_cross|_proj)|visual|(?<!attn_)(?<!to_)image(?!_to_)|img|video|vit\b",
    "backbone": r"backbone|pixel_level_module\.encoder",  # MaskFormer
    "audio": r"audio|speech|sound",
    "text": r"(?<!attn_)(?<!to_)text(?!_enhancer|_cross|_proj\b)|language|llm",
    "patch_model": r"patch_model|patch_encoder",  # DepthPro
    "image_model": r"image_model|image_encoder",
    "fov_model": r"fov",
}


@dataclass(frozen=True)
class Scope:
    """A config, or one nested in it ("vision_config"), with the path of kinds that leads to it."""

    kinds: tuple[str, ...]
    config: Config
    model_type: str


@dataclass(frozen=True)
class Claim:
    """A row that matches one attention module.

    Args:
        row, scope: the layout, and the config that speaks for it.
        prefix: what stands before the row's patterns; suffix: ".weight" or nothing.
        numbers: what the ``{}`` stood for.
        anchor: the canonical name of the matched tensor.
    """

    row: Layout
    scope: Scope
    prefix: str
    suffix: str
    numbers: tuple[int, ...]
    anchor: str

    @property
    def called(self) -> bool:
        """Whether the config's model type calls for the row; else names alone do."""
        return self.scope.model_type in self.row.model_types

    @property
    def path(self) -> str:
        """The attention module's path: the tensor's name without its last part."""
        stem = self.anchor.removesuffix(".weight")
        path, _, leaf = stem.rpartition(".")
        if leaf.endswith("_qcontent_proj"):  # Conditional DETR keeps two modules' projections in the layer itself
            return f"{path}.{leaf.partition('_')[0]}"
        return path or stem


def scopes(config: Config, kinds: tuple[str, ...] = (), parent: str = "") -> Iterator[Scope]:
    """Yield the config and those nested in it that describe a model, outermost first, four deep at most."""
    stated = config.get("model_type")
    kind = stated if isinstance(stated, str) else parent
    yield Scope(kinds, config, kind)
    if len(kinds) >= 4:
        return
    for key, value in config.items():
        named = (key.endswith("_config") and key not in OTHER_CONFIGS) or key in PARTS
        if named and isinstance(value, Mapping):
            yield from scopes(value, (*kinds, key.removesuffix("_config")), kind)


def affinity(name: str, scope: Scope, kinds: frozenset[str]) -> int:
    """Return how well a tensor's name suits a scope: negative where the name speaks of another part of the model."""
    spoken = {kind for kind in kinds if _speaks(name, kind)}
    wanted = set(scope.kinds)
    silent = {kind for kind in wanted - spoken if kind != "text"}
    own = wanted & spoken & set(scope.kinds[-1:])  # a path shared with other scopes tells nothing
    return len(own) - len(spoken - wanted) - len(silent)


def _speaks(name: str, kind: str) -> bool:
    if kind in ("encoder", "decoder"):
        first = re.search(r"(?:^|\.)(encoder|decoder)\.", name)
        return first is not None and first[1] == kind
    return re.search(WORDS.get(kind, re.escape(kind)), name) is not None


def side(path: str) -> str:
    """Return "encoder" or "decoder" where a module's path lies in one, else ""."""
    found = re.search(r"(?:^|[._])(encoder|decoder)\.", path)
    return found[1] if found else ""


def holds(row: Layout, config: Config) -> bool:
    """Return whether the config facts that a row asks for hold; a missing key reads as None."""
    return all(_same(look_up(config, (key,)), wanted) for key, wanted in row.when.items())


def _same(value: object, wanted: object) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    if isinstance(wanted, bool) or wanted is None:
        return bool(value) == bool(wanted)
    return value == wanted


def candidates(
    table: Iterable[Layout], parts: tuple[Scope, ...], *, forced: bool = False
) -> list[tuple[Layout, Scope]]:
    """Return the rows that the config's model types call for; where they call for none, those that names alone prove.

    Args:
        table: rows to choose from.
        parts: the config and those nested in it.
        forced: take every row (a user's own layout) whatever the config calls itself.
    """
    rows = tuple(table)
    if forced:
        return [(row, part) for part in parts for row in rows]
    typed = [
        (row, part) for part in parts for row in rows if part.model_type in row.model_types and holds(row, part.config)
    ]
    by_name = [row for row in rows if row.unlisted or (row.by_name and not typed)]
    return typed + [(row, part) for part in parts for row in by_name if holds(row, part.config)]


def _counts_heads(row: Layout, config: Config) -> bool:
    keys = (sided(row.heads, config, side) for side in SIDES)
    return any(look_up(config, found) is not None for found in keys if isinstance(found, tuple))


def claims(
    names: Iterable[str], pairs: Iterable[tuple[Layout, Scope]], parts: Iterable[Scope]
) -> dict[str, list[Claim]]:
    """Return, for each matched tensor, the best claims on it: more than one only where rows match equally well.

    Best is the claim that most speaks for, then the one whose scope suits the name, then that of the longest pattern.

    Args:
        names: canonical tensor names.
        pairs: rows that may match, each with the config that calls for it.
        parts: the config and all those nested in it, called for or not: a name may belong to one that no row reads.
    """
    kinds = frozenset(kind for scope in parts for kind in scope.kinds)
    everything = dict.fromkeys(names)
    best: dict[str, tuple[tuple[int, ...], list[Claim]]] = {}
    for row, scope in pairs:
        for claim in _matches(row, scope, everything):
            suits = affinity(claim.anchor, scope, kinds)
            if suits < 0:
                continue
            score = (
                _proof(claim, everything),
                row.unlisted and _counts_heads(row, scope.config),
                suits,
                len(row.patterns()[0]),
                -len(scope.kinds),
            )
            if score[0] < 0:
                continue
            held = best.get(claim.anchor)
            if held is None or score > held[0]:
                best[claim.anchor] = (score, [claim])
            elif score == held[0]:
                held[1].append(claim)
    return {anchor: found for anchor, (_, found) in best.items()}


def _proof(claim: Claim, names: Mapping[str, None]) -> int:
    """Return how much speaks for a row: the config's word, its norm beside its weights, or names of weights alone."""
    row = claim.row
    if claim.called:
        return 3
    if row.unlisted:
        return 1
    if row.proof and not {fill(row.proof, claim.numbers), claim.prefix + fill(row.proof, claim.numbers)} & names.keys():
        return -1
    beside = row.norm is None or not row.norm.at or f"{claim.prefix}{fill(row.norm.at, claim.numbers)}.weight" in names
    return 2 if beside or not row.model_types else 0


def _matches(row: Layout, scope: Scope, names: Mapping[str, None]) -> Iterator[Claim]:
    pattern, *others = row.patterns()
    tail = pattern.rpartition("{}")[2]
    ends, regex = (tail, tail + ".weight"), expression(pattern)
    for name in names:
        if name.endswith(ends) and (match := regex.fullmatch(name)):
            numbers = tuple(int(digits) for digits in match.groups()[1:-1])
            prefix, suffix = match["prefix"], match["suffix"] or ""
            if not row.unlisted or all(prefix + other + suffix in names for other in others):
                yield Claim(row, scope, prefix, suffix, numbers, name)
