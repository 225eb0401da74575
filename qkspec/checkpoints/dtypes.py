"""Stored numbers to NumPy, without loss: float64 stays, everything narrower becomes float32.

bfloat16 and the 8-bit floats have no NumPy type. bfloat16 is the upper half of a float32; an 8-bit float is looked up
in a table of its 256 values, computed here from the definition of each type (OCP 8-bit floating point, and the "fnuz"
forms of Noune et al. 2022, arXiv:2206.02915).
"""

from functools import cache
from typing import TYPE_CHECKING

from qkspec.qk import Array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The code in a safetensors header, and the name that torch gives the same type.
SAFETENSORS = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
    "F6_E2M3": "float6_e2m3",
    "F6_E3M2": "float6_e3m2",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}

BITS = {
    **dict.fromkeys(("bool", "uint8", "int8", "qint8", "quint8"), 8),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"), 8),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("uint32", "int32", "float32", "qint32", "complex32"), 32),
    **dict.fromkeys(("uint64", "int64", "float64", "complex64"), 64),
    "complex128": 128,
    "float4_e2m1fn_x2": 4,
    "float6_e2m3": 6,
    "float6_e3m2": 6,
}

# exponent bits, mantissa bits, exponent bias, how the top codes are used
_EIGHT_BIT = {
    "float8_e4m3fn": (4, 3, 7, "fn"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
}

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e8m0fnu", *_EIGHT_BIT})


def decode(data: bytes | bytearray, dtype: str) -> Array:
    """Return the flat float32 (or float64) values of little-endian ``data``; KeyError unless ``dtype`` is in FLOATS."""
    import numpy as np

    if dtype == "float64":
        return np.frombuffer(data, "<f8").astype(np.float64, copy=False)
    if dtype == "float32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if dtype == "float16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "bfloat16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return eight_bit_values(dtype)[np.frombuffer(data, np.uint8)]


@cache
def eight_bit_values(dtype: str) -> "NDArray[np.float32]":
    """Return the (256,) values of an 8-bit float type, indexed by its code."""
    import numpy as np

    code = np.arange(256)
    if dtype == "float8_e8m0fnu":  # a bare power of two, for block scales; the last code is NaN
        return np.where(code == 255, np.nan, np.ldexp(1.0, np.minimum(code, 254) - 127)).astype(np.float32)
    exponent_bits, mantissa_bits, bias, top = _EIGHT_BIT[dtype]
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    normal = exponent > 0
    value = np.ldexp(
        np.where(normal, 1 << mantissa_bits, 0) + mantissa.astype(np.float64),
        np.where(normal, exponent, 1) - bias - mantissa_bits,
    )
    value = np.where(code >> 7, -value, value)
    if top == "fnuz":  # no infinity, no negative zero: its code is the one NaN
        value[128] = np.nan
    elif top == "fn":  # no infinity; all bits set is NaN
        value[[127, 255]] = np.nan
    else:
        value[(exponent == 31) & (mantissa > 0)] = np.nan
        value[[124, 252]] = np.inf, -np.inf
    table: NDArray[np.float32] = value.astype(np.float32)
    return table
