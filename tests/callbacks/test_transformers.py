import pytest

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from callbacks.loops import collapse, run_example, same  # noqa: E402
from transformers import GPT2Config, LlamaConfig, Trainer, TrainerCallback, TrainingArguments, set_seed  # noqa: E402

from qkspec import analyze  # noqa: E402
from qkspec.callbacks.transformers import SpectrumCallback  # noqa: E402
from qkspec.errors import UsageError  # noqa: E402
from qkspec.optim import AdamW2  # noqa: E402

GPT2 = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    vocab_size=64,
    max_position_embeddings=16,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


class Tokens(torch.utils.data.Dataset):
    """Random sequences, the same ones every time."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(64, (16,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


class Plant(TrainerCallback):
    """Collapses every head at the end of a step, before later callbacks see it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            collapse(kwargs["model"])


class Collect(TrainerCallback):
    """What a logging integration is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def trainer_of(folder, config=GPT2, callbacks=(), optimizer=None, **options):
    set_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        },
    )
    chosen = (optimizer(model.named_parameters(), 1e-2) if optimizer else None, None)
    return Trainer(model=model, args=arguments, train_dataset=Tokens(), callbacks=list(callbacks), optimizers=chosen)


class Keep(SpectrumCallback):
    """Keeps every judgement."""

    def _report(self, judgement, control):
        if judgement:
            self.__dict__.setdefault("kept", {})[judgement.step] = judgement
        return super()._report(judgement, control)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_same_as_of_the_checkpoints_that_the_trainer_saves(config, tmp_path):
    trainer = trainer_of(tmp_path, config, save_strategy="steps", save_steps=4)
    callback = Keep(trainer, every=4, early=())
    trainer.add_callback(callback)
    trainer.train()
    assert sorted(callback.kept) == [0, 4, 8]
    report = analyze([tmp_path])
    for step in (4, 8):
        same(callback.kept[step], report, f"checkpoint-{step}")
    assert callback.last is callback.kept[8]


def test_adamw2_takes_the_place_of_the_trainers_optimizer_and_resumes_bit_for_bit(tmp_path):
    whole = trainer_of(tmp_path, optimizer=AdamW2, save_strategy="steps", save_steps=5, gradient_accumulation_steps=2)
    whole.train()
    optimizer = whole.optimizer.optimizer
    assert 0 < optimizer.bound_fraction <= 1
    assert "transformer.h.0.attn.c_attn.weight[q]" in {r.name for r in optimizer.readings()}
    again = trainer_of(tmp_path, optimizer=AdamW2, gradient_accumulation_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    weights = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_numbers_go_where_the_losses_go(tmp_path):
    collect = Collect()
    trainer = trainer_of(tmp_path, callbacks=[collect])
    callback = SpectrumCallback(trainer, every=4, early=(1,))
    trainer.add_callback(callback)
    trainer.train()
    for entries in (collect.logs, [(entry["step"], entry) for entry in trainer.state.log_history]):
        assert [step for step, logs in entries if "qkspec/max_sigma1" in logs] == [0, 1, 4, 8]
        assert [step for step, logs in entries if "loss" in logs] == [2, 4, 6, 8], "no loss is lost"
    last = [logs for _, logs in collect.logs if "qkspec/max_sigma1" in logs][-1]
    assert callback.last.scalars.items() <= last.items()


def test_a_planted_collapse_stops_the_trainer(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[Plant(3)])
    callback = SpectrumCallback(trainer, every=1, stop_on="lost")
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 3
    assert callback.last.state.verdict == "lost"
    assert callback.last.state.turned == 3


def test_without_a_stop_word_the_trainer_goes_on(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[Plant(3)])
    callback = SpectrumCallback(trainer, every=1)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 8


def final_weights(folder, *, watched):
    trainer = trainer_of(folder, gradient_accumulation_steps=2)
    if watched:
        trainer.add_callback(SpectrumCallback(trainer, every=1))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model.state_dict(), losses, torch.rand(3).tolist()


def test_measuring_changes_nothing_in_training(tmp_path):
    weights, *rest = final_weights(tmp_path / "a", watched=True)
    expected, *kept = final_weights(tmp_path / "b", watched=False)
    assert rest == kept
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_resumed_run_is_measured_from_where_it_goes_on(tmp_path):
    trainer_of(tmp_path, save_strategy="steps", save_steps=4).train()
    trainer = trainer_of(tmp_path)
    callback = Keep(trainer, every=100, early=(6,))
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert sorted(callback.kept) == [4, 6]
    same(callback.kept[4], analyze([tmp_path / "checkpoint-4"]))


def test_a_wrong_stop_word_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="stop_on"):
        SpectrumCallback(None, stop_on="collapse")


def test_the_example_of_the_docstring(tmp_path, capsys):
    plain = trainer_of(tmp_path)
    names = {"SpectrumCallback": SpectrumCallback, "Trainer": Trainer, "model": plain.model}
    names |= {"arguments": plain.args, "dataset": Tokens()}
    assert run_example(SpectrumCallback, names)["callback"].last.step == 5
    assert "step 5: sound" in capsys.readouterr().out
