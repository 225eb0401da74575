"""Head counts: from the config, or from a tensor whose shape carries them, and never from a square matrix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qkspec.errors import LayoutError
from qkspec.layouts.layout import Config, Fused, Layout, Separate

SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class Given:
    """What is known of the heads before the shapes are looked at; None where nobody says."""

    heads: int | None
    kv_heads: int | None
    head_dim: int | None


@dataclass(frozen=True)
class Heads:
    """The heads of one attention module, in agreement with every shape."""

    heads: int
    kv_heads: int
    d_q: int


def look_up(config: Config, keys: Sequence[str]) -> object | None:
    """Return the first value among dotted keys that the config holds and is not None."""
    for key in keys:
        value: object = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def count(config: Config, keys: Sequence[str] | int, numbers: tuple[int, ...] = ()) -> int | None:
    """Return a positive whole number of the config, or None.

    A list holds one entry for each stage, or each layer: the module's first number picks the entry.

    Raises:
        LayoutError: the value is no positive whole number, or the list is too short.
    """
    value = keys if isinstance(keys, int) else look_up(config, keys)
    if isinstance(value, list | tuple):
        if not numbers or numbers[0] >= len(value):
            where = f"layer {numbers[0]}" if numbers else "a module without a number"
            raise LayoutError(f"config.json: {_found(config, keys)} lists {len(value)} entries, too few for {where}")
        value = value[numbers[0]]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 20 or value != int(value):
        raise LayoutError(f"config.json: {_found(config, keys)} is {repr(value)[:60]}, which is no count of heads")
    return int(value)


def _found(config: Config, keys: Sequence[str] | int) -> str:
    """Return the key that a value was found under."""
    return "" if isinstance(keys, int) else next((key for key in keys if look_up(config, (key,)) is not None), "")


def given(row: Layout, config: Config, numbers: tuple[int, ...], side: str = "") -> Given:
    """Return what the config says about a module's heads; ``side`` is the half of a pair that it lies in."""
    config = of_layer(config, numbers)
    if row.depths:
        numbers = (stage_of(numbers[0], look_up(config, (row.depths,))), *numbers[1:])
    heads = count(config, sided(row.heads, config, side), numbers)
    if heads is not None and row.head_ratio is not None:
        ratio = row.head_ratio if isinstance(row.head_ratio, int) else (row.head_ratio,)
        heads = max(1, heads // (count(config, ratio) or 1))
    kv_heads = heads if row.kv_heads == () else count(config, row.kv_heads or (), numbers)
    return Given(heads, kv_heads, count(config, row.head_dim, numbers))


def of_layer(config: Config, numbers: tuple[int, ...]) -> Config:
    """Return the config with what it says of one layer alone (``per_layer_config``) in place of what it says of all."""
    apart = config.get("per_layer_config")
    if not isinstance(apart, Mapping) or not numbers:
        return config
    own = apart.get(str(numbers[0]), apart.get(numbers[0]))
    return {**config, **own} if isinstance(own, Mapping) else config


def stage_of(block: int, depths: object) -> int:
    """Return the stage of a block that is numbered through all stages, from the count of blocks in each.

    Raises:
        LayoutError: the counts are no list of whole numbers, or too few.
    """
    counts = depths if isinstance(depths, list) else []
    for stage, blocks in enumerate(counts):
        if not isinstance(blocks, int):
            break
        if block < blocks:
            return stage
        block -= blocks
    raise LayoutError(f"config.json: blocks by stage are {depths!r}, which does not say where each block lies")


def sided(keys: tuple[str, ...] | int, config: Config, side: str) -> tuple[str, ...] | int:
    """Return config keys with their "{side}" filled in: the half the module lies in, or the only one there is."""
    if isinstance(keys, int):
        return keys
    halves = [half for half in SIDES if look_up(config, [key.replace("{side}", half) for key in keys if "{" in key])]
    side = side or (halves[0] if len(halves) == 1 else "")
    return tuple(key.replace("{side}", side) for key in keys if side or "{side}" not in key)


def settle(row: Layout, known: Given, shapes: Sequence[tuple[int, ...]], where: str) -> Heads:
    """Return the head counts that agree with the shapes.

    Args:
        row: the layout.
        known: what config and command line say.
        shapes: of the weights, each as (rows, d) with the orientation undone, in the order of ``row.patterns()``.
        where: the module's path, for messages.

    Raises:
        LayoutError: the count of heads is nowhere, or does not fit the shapes.
    """
    seen = f"{where}: {', '.join(row.patterns())} with shapes {', '.join(map(str, shapes))}"
    if known.heads is None:
        raise LayoutError(f"{seen}: the number of heads is nowhere in the checkpoint; pass --num-heads")
    heads = known.heads
    match row.weights:
        case Separate() as cut:
            shares = len(cut.k_parts) + ("v" in cut.k_parts) * (cut.v_width - 1)
            q_rows, k_rows = shapes[0][0] // len(cut.q_parts), shapes[1][0] // shares
            d_q, rest = divmod(q_rows, heads)
            kv_heads = known.kv_heads or (k_rows // d_q if d_q else 0)
            fits = rest == 0 and kv_heads * d_q == k_rows
            fits = fits and shapes[0][0] == q_rows * len(cut.q_parts) and shapes[1][0] == k_rows * shares
        case Fused(v_width=v_width, parts=parts):
            kv_heads = known.kv_heads or heads
            d_q, rest = divmod(shapes[0][0], heads * (1 + ("g" in parts)) + (1 + v_width) * kv_heads)
            fits = rest == 0
        case _:
            kv_heads, (kv_b, kv_a, q_rows, *_) = heads, [shape[0] for shape in shapes]
            rope = kv_a - shapes[0][1]
            d_q, rest = divmod(q_rows, heads)
            if row.weights.joined and known.head_dim:
                values, d_q = kv_b // heads - known.head_dim, known.head_dim + rope
                rest = q_rows - heads * (d_q + values)
            fits = rest == 0 and 0 <= rope < d_q and kv_b % heads == 0 and kv_b // heads > d_q - rope
    if d_q > max(4 * shapes[0][1], 2048):  # its spectrum would take d_q² numbers, whatever the file's size
        raise LayoutError(
            f"{seen}: heads of {d_q} on an input of {shapes[0][1]} are no attention; check the counts of heads"
        )
    if not fits or d_q < 1 or kv_heads < 1 or heads % kv_heads:
        raise LayoutError(
            f"{seen} cannot be {heads} query heads and {known.kv_heads or kv_heads} key heads; "
            "check the config or --num-heads"
        )
    if row.full and heads * d_q != shapes[0][1]:
        raise LayoutError(
            f"{seen}: {heads} heads of {d_q} are not as wide as the input ({shapes[0][1]}), so this is another layout"
        )
    if known.head_dim is not None and known.head_dim != d_q and not _latent(row):
        raise LayoutError(f"{seen}: {heads} heads would be {d_q} wide, but the config says {known.head_dim}")
    return Heads(heads, kv_heads, d_q)


def _latent(row: Layout) -> bool:
    return not isinstance(row.weights, Separate | Fused)


def group_count(config: Config, groups: tuple[str, str] | None, *, is_key: bool) -> int:
    """Return the groups of a grouped 1x1 convolution that makes queries or keys; 1 for every other projection."""
    return 1 if groups is None else count(config, (groups[is_key],)) or 1


def matrix_shape(shape: tuple[int, ...], row: Layout) -> tuple[int, ...]:
    """Return a stored weight's shape as (rows, d): transposed, or with heads or trailing convolution axes folded.

    Raises:
        LayoutError: the tensor is no matrix in any of these ways.
    """
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if isinstance(row.weights, Separate) and row.weights.heads_first and len(shape) == 3:
        return (shape[0] * shape[2], shape[1])
    if isinstance(row.weights, Separate) and row.weights.experts and len(shape) == 3:
        return (shape[0] * shape[1], shape[2])
    if len(shape) >= 2 and row.inputs_first:
        return (math.prod(shape[1:]), shape[0])
    if len(shape) != 2:
        raise LayoutError(f"{row.name}: {', '.join(row.patterns())} should be matrices, but one has shape {shape}")
    return shape
