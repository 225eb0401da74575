"""DeepSpeed's folders: the whole model of stages 0 to 2 is read, split weights are refused with what to run."""

from pathlib import Path

import pytest
import torch

from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import CheckpointError

STATE = {"module": {"module.h.0.q": torch.ones(2, 2)}, "optimizer": None, "global_steps": 500, "ds_version": "0.15"}


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        torch.save(STATE, path / name)
    return path


def test_the_whole_model_of_stage_2(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "out" / "global_step500",
        "mp_rank_00_model_states.pt",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    )
    (tmp_path / "out" / "latest").write_text("global_step500")
    for given in (path, tmp_path / "out"):
        checkpoint = open_checkpoint(given)
        assert (checkpoint.step, list(checkpoint.store.names())) == (500, ["h.0.q"])
    (tmp_path / "trainer").mkdir()
    (tmp_path / "out").rename(tmp_path / "trainer" / "checkpoint-500")
    assert open_checkpoint(tmp_path / "trainer" / "checkpoint-500").step == 500


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "2 tensor-parallel parts"),
        (["layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt"], "pipeline-parallel"),
        (["consolidated.00.pth", "consolidated.01.pth"], "convert_llama_weights_to_hf"),
    ],
)
def test_split_weights_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder(tmp_path / "global_step1", *names))
