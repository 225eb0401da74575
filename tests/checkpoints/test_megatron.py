"""A checkpoint that Megatron-core wrote from two ranks, against the queries and keys of its own attention."""

import argparse
import enum
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from qkspec.checkpoints.files import LocalFolder
from qkspec.checkpoints.megatron import read_common
from qkspec.checkpoints.sequence import find_runs, open_checkpoint
from qkspec.layouts.find import attention_layers
from qkspec.qk import Array, Rotary

SAMPLE = Path(__file__).parent.parent / "data" / "megatron_core.tar.xz"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def made(weight: Array, bias: Array, gain: Array) -> Array:
    """Queries or keys of the unit vectors: (heads, d_q, d)."""
    value = weight.astype(np.float64) + np.asarray(bias)[:, :, None]
    return value / np.sqrt((value**2).mean(1, keepdims=True) + 1e-5) * np.asarray(gain)[:, :, None]


def test_what_its_attention_computes(sample: Path) -> None:
    checkpoint, wanted = open_checkpoint(sample / "iter_0000700"), load_file(sample / "qk.safetensors")
    assert (checkpoint.name, checkpoint.step, checkpoint.store.format) == ("iter_0000700", 700, "dcp")
    layers = list(attention_layers(checkpoint))
    assert [layer.layer for layer in layers] == [0, 1]
    for layer, q, k in zip(layers, wanted["q"], wanted["k"], strict=True):
        assert layer.qk_norm is not None
        assert (layer.qk_norm.kind, layer.rotary) == ("rms", Rotary(2, 500_000, "halves"))
        assert (layer.unknown, layer.context) == ((), 16)
        assert layer.q_input is not None
        assert layer.q_input.kind == "rms"
        assert len(set(layer.q_input.gain.tolist())) == 8
        np.testing.assert_allclose(made(layer.q, layer.q_bias, layer.qk_norm.q_gain), q, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made(layer.k, layer.k_bias, layer.qk_norm.k_gain), k, rtol=1e-5, atol=1e-6)


def test_without_its_arguments_heads_are_asked_for(sample: Path) -> None:
    (sample / "iter_0000700" / "common.pt").write_bytes(b"damaged")
    checkpoint = open_checkpoint(sample / "iter_0000700")
    assert (checkpoint.step, checkpoint.config) == (700, {})  # by its name
    layers = list(attention_layers(checkpoint, num_heads=4, num_kv_heads=2))
    assert layers[0].unknown
    np.testing.assert_array_equal(layers[0].q.shape, (4, 4, 8))


class Kind(enum.Enum):
    FLASH = 1


@pytest.mark.parametrize(
    ("changed", "key_heads"), [({"group_query_attention": False, "num_query_groups": 1}, 4), ({}, 2)]
)
def test_query_groups_count_only_where_they_are_on(tmp_path: Path, changed: dict[str, Any], key_heads: int) -> None:
    args = {"num_attention_heads": 4, "num_query_groups": 2, "group_query_attention": True, "kind": Kind.FLASH}
    torch.save({"args": argparse.Namespace(**(args | changed)), "iteration": 5}, tmp_path / "common.pt")
    config, step = read_common(LocalFolder(tmp_path))
    assert step == 5
    assert config.get("num_query_groups", 4) == key_heads


def test_gains_stored_minus_one_and_adjacent_pairs(sample: Path) -> None:
    folder = sample / "iter_0000700"
    before = next(iter(attention_layers(open_checkpoint(folder))))
    mark = find_runs([str(folder)])[0].sources[0].fingerprint()
    config = dict(open_checkpoint(folder).config) | {"apply_layernorm_1p": True, "rotary_interleaved": True}
    torch.save({"args": argparse.Namespace(**config), "iteration": 5}, folder / "common.pt")
    after = next(iter(attention_layers(open_checkpoint(folder))))
    assert find_runs([str(folder)])[0].sources[0].fingerprint() != mark
    assert before.q_input is not None
    assert after.q_input is not None
    np.testing.assert_allclose(after.q_input.gain, before.q_input.gain + 1)
    assert after.rotary == Rotary(2, 500_000, "adjacent")
    config["position_embedding_type"] = "yarn"
    torch.save({"args": argparse.Namespace(**config), "iteration": 5}, folder / "common.pt")
    assert next(iter(attention_layers(open_checkpoint(folder)))).unknown


def test_a_folder_of_its_steps_is_a_run(sample: Path) -> None:
    (sample / "qk.safetensors").unlink()
    shutil.copytree(sample / "iter_0000700", sample / "iter_0001400")
    (run,) = find_runs([str(sample)])
    assert [(source.name, source.step) for source in run.sources] == [("iter_0000700", 700), ("iter_0001400", 1400)]
