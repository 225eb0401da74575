"""Quantised weights: 8-bit floats with scales are read as the numbers they stand for; packed integers are refused.

A scaled weight is stored as an fp8 tensor ``X.weight`` and a scale: ``X.weight_scale_inv``, one float32 for each 128
x 128 block (DeepSeek-V3; despite its name it is multiplied), or ``X.weight_scale``, one for the tensor, one a row, or
one a block (compressed-tensors, ModelOpt, FBGEMM). The product in float32 is what the reference implementations
compute.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError
from qkspec.qk import Array

_BLOCK = (128, 128)
_FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_SCALES = ("_scale_inv", "_scale")
# Attention weights under any of the names that families.py reads: experts may stay packed, they are never read.
_ATTENTION = re.compile(
    r"attn|attention|(^|[._])(q|k|qk|qkv|w_?q|w_?k|w_?qkv|wqkv|c_attn|query|key|query_key_value|in_proj|q_[ab]|kv_[ab])(_proj|_lin)?[._]",
    re.I,
)
_BITSANDBYTES = "load it with transformers, call model.dequantize() and save_pretrained()"
_ORIGINAL = "analyze the model it was quantised from, or dequantise it first"
_PACKED = tuple(
    (re.compile(pattern), what, then)
    for pattern, what, then in (
        (r"\.quant_state\.bitsandbytes|\.absmax$|\.nested_absmax$", "4-bit numbers of bitsandbytes", _BITSANDBYTES),
        (r"\.SCB$", "8-bit integers of bitsandbytes", _BITSANDBYTES),
        (r"\.qweight$", "packed integers of GPTQ or AWQ", _ORIGINAL),
        (r"\.weight_packed$", "packed integers of compressed-tensors", _ORIGINAL),
        (r"_blocks$", "MXFP4 blocks", "load it with transformers' Mxfp4Config(dequantize=True) and save_pretrained()"),
        (r"\._packed_params(\.|$)", "packed integers of torch's quantised modules", _ORIGINAL),
        (r"\.codebooks$", "codes of AQLM", _ORIGINAL),
        (r"\.Qidxs$", "codes of QuIP#", _ORIGINAL),
        (r"\.W_q$", "packed integers of HQQ", _ORIGINAL),
    )
)


class ScaledStore(Store):
    """A store whose fp8 weights are multiplied by their scales when they are read; the scales themselves are hidden.

    ``dtype`` still tells what is in the file, since the rounding of a stored weight sets the noise of its small
    singular values.
    """

    def __init__(self, store: Store, scales: Mapping[str, str], config: Mapping[str, Any], path: str) -> None:
        self.format, self._store, self._scales, self._path = store.format, store, scales, path
        self._quantised, self._block = bool(config.get("quantization_config")), _block_size(config)
        hidden = set(scales.values())
        self._names = tuple(name for name in store.names() if name not in hidden)

    def names(self) -> Collection[str]:
        """Return the tensor names."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._store.shape(name)

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype."""
        return self._store.dtype(name)

    def close(self) -> None:
        """Release what is open."""
        self._store.close()

    @property
    def bytes_read(self) -> int | None:
        """Return the bytes read so far."""
        return self._store.bytes_read

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, as Store.read says."""
        values = self._store.read(name, rows)
        if self._store.dtype(name) not in _FP8:
            return values
        if name not in self._scales:
            if not self._quantised:
                return values
            raise CheckpointError(
                f"{self._path}: tensor {name!r} is fp8 in a quantised model, but its scale is missing; "
                "dequantise the model first"
            )
        scale = self._store.read(self._scales[name]).astype("float32")
        shape = self._store.shape(name)
        first = rows.indices(shape[0])[0] if rows is not None else 0
        return values * self._spread(name, scale, shape, first, values.shape)

    def _spread(self, name: str, scale: Array, full: tuple[int, ...], first: int, part: tuple[int, ...]) -> Array:
        """Return the scale of every element of ``part`` rows, which start at row ``first`` of a ``full`` tensor."""
        if scale.size == 1:
            return scale.reshape(())
        if len(full) == 2 and scale.shape in ((full[0],), (full[0], 1)):
            return scale.reshape(-1, 1)[first : first + part[0]]
        blocks = tuple(-(-size // step) for size, step in zip(full, self._block, strict=False))
        if len(full) != 2 or scale.shape != blocks:
            raise CheckpointError(
                f"{self._path}: the scale of tensor {name!r} has shape {list(scale.shape)}, which fits neither its "
                f"rows nor its {self._block[0]} x {self._block[1]} blocks ({list(blocks)}); "
                "dequantise the model first"
            )
        import numpy as np

        row = np.arange(first, first + part[0]) // self._block[0]
        column = np.arange(full[1]) // self._block[1]
        return scale[np.ix_(row, column)]


def unscaled(store: Store, config: Mapping[str, Any], path: str) -> Store:
    """Return a store that reads scaled weights as numbers, or the same store when there are none.

    Raises:
        CheckpointError: attention weights are packed integers, or low-rank adapters that were not merged.
    """
    names = store.names()
    refuse_packed(names, path)
    scales = {}
    for name in names:
        for ending in _SCALES:
            weight = name.removesuffix(ending)
            if weight != name and weight in names:
                scales[weight] = name
    return ScaledStore(store, scales, config, path) if scales or config.get("quantization_config") else store


def refuse_packed(names: Collection[str], path: str) -> None:
    """Raise CheckpointError when attention weights are stored in a form that cannot be read as matrices."""
    for name in names:
        if ".lora_A." in name or ".lora_embedding_A" in name:
            raise CheckpointError(
                f"{path}: holds LoRA factors ({name[:100]!r}) that are not merged; "
                "call merge_and_unload() in peft, save the model and give its folder"
            )
        for mark, what, then in _PACKED:
            if mark.search(name) and _ATTENTION.search(name):
                raise CheckpointError(f"{path}: {name[:100]!r} shows weights stored as {what}; {then}")


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    quantisation = config.get("quantization_config")
    block = quantisation.get("weight_block_size") if isinstance(quantisation, dict) else None
    if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
        return block[0], block[1]
    return _BLOCK
