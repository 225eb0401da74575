"""The table of formats: every member finds and opens what it says."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from qkspec.checkpoints.files import LocalFolder
from qkspec.checkpoints.formats import FORMATS, find_place, open_place, weight_files


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_format_finds_its_own(tmp_path: Path) -> None:
    weights = {"q": torch.ones(2, 2)}
    for name in ("a", "c", "d"):
        (tmp_path / name).mkdir()
    save_file(weights, tmp_path / "a" / "model.safetensors")
    dcp.save(weights, checkpoint_id=tmp_path / "b", no_dist=True)
    torch.save({"module": weights}, tmp_path / "c" / "mp_rank_00_model_states.pt")
    torch.save(weights, tmp_path / "d" / "pytorch_model.bin")
    for name, form in zip("abcd", FORMATS, strict=True):
        place = find_place(LocalFolder(tmp_path / name))
        assert place is not None
        assert place.format is form
        opened = open_place(place)
        assert (list(opened.store.names()), opened.store.format) == (["q"], form.name)
        opened.store.close()


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert find_place(LocalFolder(tmp_path)) is None
    assert weight_files(LocalFolder(tmp_path)) == ()
