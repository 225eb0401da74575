"""What cannot be measured, said by name with the way out: adapters, packed weights, names nobody knows."""

import re
from collections.abc import Iterable, Mapping, Sequence

from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import LayoutError, UnknownLayoutError
from qkspec.layouts.keyless import ATTENTION
from qkspec.layouts.layout import Layout
from qkspec.layouts.modules import Module

ADAPTER = re.compile(r"lora_(?:A|B|embedding)|hada_w1|oft_r|ia3_l|lokr_w")
PACKED = {
    "qweight": "GPTQ or AWQ packed integers",
    "qzeros": "GPTQ or AWQ packed integers",
    "weight_packed": "compressed-tensors packed integers",
    "weight.absmax": "bitsandbytes packed 4-bit",
    "weight.quant_state": "bitsandbytes packed 4-bit",
    "SCB": "bitsandbytes int8",
    "weight_format": "bitsandbytes int8",
    "weight_blocks": "MXFP4 blocks",
}
DEQUANTISE = "load it with the library that packed it, dequantize, save_pretrained, and analyze that"


def adapter(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is only an adapter.

    Raises:
        LayoutError: its tensors are low-rank factors that mean nothing without their base model.
    """
    names = checkpoint.store.names()
    low = [name for name in names if ADAPTER.search(name)]
    if low and 2 * len(low) > len(names):
        raise LayoutError(
            f"{_file(checkpoint)} holds a LoRA adapter ({low[0]}), not a model; merge it into its base first "
            "(peft: model.merge_and_unload().save_pretrained(DIR)) and analyze that"
        )


def packed(checkpoint: Checkpoint, modules: Iterable[Module]) -> None:
    """Refuse query or key weights that are stored as integers.

    Raises:
        LayoutError: the dtype of a weight is an integer type.
    """
    for module in modules:
        for role in ("qkv", "q", "k", "q_a", "q_b", "kv_a", "kv_b"):
            name = module.roles.get(role)
            if name is not None and not checkpoint.store.dtype(name).startswith(("float", "bfloat")):
                how = _method(checkpoint) or "packed integers"
                raise LayoutError(
                    f"{_file(checkpoint)}: {name} is stored as {checkpoint.store.dtype(name)} ({how}); {DEQUANTISE}"
                )


def unrecognised(
    checkpoint: Checkpoint, names: Mapping[str, str], rows: Sequence[Layout], reasons: Mapping[str, str]
) -> LayoutError:
    """Return the error for a checkpoint in which no layout finds its tensors, by the most telling reason there is."""
    endings = tuple(f".{mark}" for mark in PACKED)
    for name in (name for name in names if name.endswith(endings)):
        for mark, how in PACKED.items():
            if name.endswith(f".{mark}"):
                return LayoutError(f"{_file(checkpoint)} holds {how} ({name}); {DEQUANTISE}")
    if not names:
        return LayoutError(f"{_file(checkpoint)} holds no tensors")
    if reasons:
        path, why = next(iter(reasons.items()))
        return LayoutError(f"{_file(checkpoint)} has nothing to measure{path and f' in {path}'}: {why}")
    stated = checkpoint.config.get("model_type")
    sample = ", ".join(sorted(names)[:3])
    if isinstance(stated, str) and rows and any(stated in row.model_types for row in rows):
        wanted = " or ".join(dict.fromkeys(row.patterns()[0] for row in rows[:3]))
        return LayoutError(
            f"{_file(checkpoint)} calls itself {stated}, but has no tensor like {wanted} (it has {sample}, …)"
        )
    what = f"model_type {stated!r}" if isinstance(stated, str) else "a model without a model_type"
    if isinstance(stated, str) and not any(ATTENTION.search(name) for name in names):
        return LayoutError(
            f"{_file(checkpoint)}: {what} has no tensor that is called after attention: nothing to measure"
        )
    return UnknownLayoutError(
        f"{_file(checkpoint)}: {what} with tensors like {sample} matches no known layout; "
        "`qkspec inspect` drafts a layout file for --layout"
    )


def _method(checkpoint: Checkpoint) -> str | None:
    settings = checkpoint.config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return method if isinstance(method, str) else None


def _file(checkpoint: Checkpoint) -> str:
    return checkpoint.path or checkpoint.name
