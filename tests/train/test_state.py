import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkspec.errors import CheckpointError
from qkspec.train import state


def test_a_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    saved = {"o": optimizer.state_dict(), "t": (1, [2.5, None, True, "x"]), 7: torch.tensor(float("nan")), "e": {}}
    state.dump(saved, tmp_path / "s.safetensors")
    back = state.load(tmp_path / "s.safetensors")
    assert back["t"] == saved["t"]
    assert back[7].isnan()
    assert back["e"] == {}
    assert back["o"]["param_groups"] == saved["o"]["param_groups"]
    for i, moments in saved["o"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(back["o"]["state"][i][name], tensor)
            assert back["o"]["state"][i][name].dtype == tensor.dtype


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s.safetensors"
    state.dump({"a": torch.arange(100.0)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"s\.safetensors"):
        state.load(path)


def test_another_program_s_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"qkspec_state": "{"}, {"qkspec_state": json.dumps({"tensor": "9"})}):
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="other"):
            state.load(path)


def test_what_is_no_plain_value_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        state.dump({"a": object()}, tmp_path / "s.safetensors")
