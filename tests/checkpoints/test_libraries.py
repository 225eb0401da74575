"""Folders as real libraries write them: transformers' save_pretrained and Trainer, Lightning, and a hub download."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from qkspec.checkpoints.sequence import find_runs, open_checkpoint
from qkspec.checkpoints.store import Store


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=2, n_embd=16, vocab_size=50, n_positions=8))


def assert_holds(store: Store, model: torch.nn.Module, prefix: str = "") -> None:
    state = model.state_dict()
    assert len(store.names()) > 20
    for name in store.names():
        np.testing.assert_array_equal(store.read(name), state[prefix + name].numpy())


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_save_pretrained(tmp_path: Path, shard: str) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "m", max_shard_size=shard)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard == "20KB")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (checkpoint.config["model_type"], checkpoint.config["n_head"]) == ("gpt2", 2)
    assert_holds(checkpoint.store, model)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "bf16"])
def test_packaging_never_changes_a_number(tmp_path: Path, form: str) -> None:
    model = gpt2().bfloat16() if form == "bf16" else gpt2()
    model.save_pretrained(tmp_path / "reference")
    reference = open_checkpoint(tmp_path / "reference").store
    if form in ("zip", "legacy"):
        state = {
            "model": {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()},
            "optimizer": {"exp_avg": torch.ones(3)},
        }
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=form == "zip")
        other = open_checkpoint(tmp_path / "x.pt").store
    else:
        model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
        other = open_checkpoint(tmp_path / "sharded").store
    assert set(reference.names()) <= set(other.names())
    for name in reference.names():
        assert (other.shape(name), other.dtype(name)) == (reference.shape(name), reference.dtype(name))
        assert other.read(name).tobytes() == reference.read(name).tobytes()


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    options = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=12,
        save_steps=5,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(gpt2(), options, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    trainer.save_model()
    (run,) = find_runs([str(tmp_path / "out")])
    names = [(source.name, source.step) for source in run.sources]
    assert names == [("checkpoint-5", 5), ("checkpoint-10", 10), ("checkpoint-12", 12), ("out", None)]
    for source in run.sources:
        assert source.open().config["model_type"] == "gpt2"
    assert_holds(run.sources[-1].open().store, trainer.model)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, n_head: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = gpt2()

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch, labels=batch).loss
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver],
    )
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(torch.randint(0, 50, (12, 6)), batch_size=2))
    (run,) = find_runs([str(tmp_path / "checkpoints")])
    assert [source.step for source in run.sources] == [2, 4, 6, 6][: len(run.sources)]
    checkpoint = run.sources[-1].open()
    assert (checkpoint.step, checkpoint.config["n_head"]) == (6, 2)
    assert_holds(checkpoint.store, module.net)
