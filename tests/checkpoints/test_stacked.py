"""Stacked layers seen one by one, row by row, and never more of them than there can be."""

import numpy as np
import pytest

from qkspec.checkpoints.memory import MemoryStore
from qkspec.checkpoints.stacked import unstacked
from qkspec.errors import CheckpointError

QKV = "decoder.layers.self_attention.linear_qkv.weight"
WEIGHTS = np.arange(3 * 8 * 4, dtype=np.float32).reshape(3, 8, 4)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_layers_have_names_of_their_own(prefix: str) -> None:
    norm = np.ones((3, 4), np.float32)
    odd = np.ones((5, 4), np.float32)
    store = unstacked(
        MemoryStore(
            {
                f"{prefix}{QKV}": WEIGHTS,
                f"{prefix}decoder.layers.input_layernorm.weight": norm,
                f"{prefix}decoder.layers.self_attention.odd": odd,
                f"{prefix}decoder.layers.mlp.linear_fc1.weight": WEIGHTS,
            }
        )
    )
    assert set(store.names()) == {
        *(f"{prefix}decoder.layers.{i}.self_attention.linear_qkv.weight" for i in range(3)),
        *(f"{prefix}decoder.layers.{i}.input_layernorm.weight" for i in range(3)),
        f"{prefix}decoder.layers.self_attention.odd",
        f"{prefix}decoder.layers.mlp.linear_fc1.weight",
    }
    name = f"{prefix}decoder.layers.1.self_attention.linear_qkv.weight"
    assert (store.shape(name), store.dtype(name)) == ((8, 4), "float32")
    np.testing.assert_array_equal(store.read(name), WEIGHTS[1])
    np.testing.assert_array_equal(store.read(name, slice(2, 5)), WEIGHTS[1, 2:5])
    np.testing.assert_array_equal(store.read(f"{prefix}decoder.layers.mlp.linear_fc1.weight"), WEIGHTS)


def test_a_layer_that_is_there_twice_is_refused() -> None:
    name = QKV.replace("layers.", "layers.1.")
    for held in ({QKV: WEIGHTS, name: WEIGHTS[0]}, {name: WEIGHTS[0], QKV: WEIGHTS}):
        with pytest.raises(CheckpointError, match="by itself and stacked"):
            unstacked(MemoryStore(held))


def test_other_checkpoints_stay_as_they_are() -> None:
    numbered = MemoryStore({"decoder.layers.0.self_attention.linear_qkv.weight": WEIGHTS[0]})
    assert unstacked(numbered) is numbered
    claimed = MemoryStore({QKV: np.empty((10**9, 0, 4), np.float32)})
    assert unstacked(claimed) is claimed
