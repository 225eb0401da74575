"""Every narrow float, every code, against torch's own conversion."""

import numpy as np
import pytest
import torch

from qkspec.checkpoints.dtypes import BITS, FLOATS, SAFETENSORS, decode, eight_bit_values


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_all_codes_of_an_eight_bit_float(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(eight_bit_values(name), codes.view(getattr(torch, name)).float().numpy())


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_all_codes_of_a_half(name: str) -> None:
    codes = np.arange(1 << 16, dtype="<u2")
    expected = torch.from_numpy(codes.view(np.int16)).view(getattr(torch, name)).float().numpy()
    np.testing.assert_array_equal(
        decode(codes.tobytes(), name).view(np.uint32) if name == "bfloat16" else decode(codes.tobytes(), name),
        expected.view(np.uint32) if name == "bfloat16" else expected,
    )


def test_float64_stays() -> None:
    values = np.array([1 + 2**-52, -1e300])
    assert decode(bytearray(values.tobytes()), "float64").dtype == np.float64
    np.testing.assert_array_equal(decode(bytearray(values.tobytes()), "float64"), values)


def test_every_float_decodes_and_has_a_size() -> None:
    for name in FLOATS:
        assert decode(bytes(BITS[name] // 8 * 3), name).shape == (3,)
    assert set(SAFETENSORS.values()) <= BITS.keys()
    for name in set(SAFETENSORS.values()) & set(dir(torch)):
        if not name.startswith("float4"):
            assert getattr(torch, name).itemsize * 8 == BITS[name]
