"""A live state dict reads like the file it would be saved to."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from qkspec.checkpoints import memory
from qkspec.checkpoints.memory import from_state_dict
from qkspec.errors import CheckpointError


def test_torch_and_numpy_values() -> None:
    state = {
        "module.f32": torch.randn(4, 3),
        "module.bf16": torch.randn(4, 3).bfloat16(),
        "module.f64": torch.randn(4, 3).double(),
        "module.np": np.arange(6.0).reshape(3, 2),
        "module.np16": np.ones((2, 2), np.float16),
        "module.text": "no tensor",
        "module.e4": torch.randn(4, 4).to(torch.float8_e4m3fn),
    }
    checkpoint = from_state_dict(state, {"n_head": 2}, name="live", step=7)
    store = checkpoint.store
    assert (checkpoint.name, checkpoint.step, checkpoint.config, store.format) == ("live", 7, {"n_head": 2}, "memory")
    assert set(store.names()) == {"f32", "bf16", "f64", "np", "np16", "e4"}
    for name in ("f32", "bf16", "f64", "e4"):
        tensor = state[f"module.{name}"]
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(store.read(name), tensor.double().numpy())
        np.testing.assert_array_equal(store.read(name, slice(1, 3)), tensor[1:3].double().numpy())
        assert store.read(name).dtype == (np.float64 if name == "f64" else np.float32)
    assert (store.dtype("np"), store.dtype("np16"), store.dtype("bf16"), store.shape("np")) == (
        "float64",
        "float16",
        "bfloat16",
        (3, 2),
    )
    assert store.read("np16").dtype == np.float32


def test_a_reading_is_a_copy() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    values = from_state_dict({"w": weight}).store.read("w")
    with torch.no_grad():
        weight += 1
    assert not values.any()


def test_what_has_no_numbers_is_refused() -> None:
    store = from_state_dict({"meta": torch.ones(2, device="meta"), "int": torch.ones(2, dtype=torch.int8)}).store
    with pytest.raises(CheckpointError, match="meta device"):
        store.read("meta")
    with pytest.raises(CheckpointError, match="int8"):
        store.read("int")
    with pytest.raises(KeyError):
        store.shape("none")


def test_memory_imports_no_torch() -> None:
    tree = ast.parse(Path(memory.__file__).read_text())
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "torch" for node in ast.walk(tree))
