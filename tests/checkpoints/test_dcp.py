"""Distributed checkpoints that torch wrote, on one process and sharded over two, against the tensors that went in."""

import io
import pickle  # noqa: TID251 - torch's own writer, on metadata made here
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from qkspec.checkpoints import chunks, pickles
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


def test_optimizers_of_megatron_are_left_out(tmp_path: Path) -> None:
    weights = {"decoder.layers.self_attention.linear_qkv.weight": torch.randn(2, 12, 4)}
    moments = {
        f"{front}optimizer.state.{kind}.{name}": torch.ones(2, 12, 4)
        for front in ("", "chained_0.", "chained_1.")
        for kind in ("exp_avg", "fp32_param")
        for name in weights
    }
    folder = save({**weights, **moments}, tmp_path / "iter_0000005")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = None  # as its own planner leaves it
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    names = [f"decoder.layers.{layer}.self_attention.linear_qkv.weight" for layer in range(2)]
    assert list(open_checkpoint(folder).store.names()) == names


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


def ranks_of(count: int, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write what ``count`` ranks of FSDP save together, the moments beside the weights, by torch's own planner."""
    folder.mkdir()
    moments = {f"optimizer.state.{name}.exp_avg": torch.ones_like(tensor) for name, tensor in weights.items()}
    everything = {**{f"model.{name}": tensor for name, tensor in weights.items()}, **moments}
    plans, parts = [], {}
    for rank in range(count):
        items = []
        for name, tensor in everything.items():
            rows = -(-len(tensor) // count)
            part = tensor[rank * rows : (rank + 1) * rows]
            start = torch.Size((min(rank * rows, len(tensor)), *([0] * (tensor.ndim - 1))))
            box = ChunkStorageMetadata(start, part.shape)
            about = TensorWriteData(box, TensorProperties(), tensor.shape)
            items.append(WriteItem(MetadataIndex(name, start), WriteItemType.SHARD, tensor_data=about))
            parts[rank, name] = part
        plans.append(pickle.loads(pickle.dumps(SavePlan(items))))  # as ranks gather them: no text is shared
    plans, metadata = create_default_global_save_plan(plans)
    metadata.planner_data = {name: tuple(name.split(".", 1)) for name in everything}
    places = {}
    for rank, plan in enumerate(plans):
        data = io.BytesIO()
        for item in plan.items:
            at = data.tell()
            torch.save(parts[rank, item.index.fqn].clone(), data)
            places[item.index] = _StorageInfo(f"__{rank}_0.distcp", at, data.tell() - at)
        (folder / f"__{rank}_0.distcp").write_bytes(data.getvalue())
    metadata.storage_data = places
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_many_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ranks hold nothing, boxes may be few rows, and more files than a process may have open are no matter."""
    weights = {f"layers.{n}.wq.weight": torch.randn(rows, 2) for n, rows in enumerate((150, 40, 301))}
    weights["norm.weight"] = torch.randn(7)
    folder = ranks_of(150, weights, tmp_path / "step-5")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
    try:
        store = open_checkpoint(folder).store
        assert_same(store, weights)
        assert store.bytes_read > (folder / ".metadata").stat().st_size + sum(w.nbytes for w in weights.values())
        store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(chunks, "MAX_NUMBERS", 40_000)
    with pytest.raises(CheckpointError, match="more chunks than 40000 bytes"):
        open_checkpoint(folder)
    monkeypatch.setattr(chunks, "MAX_METADATA", 1000)
    with pytest.raises(CheckpointError, match="more than 1000"):
        open_checkpoint(folder)


def test_chunks_do_not_count_as_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand ranks take fifty million steps; the limit is on those that something stays of."""
    folder = ranks_of(2, {f"layers.{n}.wq.weight": torch.ones(4) for n in range(500)}, tmp_path / "step-5")
    monkeypatch.setattr(pickles, "_SPARSE", 0)
    monkeypatch.setattr(chunks, "_MAX_STEPS", 100_000)
    assert len(open_checkpoint(folder).store.names()) == 500
    monkeypatch.setattr(pickles, "_SPARSE", 1 << 30)
    with pytest.raises(CheckpointError, match="100000 steps"):
        open_checkpoint(folder)


def swell(tensor: Any, width: int) -> None:
    tensor.size = tensor.chunks[0].sizes = torch.Size((width, width))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.storage_data.pop(next(iter(data.storage_data))), "does not say where a piece"),
        (lambda data: data.state_dict_metadata["q"].chunks.clear(), "do not make up its shape"),
        (lambda data: data.state_dict_metadata["q"].chunks.append(7), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "offsets", (0.0, 0)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "offsets", (-1, 0)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "offsets", (1 << 62, 0)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "sizes", (1 << 70, 0)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "sizes", (5, 4)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"].chunks[0], "sizes", (4,)), "damaged"),
        (lambda data: setattr(data.state_dict_metadata["q"], "size", (4, "x")), "damaged"),
        (lambda data: setattr(next(iter(data.storage_data.values())), "offset", -5), "damaged"),
        (lambda data: setattr(next(iter(data.storage_data.values())), "offset", 1 << 70), "damaged"),
        (lambda data: setattr(next(iter(data.storage_data.values())), "length", 1 << 60), "an index places"),
        (lambda data: setattr(next(iter(data.storage_data.values())), "relative_path", "/etc/passwd"), "damaged"),
        (lambda data: swell(data.state_dict_metadata["q"], 50_000), "has no room for it"),  # 10 GB, were it believed
        (
            lambda data: setattr(next(iter(data.storage_data.values())), "transform_descriptors", ["zstd"]),
            "compressed or encrypted",
        ),
    ],
)
def test_metadata_that_lies(tmp_path: Path, change: Any, message: str) -> None:
    folder = save({"q": torch.randn(4, 4)}, tmp_path / "d")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder).store.read("q")


def test_only_an_optimizer_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors of a model"):
        open_checkpoint(save({"optimizer": {"a": torch.ones(2)}}, tmp_path / "d"))
