import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkspec.train import stream


def tensors() -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {
        "flag": torch.tensor([True, False, True]),
        "double": torch.randn(3, dtype=torch.float64, generator=gen),
        "columns": torch.randn(4, 5, generator=gen).t(),
        "half": torch.randn(7, generator=gen).bfloat16(),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "nan": torch.tensor(float("nan")),
    }


def test_the_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    stream.write(tmp_path / "a.safetensors", tensors(), {"format": "pt"})
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor, atol=0, rtol=0, equal_nan=True)
    again = stream.read(tmp_path / "a.safetensors", lambda name, t: t if name == "count" else t.flatten()[:0])
    assert again["count"] == 3
    assert again["double"].shape == (0,)


def test_floating_tensors_become_narrower_and_whole_numbers_stay(tmp_path: Path) -> None:
    stream.write(tmp_path / "a.safetensors", tensors(), {}, torch.bfloat16)
    back = load_file(tmp_path / "a.safetensors")
    assert {name: t.dtype for name, t in back.items() if t.dtype != torch.bfloat16} == {
        "flag": torch.bool,
        "count": torch.int64,
    }
    assert torch.equal(back["columns"], tensors()["columns"].bfloat16())


def test_one_tensor_at_a_time_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, order, alive = {f"w{i}": torch.full((2, 2), float(i)) for i in range(12)}, list[float](), list[int]()
    living = weakref.WeakSet[torch.Tensor]()

    def gather(part: torch.Tensor) -> torch.Tensor:
        alive.append(len(living))
        order.append(part[0, 0].item())
        gathered = part.clone()
        living.add(gathered)
        return gathered

    monkeypatch.setattr(stream, "whole", gather)
    stream.write(tmp_path / "a.safetensors", parts, {})
    first = order.copy()
    stream.write(None, parts, {})
    assert order == first * 2  # those that do not write ask in the same order
    assert max(alive) <= 1  # the one before, until its name is taken
