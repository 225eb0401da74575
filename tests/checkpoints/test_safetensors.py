"""Our reader of safetensors against the library's writer: same numbers, only the bytes asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qkspec.checkpoints.files import LocalBlob
from qkspec.checkpoints.safetensors import SafetensorsStore
from qkspec.errors import CheckpointError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    rows=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_values_and_rows_are_exact(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    rows: tuple[int, int],
) -> None:
    path = tmp_path_factory.mktemp("st") / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(shape, generator=generator).to(dtype)
    save_file({"before": torch.ones(3), "x": wanted, "z": torch.arange(5)}, path, metadata={"format": "pt"})
    store = SafetensorsStore(LocalBlob(path))
    assert sorted(store.names()) == ["before", "x", "z"]
    assert (store.shape("x"), store.dtype("x")) == (shape, str(dtype).removeprefix("torch."))
    expected = wanted.double().numpy() if dtype == torch.float64 else wanted.float().numpy()
    got = store.read("x")
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    if shape and max(rows) <= shape[0]:
        np.testing.assert_array_equal(store.read("x", slice(*rows)), expected[slice(*rows)])
    store.close()


def test_only_the_bytes_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"q": torch.randn(64, 32), "other": torch.randn(1000, 1000)}, path)
    store = SafetensorsStore(LocalBlob(path))
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert store.bytes_read == header
    store.read("q", slice(8, 16))
    assert store.bytes_read == header + 8 * 32 * 4
    assert path.stat().st_size > 4_000_000


@pytest.mark.parametrize("rows", [slice(0, 4, 2), slice(0, 99), slice(None, None, -1)])
def test_rows_must_be_contiguous_rows_of_the_tensor(tmp_path: Path, rows: slice) -> None:
    save_file({"q": torch.randn(4, 2), "scalar": torch.tensor(1.0)}, tmp_path / "m.safetensors")
    store = SafetensorsStore(LocalBlob(tmp_path / "m.safetensors"))
    with pytest.raises(CheckpointError, match="has no rows"):
        store.read("q", rows)
    with pytest.raises(CheckpointError, match="has no rows"):
        store.read("scalar", slice(0, 1))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"codes": torch.arange(4)}, tmp_path / "m.safetensors")
    store = SafetensorsStore(LocalBlob(tmp_path / "m.safetensors"))
    assert store.dtype("codes") == "int64"
    with pytest.raises(CheckpointError, match="int64"):
        store.read("codes")
    with pytest.raises(KeyError):
        store.shape("nothing")


def test_a_hundred_thousand_tensors_stay_cheap(tmp_path: Path) -> None:
    names = {
        f"layers.{i}.attention.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)
    }
    head = json.dumps(names).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from qkspec.checkpoints.files import LocalBlob\n"
        "from qkspec.checkpoints.safetensors import SafetensorsStore\n"
        "def peak():\n    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before, start = peak(), time.monotonic()\n"
        "assert len(SafetensorsStore(LocalBlob(sys.argv[1])).names()) == 100_000\n"
        "print(peak() - before, time.monotonic() - start, 'torch' in sys.modules)"
    )
    kilobytes, seconds, torch_loaded = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(kilobytes) < 150_000
    assert float(seconds) < 5
    assert torch_loaded == "False"
