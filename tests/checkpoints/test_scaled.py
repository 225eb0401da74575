"""fp8 weights with scales against the reference dequantisation; packed integers refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qkspec.checkpoints.memory import MemoryStore
from qkspec.checkpoints.scaled import refuse_packed
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import CheckpointError


def deepseek_reference(weight: torch.Tensor, scale: torch.Tensor, block: int = 128) -> torch.Tensor:
    """Multiply every block by its scale, block by block, as DeepSeek-V3's weight_dequant kernel does."""
    out = weight.float()
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            out[i * block : (i + 1) * block, j * block : (j + 1) * block] *= scale[i, j]
    return out


def write(folder: Path, tensors: dict[str, torch.Tensor], quantisation: dict[str, Any] | None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantisation} if quantisation else {}))
    return folder


@pytest.mark.parametrize("shape", [(256, 384), (300, 130), (64, 64), (129, 128)])
def test_block_scales_of_deepseek(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight = (torch.randn(shape) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.01
    folder = write(
        tmp_path / "m",
        {"q.weight": weight, "q.weight_scale_inv": scale, "n": torch.ones(3).bfloat16()},
        {"quant_method": "fp8"},
    )
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.store.names()) == ["n", "q.weight"]
    assert checkpoint.store.dtype("q.weight") == "float8_e4m3fn"
    expected = deepseek_reference(weight, scale).numpy()
    np.testing.assert_array_equal(checkpoint.store.read("q.weight"), expected)
    np.testing.assert_array_equal(checkpoint.store.read("q.weight", slice(7, 61)), expected[7:61])
    np.testing.assert_array_equal(checkpoint.store.read("n"), np.ones(3))


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.25]), torch.rand(6, 1), torch.rand(6).double()])
def test_scales_of_a_tensor_or_a_row(tmp_path: Path, scale: torch.Tensor) -> None:
    weight = torch.randn(6, 4).to(torch.float8_e5m2)
    folder = write(tmp_path / "m", {"q.weight": weight, "q.weight_scale": scale}, None)
    expected = weight.float() * (scale.float().reshape(-1, 1) if scale.numel() > 1 else scale.float())
    got = open_checkpoint(folder).store.read("q.weight", slice(2, 5))
    np.testing.assert_array_equal(got, expected[2:5].numpy())


def test_block_size_comes_from_the_config(tmp_path: Path) -> None:
    weight, scale = torch.randn(8, 8).to(torch.float8_e4m3fn), torch.rand(2, 4)
    tensors = {"q.weight": weight, "q.weight_scale_inv": scale}
    folder = write(tmp_path / "m", tensors, {"weight_block_size": [4, 2]})
    expected = weight.float() * scale.repeat_interleave(4, 0).repeat_interleave(2, 1)
    np.testing.assert_array_equal(open_checkpoint(folder).store.read("q.weight"), expected.numpy())
    with pytest.raises(CheckpointError, match="fits neither"):
        open_checkpoint(write(tmp_path / "m", tensors, {"weight_block_size": [True, "x"]})).store.read("q.weight")


def test_fp8_without_scales(tmp_path: Path) -> None:
    weight = torch.randn(4, 4).to(torch.float8_e4m3fn)
    plain = open_checkpoint(write(tmp_path / "m", {"q.weight": weight}, None)).store
    np.testing.assert_array_equal(plain.read("q.weight"), weight.float().numpy())
    quantised = open_checkpoint(write(tmp_path / "m", {"q.weight": weight}, {"quant_method": "fp8"})).store
    with pytest.raises(CheckpointError, match="scale is missing"):
        quantised.read("q.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("transformer.h.0.attn.c_attn.qweight", "GPTQ or AWQ"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", "4-bit numbers of bitsandbytes"),
        ("model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("model.layers.0.self_attn.k_proj.SCB", "8-bit integers of bitsandbytes"),
        ("model.layers.0.self_attn.q_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.self_attn.q_proj_blocks", "MXFP4"),
        ("model.layers.0.self_attn.q_proj.codebooks", "AQLM"),
        ("model.layers.0.self_attn.q_proj.Qidxs", "QuIP"),
        ("model.layers.0.self_attn.q_proj._packed_params._packed_params", "torch's quantised"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload"),
    ],
)
def test_packed_attention_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        refuse_packed([name, "other.weight"], "folder")


def test_packed_experts_beside_plain_attention_are_fine() -> None:
    names = [
        "model.layers.0.mlp.experts.gate_up_proj_blocks",
        "model.layers.0.mlp.experts.gate_up_proj_scales",
        "model.layers.0.self_attn.q_proj.weight",
        "transformer_blocks.0.attn1.to_q.weight",
        "model.layers.0.mlp.down_proj.qweight",
    ]
    refuse_packed(names, "folder")


def test_a_scale_that_belongs_to_no_weight_is_a_tensor(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"clip.logit_scale": torch.ones(1), "q.weight": torch.ones(2, 2)}, None)
    assert sorted(open_checkpoint(folder).store.names()) == ["clip.logit_scale", "q.weight"]
    assert isinstance(MemoryStore({}), MemoryStore)
