import csv

import pytest

pytest.importorskip("lightning", reason="lightning is not installed")

import torch
from callbacks.loops import TINY, collapse, run_example, same
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional

from qkspec import analyze
from qkspec.callbacks.lightning import SpectrumCallback
from qkspec.errors import LayoutError, UsageError
from qkspec.optim import AdamW2
from qkspec.train.models import gpt

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's own


class Module(LightningModule):
    """A GPT in a module that keeps the head count among its hyperparameters."""

    def __init__(self, n_head=2, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.model = gpt.build(TINY)

    def training_step(self, ids, index):
        logits = functional.dropout(self.model(ids[:, :-1]), 0.1)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Bounded(Module):
    """The same with AdamW²; each step's dropout is its own, as Lightning keeps no random state."""

    def configure_optimizers(self):
        return AdamW2(self.named_parameters(), lr=self.hparams.lr)

    def on_train_batch_start(self, *args):
        torch.manual_seed(self.global_step)


class Plant(Callback):
    """Collapses every head after an update."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            collapse(pl_module.model)


class Keep(SpectrumCallback):
    """Keeps every judgement."""

    def _report(self, judgement, trainer):
        self.__dict__.setdefault("kept", {})[judgement.step] = judgement
        super()._report(judgement, trainer)


def loader():
    ids = torch.randint(64, (64, 17), generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(ids, batch_size=4)


def module_of(kind=Module, **options):
    seed_everything(0, verbose=False)
    return kind(**options)


def trainer_of(folder, callbacks=(), **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_steps": 8}
    return Trainer(default_root_dir=str(folder), callbacks=list(callbacks), **quiet | options)


def test_adamw2_takes_the_place_of_adamw_and_resumes_bit_for_bit(tmp_path):
    whole, half, again = (module_of(Bounded) for _ in range(3))
    trainer = trainer_of(tmp_path, max_epochs=2, max_steps=-1)
    trainer.fit(whole, loader())
    assert 0 < trainer.optimizers[0].bound_fraction <= 1
    first = trainer_of(tmp_path, max_epochs=1, max_steps=-1)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer_of(tmp_path, max_epochs=2, max_steps=-1)
    second.fit(again, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert [r.effective_lr for r in second.optimizers[0].readings()] == [
        r.effective_lr for r in trainer.optimizers[0].readings()
    ]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_same_as_of_the_checkpoints_that_the_trainer_saves(tmp_path):
    callback = Keep(every=4, early=())
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    trainer_of(tmp_path, [callback, saver], enable_checkpointing=True).fit(module_of(), loader())
    assert sorted(callback.kept) == [0, 4, 8]
    report = analyze([tmp_path])
    for step, fact in zip((4, 8), report.checkpoints, strict=True):
        assert fact.step == step
        same(callback.kept[step], report, fact.name)
    assert callback.last is callback.kept[8]


def test_numbers_reach_the_loggers_at_their_own_steps(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = SpectrumCallback(every=4, early=(1,))
    trainer = trainer_of(tmp_path, [callback], logger=logger, log_every_n_steps=16)
    trainer.fit(module_of(), loader())
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["qkspec/max_sigma1"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 4, 8]
    assert float(rows[-1]["qkspec/max_sigma1"]) == callback.last.scalars["qkspec/max_sigma1"]
    watched = trainer.callback_metrics
    assert watched["qkspec/max_sigma1"] == pytest.approx(callback.last.scalars["qkspec/max_sigma1"])
    assert callback.last.scalars.keys() <= watched.keys()


def test_a_planted_collapse_stops_the_trainer(tmp_path):
    callback = SpectrumCallback(every=1, stop_on="lost")
    trainer = trainer_of(tmp_path, [Plant(3), callback])
    trainer.fit(module_of(), loader())
    assert trainer.global_step == 3
    assert callback.last.state.verdict == "lost"
    assert callback.last.state.turned == 3


def test_without_a_stop_word_the_trainer_goes_on(tmp_path):
    trainer = trainer_of(tmp_path, [Plant(3), SpectrumCallback(every=1)])
    trainer.fit(module_of(), loader())
    assert trainer.global_step == 8


def final_weights(folder, *, watched):
    module = module_of()
    callbacks = [Keep(every=1)] if watched else []
    trainer_of(folder, callbacks, accumulate_grad_batches=2, max_steps=6).fit(module, loader())
    if watched:
        assert sorted(callbacks[0].kept) == [0, 1, 2, 3, 4, 5, 6], "each update once, however many batches it takes"
    return module.state_dict(), torch.rand(3).tolist()


def test_measuring_changes_nothing_in_training(tmp_path):
    weights, *rest = final_weights(tmp_path, watched=True)
    expected, *kept = final_weights(tmp_path, watched=False)
    assert rest == kept
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_config_of_the_network_goes_before_the_hyperparameters(tmp_path):
    module = module_of(n_head=4)
    module.model.config = gpt.config_json(TINY)
    callback = SpectrumCallback()
    trainer_of(tmp_path, [callback], max_steps=1).fit(module, loader())
    assert len(callback.last.readings) == 4, "two layers of two heads"
    callback = SpectrumCallback(config={"n_head": 4})
    trainer_of(tmp_path, [callback], max_steps=1).fit(module, loader())
    assert len(callback.last.readings) == 8


def test_what_is_wrong_is_said_before_training(tmp_path):
    with pytest.raises(UsageError, match="stop_on"):
        SpectrumCallback(stop_on="collapse")
    module = module_of()
    module.model = torch.nn.Sequential(torch.nn.Embedding(64, 8), torch.nn.Linear(8, 64))
    with pytest.raises(LayoutError):
        trainer_of(tmp_path, [SpectrumCallback()]).fit(module, loader())


def test_the_example_of_the_docstring(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def short(callbacks, max_steps):
        return trainer_of(tmp_path, callbacks, max_steps=max_steps // 100)

    names = {"SpectrumCallback": SpectrumCallback, "Trainer": short, "module": module_of(), "loader": loader()}
    assert run_example(SpectrumCallback, names)["callback"].last.step == 10
    assert "step 10: sound" in capsys.readouterr().out
