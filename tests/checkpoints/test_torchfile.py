"""torch files read without torch, against torch.load(weights_only=True) as the second reader."""

import argparse
import collections
import pathlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import CheckpointError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NEW_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)
ZIP_AND_LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@ZIP_AND_LEGACY
def test_every_float_and_every_view(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(12, 6)
    state: dict[str, Any] = {f"x{i}": torch.randn(3, 4, 2).to(dtype) for i, dtype in enumerate(FLOATS)}
    if zipped:  # torch's older format has no storage type for these
        state |= {f"n{i}": torch.randn(5, 4).to(dtype) for i, dtype in enumerate(NEW_FLOATS)}
    state |= {
        "transposed": base.t(),
        "slice": base[3:7, 1:4],
        "step": base[::2, ::3],
        "scalar": torch.tensor(2.5),
        "empty": torch.ones(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "tied.a": base,
        "tied.b": base,
        "ints": torch.arange(3),
        "bool": torch.ones(2) > 0,
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    path = save(state, tmp_path / "model.pt", zipped=zipped)
    loaded = torch.load(path, weights_only=True)  # noqa: TID251 - the second reader
    store = open_checkpoint(path).store
    assert list(store.names()) == list(state)
    for name in store.names():
        assert store.shape(name) == tuple(loaded[name].shape)
        assert store.dtype(name) == str(loaded[name].dtype).removeprefix("torch.")
        if not loaded[name].dtype.is_floating_point:
            with pytest.raises(CheckpointError, match="not as floating-point"):
                store.read(name)
            continue
        wanted = (loaded[name].double() if store.dtype(name) == "float64" else loaded[name].float()).detach().numpy()
        np.testing.assert_array_equal(store.read(name), wanted)
        assert store.read(name).dtype == wanted.dtype
        assert store.read(name).flags.writeable
        if wanted.ndim and wanted.shape[0]:
            np.testing.assert_array_equal(store.read(name, slice(1, wanted.shape[0])), wanted[1:])


@ZIP_AND_LEGACY
def test_a_whole_pickled_module_is_its_state_dict(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    store = open_checkpoint(save(model, tmp_path / "model.pt", zipped=zipped)).store
    assert list(store.names()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(store.read(name), tensor.numpy())


@ZIP_AND_LEGACY
def test_nanogpt(tmp_path: Path, zipped: bool) -> None:
    weights = {
        "_orig_mod.transformer.h.0.attn.c_attn.weight": torch.randn(12, 4),
        "_orig_mod.lm_head.weight": torch.randn(5, 4),
    }
    moments = {"state": {0: {"exp_avg": torch.randn(12, 4), "step": 3}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    args = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 8, "bias": False, "vocab_size": 5, "dropout": 0.0}
    value = {
        "model": weights,
        "optimizer": moments,
        "model_args": args,
        "iter_num": 250,
        "best_val_loss": torch.tensor(2.5),
        "config": {"n_head": 9},
    }
    (tmp_path / "config.json").write_text('{"n_head": 7}')
    checkpoint = open_checkpoint(save(value, tmp_path / "ckpt.pt", zipped=zipped))
    assert list(checkpoint.store.names()) == ["transformer.h.0.attn.c_attn.weight", "lm_head.weight"]
    assert (checkpoint.step, checkpoint.config) == (250, args)
    np.testing.assert_array_equal(checkpoint.store.read("lm_head.weight"), weights["_orig_mod.lm_head.weight"].numpy())


def test_lightning_by_its_own_keys(tmp_path: Path) -> None:
    value = {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "2.5.0",
        "loops": {},
        "callbacks": {"x": {"best_model_path": "/a"}},
        "state_dict": {"net.layers.0.attn.weight": torch.ones(2, 2), "net.head.weight": torch.ones(1)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2, 2)}}}],
        "hyper_parameters": {
            "n_head": 2,
            "path": pathlib.Path("/data"),
            "dtype": torch.float32,
            "namespace": argparse.Namespace(deep=[1, (2,)]),
        },
    }
    checkpoint = open_checkpoint(save(value, tmp_path / "epoch=3-step=900.ckpt"))
    assert (checkpoint.step, list(checkpoint.store.names())) == (900, ["layers.0.attn.weight", "head.weight"])
    assert checkpoint.config["n_head"] == 2
    assert checkpoint.config["dtype"] == "torch.float32"
    assert checkpoint.config["namespace"] == {"deep": [1, [2]]}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": torch.ones(1)}, ["a"]),
        (collections.OrderedDict(a=torch.ones(1)), ["a"]),
        (
            {
                "state_dict": {"a": torch.ones(1)},
                "state_dict_ema": {"a": torch.zeros(1)},
                "optimizer": {"state": {0: torch.ones(1)}},
            },
            ["a"],
        ),
        ({"ema": {"a": torch.ones(1)}}, ["a"]),
        ({"model_ema": {"a": torch.zeros(1)}, "generator": {"b": torch.ones(1)}}, ["b"]),
        ({"module": {"module.a": torch.ones(1), "module.b": torch.ones(1)}, "global_steps": 5}, ["a", "b"]),
        (
            {
                "a": torch.ones(1),
                "optimizer": {"exp_avg": torch.ones(1)},
                "language_model": {"encoder": {"b": torch.ones(1)}},
            },
            ["a", "language_model.encoder.b"],
        ),
        ({"dims": {"n_text_head": 6}, "model_state_dict": {"a": torch.ones(1)}}, ["a"]),
        (
            {"layers.0._orig_mod.w": torch.ones(1), "layers.0._checkpoint_wrapped_module.b": torch.ones(1)},
            ["layers.0.w", "layers.0.b"],
        ),
        ({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, ["a", "_orig_mod.a"]),
    ],
)
def test_which_dict_holds_the_weights(tmp_path: Path, value: Any, names: list[str]) -> None:
    assert list(open_checkpoint(save(value, tmp_path / "x.pt")).store.names()) == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"student": {"a": torch.ones(1)}, "tutor": {"a": torch.ones(1)}}, "several sets of tensors"),
        ({"step": 5}, "holds no tensors"),
        (torch.ones(3), "single tensor"),
        ([torch.ones(3)], "'list' where a state dict"),
        (5, "'int' where a state dict"),
        ({"a": torch.ones(4).expand(1000, 4)}, "repeats its 4 stored numbers"),
        ({"a": torch.ones(3, 3).to_sparse()}, None),
        ({"a": torch.ones(3, 3, device="meta")}, None),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: Any, message: str | None) -> None:
    path = save(value, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message or "sparse|meta device") as caught:
        open_checkpoint(path).store.read("a")
    assert "x.pt" in str(caught.value)


def test_only_the_bytes_asked_for_are_read_and_torch_stays_out(tmp_path: Path) -> None:
    path = save({"q": torch.randn(64, 32), "big": torch.randn(2000, 1000)}, tmp_path / "x.pt")
    program = (
        "import sys\nfrom qkspec.checkpoints.sequence import open_checkpoint\n"
        "store = open_checkpoint(sys.argv[1]).store\nopened = store.bytes_read\nstore.read('q', slice(0, 8))\n"
        "print(opened, store.bytes_read - opened, 'torch' in sys.modules, 'pickle' in sys.modules)"
    )
    opened, read, torch_loaded, _ = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(opened) < 5000
    assert int(read) < 8 * 32 * 4 + 100
    assert torch_loaded == "False"
    assert path.stat().st_size > 8_000_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_containers_that_hold_no_state_dict(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with (
        zipfile.ZipFile(save({"a": torch.ones(100)}, tmp_path / "good.pt")) as good,
        zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for item in good.infolist():
            bad.writestr(item.filename, good.read(item.filename))
    for name, message in {
        "script.pt": "TorchScript",
        "other.zip": "none that torch.save wrote",
        "deflated.pt": "compressed or encrypted",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)
