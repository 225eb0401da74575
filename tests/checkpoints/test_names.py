"""Steps, order and roles that names tell."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qkspec.checkpoints.names import is_temporary, is_trainer_state, natural, says_step, stem_of, step_of
from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.checkpoints.source import MAX_NAME
from qkspec.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000100", 100),
        ("checkpoint-500", 500),
        ("ckpt_20.pt", 20),
        ("global_step1000", 1000),
        ("epoch=3-step=900.ckpt", 900),
        ("step1000", 1000),
        ("step=100.pt.tar", 100),
        ("1000", 1000),
        ("iter_0000100", 100),
        ("step1000-tokens4B", 1000),
        ("ckpt_100k.pt", 100_000),
        ("model_100.pt", 100),
        ("checkpoint-500-best", 500),
        ("epoch_3", 3),
        ("epoch=3-val_loss=2.31.ckpt", 3),
        ("checkpoint_5.pth.tar", 5),
        ("model@step143000", 143000),
        ("Step_7.safetensors", 7),
        ("checkpoint-1m", 1_000_000),
        ("update_12.pt", 12),
        ("0.pt", 0),
        ("gpt2.pt", None),
        ("llama-7b", None),
        ("vit-b16", None),
        ("checkpoint.pth.tar", None),
        ("last.ckpt", None),
        ("consolidated.00.pth", None),
        ("run-2024-05-01", None),
        ("model-00001-of-00003.safetensors", None),
        ("best-loss=0.25.ckpt", None),
        ("step-" + "9" * 400, None),
        ("", None),
    ],
)
def test_step_of(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_dates_and_versions_are_no_step_folders() -> None:
    assert [says_step(name) for name in ("checkpoint-5", "step_2", "100", "iter_4", "epoch_1")] == [True] * 5
    assert [says_step(name) for name in ("version_0", "run-1", "seed_3", "gpt2", "adamw2", "original")] == [False] * 6


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=20))
def test_natural_order_is_numeric(numbers: list[int]) -> None:
    assert sorted((f"ckpt_{n}.pt" for n in numbers), key=natural) == [f"ckpt_{n}.pt" for n in sorted(numbers)]


@given(st.text(max_size=40))
def test_any_name_is_judged_without_error(name: str) -> None:
    step_of(name), says_step(name), is_temporary(name), is_trainer_state(name), stem_of(name), natural(name)


def test_natural_order_takes_digits_without_end() -> None:
    assert natural("a" + "1" * 10_000) < natural("a" + "2" * 10_000)


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "optimizer.bin",
        "scheduler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "training_args.bin",
        "scaler.pt",
        "optimizer_0",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "random_states_0.pkl",
        "trainer_state.json",
        "dataloader.pt",
        "model_optim.pt",
    ],
)
def test_trainer_state(name: str) -> None:
    assert is_trainer_state(name)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "optimal_model.pt", "scaled.pt", "mp_rank_00_model_states.pt", "ckpt_20.pt", "rngesus.pt"],
)
def test_weights_are_no_trainer_state(name: str) -> None:
    assert not is_trainer_state(name)


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("tmp-checkpoint-500", True),
        ("step-000100.tmp-abc", True),
        ("step-5.tmp", True),
        ("model.safetensors.part", True),
        ("ckpt.pt~", True),
        ("checkpoint-5_temp", True),
        ("model.incomplete", True),
        ("step-5-partial", True),
        ("template.pt", False),
        ("step-5", False),
        ("temperature-1", False),
    ],
)
def test_temporary(name: str, temporary: bool) -> None:
    assert is_temporary(name) == temporary


def test_a_name_that_no_library_writes_is_refused(tmp_path: Path) -> None:
    """Patterns take time that grows as the square of a name: one of 40,000 characters once took half a minute."""
    for length in (MAX_NAME, MAX_NAME + 1):
        save_file({"a" * length: np.zeros(1, "f4")}, tmp_path / f"{length}.safetensors")
    assert open_checkpoint(tmp_path / f"{MAX_NAME}.safetensors").store.names()
    with pytest.raises(CheckpointError, match=f"{MAX_NAME + 1} characters long"):
        open_checkpoint(tmp_path / f"{MAX_NAME + 1}.safetensors")
