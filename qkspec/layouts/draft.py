"""Draft a layout file for tensors that no row of the table knows, for a person to check."""

import json
import re
from collections.abc import Iterator

from qkspec.checkpoints.store import Checkpoint
from qkspec.layouts.heads import look_up
from qkspec.layouts.layout import HEADS, KV_HEADS

QUERY = re.compile(r"(?:^|[._])(?:q|wq|w_q|query|to_q|q_proj|q_lin|query_proj|linear_q|q_b_proj)$", re.IGNORECASE)
KEY = re.compile(r"(?:^|[._])(?:k|wk|w_k|key|to_k|k_proj|k_lin|key_proj|linear_k)$", re.IGNORECASE)
FUSED = re.compile(
    r"(?:^|[._])(?:qkv|wqkv|w_qkv|to_qkv|qkv_proj|c_attn|query_key_value|in_proj|in_proj_weight|w_pack|linear_qkv)$",
    re.IGNORECASE,
)
NORM = re.compile(r"norm|(?:^|[._])ln", re.IGNORECASE)
FOUND = 12  # how many candidate patterns a draft lists


def draft(checkpoint: Checkpoint) -> str:
    """Return a TOML layout file that names suggest, with everything that has to be checked in comments.

    Only names, shapes and config are used. The text is for a person: nothing is measured with it before it has been
    passed back through ``--layout``, which checks it against the shapes.
    """
    shapes = _patterns(checkpoint)
    lines = ["# A draft from tensor names: check every line, then pass this file with --layout.", 'name = "custom"']
    lines += list(_counts(checkpoint))
    weights = list(_weights(shapes))
    lines += ["", "[weights]", *(weights or ['q = ""  # pattern of the query weight, with {} for the layer', 'k = ""'])]
    lines += list(_norms(shapes, weights))
    lines += ["", "# Matrices in this checkpoint, one number in their names replaced by {}:"]
    matrices = [(pattern, shape) for pattern, shape in shapes.items() if len(shape) == 2]
    lines += [f"#   {_quoted(pattern)}  {list(shape)}" for pattern, shape in matrices[:FOUND]]
    if len(matrices) > FOUND:
        lines.append(f"#   … and {len(matrices) - FOUND} more")
    return "\n".join(lines) + "\n"


def _patterns(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return pattern ▸ shape of its first tensor; names without ``.weight``, biases left out."""
    found: dict[str, tuple[int, ...]] = {}
    for name in checkpoint.store.names():
        stem = name.removesuffix(".weight")
        if stem == name and name.endswith(".bias"):
            continue
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", stem, count=2)
        found.setdefault(pattern, checkpoint.store.shape(name))
    return found


def _counts(checkpoint: Checkpoint) -> Iterator[str]:
    for key, names in (("heads", HEADS), ("kv_heads", KV_HEADS)):
        stated = next((name for name in names if look_up(checkpoint.config, (name,)) is not None), None)
        if stated is not None:
            yield f"{key} = {_quoted(stated)}  # a key of the config"
        elif key == "heads":
            yield "# heads = 12  # the config does not say how many query heads there are"


def _weights(shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    queries = [pattern for pattern in shapes if QUERY.search(pattern)]
    for query in queries:
        key = next((pattern for pattern in shapes if KEY.search(pattern) and _stem(pattern) == _stem(query)), None)
        if key is not None:
            yield f"q = {_quoted(query)}  # {list(shapes[query])}"
            yield f"k = {_quoted(key)}  # {list(shapes[key])}"
            return
    fused = next((pattern for pattern in shapes if FUSED.search(pattern)), None)
    if fused is not None:
        yield f"qkv = {_quoted(fused)}  # {list(shapes[fused])}"
        yield 'units = 1  # 1: all queries, then all keys, then all values; "head": one run for each key head'
        yield 'parts = "qkv"'


def _norms(shapes: dict[str, tuple[int, ...]], weights: list[str]) -> Iterator[str]:
    """Suggest the first vector in the layer whose name says that it normalises."""
    chosen = re.search(r'"(.*?)"', weights[0]) if weights else None
    if chosen is None or "{}" not in chosen[1]:
        return
    layer = chosen[1].partition("{}")[0] + "{}."
    vectors = [pattern for pattern, shape in shapes.items() if len(shape) == 1 and pattern.startswith(layer)]
    norm = next((pattern for pattern in vectors if NORM.search(pattern)), None)
    if norm is not None:
        yield from (
            "",
            "[norm]  # the norm that feeds the attention",
            f"at = {_quoted(norm)}",
            'kind = "rms"  # or "layer"',
        )


def _stem(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _quoted(text: str) -> str:
    """Return text as a TOML basic string; names come from the checkpoint and may hold anything."""
    return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f")
