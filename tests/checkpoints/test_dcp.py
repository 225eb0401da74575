"""Distributed checkpoints that torch wrote, on one process and sharded over two, against the tensors that went in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from qkspec.checkpoints.sequence import find_runs, open_checkpoint
from qkspec.checkpoints.store import Store
from qkspec.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SHARDED = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(9, 3, 18, dropout=0.0)
model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
full = {name: tensor.clone() for name, tensor in model.state_dict().items()}
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
model(torch.randn(3, 2, 9)).sum().backward()
optimizer.step()
weights, moments = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": moments, "step": 7}, checkpoint_id=f"{folder}/step-7")
if rank == 0:
    torch.save(full, f"{folder}/full.pt")
dist.barrier()
dist.destroy_process_group()
"""


def save(state: dict[str, Any], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def assert_same(store: Store, wanted: dict[str, torch.Tensor]) -> None:
    assert set(store.names()) == set(wanted)
    for name, tensor in wanted.items():
        assert store.shape(name) == tuple(tensor.shape)
        assert store.dtype(name) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(store.read(name), tensor.double().numpy())
        if tensor.ndim and len(tensor) > 2:
            np.testing.assert_array_equal(store.read(name, slice(1, len(tensor) - 1)), tensor[1:-1].double().numpy())


def test_one_process(tmp_path: Path) -> None:
    weights = {
        "layers.0.wq.weight": torch.randn(8, 4),
        "norm": torch.randn(4).bfloat16(),
        "f64": torch.randn(3, 2).double(),
        "t": torch.tensor(2.0),
    }
    state = {
        "model": weights,
        "optimizer": {"state": {"layers.0.wq.weight": {"exp_avg": torch.ones(8, 4)}}},
        "train_state": {"step": 3},
    }
    checkpoint = open_checkpoint(save(state, tmp_path / "step-300"))
    assert (checkpoint.step, checkpoint.store.format) == (300, "dcp")
    assert_same(checkpoint.store, weights)
    checkpoint.store.close()


def test_flat_names_as_torchtitan_writes_them(tmp_path: Path) -> None:
    weights = {"tok_embeddings.weight": torch.randn(8, 4), "layers.0.attention.wq.weight": torch.randn(4, 4)}
    state = {
        **weights,
        "optimizer.state.layers.0.attention.wq.weight.exp_avg": torch.ones(4, 4),
        "lr_scheduler": {"last": 1},
    }
    assert_same(open_checkpoint(save(state, tmp_path / "step-1")).store, weights)


@pytest.mark.slow
def test_shards_of_two_ranks(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SHARDED, str(rank), str(tmp_path)], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    errors = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    (run,) = find_runs([str(tmp_path / "step-7")])
    checkpoint = run.sources[0].open()
    assert len(list((tmp_path / "step-7").glob("*.distcp"))) == 2
    assert_same(checkpoint.store, torch.load(tmp_path / "full.pt", weights_only=True))  # noqa: TID251
    checkpoint.store.close()


def test_only_the_chunks_of_the_rows_are_read(tmp_path: Path) -> None:
    folder = save({"q": torch.randn(100, 50), "big": torch.randn(1000, 1000)}, tmp_path / "d")
    store = open_checkpoint(folder).store
    opened = store.bytes_read
    assert opened is not None
    store.read("q", slice(10, 20))
    assert store.bytes_read is not None
    assert store.bytes_read - opened < 10 * 50 * 4 + 2000


def test_accelerate_puts_it_in_a_folder_of_its_own(tmp_path: Path) -> None:
    weights = {"model.layers.0.w": torch.randn(3, 2)}
    save({"model": weights}, tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0")
    save({"optimizer": {"model.layers.0.w": torch.ones(3, 2)}}, tmp_path / "checkpoint-5" / "optimizer_0")
    (tmp_path / "checkpoint-5" / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(tmp_path / "checkpoint-5")
    assert (checkpoint.step, checkpoint.config) == (5, {"model_type": "llama"})
    assert_same(checkpoint.store, weights)


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = save({"q": torch.randn(4, 4)}, tmp_path / "d")
    (data,) = folder.glob("*.distcp")
    good, metadata = data.read_bytes(), (folder / ".metadata").read_bytes()
    data.write_bytes(good[:300])
    with pytest.raises(CheckpointError, match="an index places"):
        open_checkpoint(folder).store.read("q")
    data.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        open_checkpoint(folder)
    data.write_bytes(good)
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"without \.metadata"):
        open_checkpoint(folder)
    (folder / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../00.distcp"))
    with pytest.raises(CheckpointError, match="is not the metadata"):
        open_checkpoint(folder)
    for end in range(0, len(metadata), 7):
        (folder / ".metadata").write_bytes(metadata[:end])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_only_an_optimizer_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors of a model"):
        open_checkpoint(save({"optimizer": {"a": torch.ones(2)}}, tmp_path / "d"))
