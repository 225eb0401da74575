"""What strangers and slips hand to the command line: one line, the right exit code, and the good beside it unharmed."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkspec import measuring
from qkspec.cli import main

CONFIG = {"model_type": "gpt2", "n_head": 2, "n_positions": 16}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (0, 10, 20):
        save(tmp_path / "run" / f"step-{step:06d}", seed=step)
    return tmp_path / "run"


def save(folder, *, seed=0, config=CONFIG, width=16):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    save_file(
        {f"h.{i}.attn.c_attn.weight": rng.standard_normal((width, 3 * width)).astype("f4") for i in range(2)}
        | {f"h.{i}.ln_1.weight": np.ones(width, "f4") for i in range(2)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def called(capsys, *argv):
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_one_hostile_config_hides_no_good_checkpoint(run, capsys):
    save(run / "step-000010", config='{"model_type": "gpt2", "n_head": 1e999}')
    code, out, err = called(capsys, "analyze", run, "--no-cache", "--format", "json")
    assert code == 0
    assert [source["name"] for source in json.loads(out)["sources"]] == ["step-000000", "step-000020"]
    assert "step-000010 skipped" in err
    assert "n_head is inf" in err
    assert called(capsys, "gate", run, "--no-cache", "--fail-on", "broken")[0] == 3


@pytest.mark.parametrize("where", ["plan_for", "_part", "gather"])
def test_a_bug_that_one_checkpoint_provokes_costs_that_one(run, capsys, monkeypatch, where):
    name = f"qkspec.streaming.{where}" if where == "gather" else f"qkspec.measuring.{where}"
    whole = getattr(measuring, where)

    def buggy(checkpoint, *rest, **options):
        if checkpoint.step == 10:
            raise ZeroDivisionError("division by zero")
        return whole(checkpoint, *rest, **options)

    monkeypatch.setattr(name, buggy)
    if where == "plan_for":
        monkeypatch.setattr("qkspec.streaming.plan_for", buggy)
    code, _, err = called(capsys, "analyze", run, "--no-cache", "--workers", "1")
    assert code == 0
    assert "step-000010 skipped: internal error, please report (--debug shows where): ZeroDivisionError" in err
    assert called(capsys, "gate", run, "--no-cache", "--workers", "1", "--fail-on", "broken")[0] == 3


def test_a_saved_report_is_held_to_the_limits_and_filters_that_are_given(run, capsys):
    live = ("analyze", run, "--no-cache", "--format", "json", "--limit", "freezing=0.0001")
    assert called(capsys, "analyze", run, "--no-cache", "-o", "saved")[0] == 0
    verdicts = [json.loads(called(capsys, *argv)[1])["runs"] for argv in (live, ("analyze", "saved", *live[3:]))]
    assert verdicts[0] == verdicts[1]
    assert (
        called(capsys, "gate", "saved", "--fail-on", "large", "--fail-on", "sharp", "--limit", "freezing=0.0001")[0]
        == 1
    )
    _, out, _ = called(capsys, "analyze", "saved", "--layers", "1", "--heads", "0", "--format", "csv")
    assert {tuple(line.split(",")[i] for i in (4, 6)) for line in out.splitlines()[1:]} == {("1", "0")}
    code, _, err = called(capsys, "analyze", "saved", "--layers", "7")
    assert (code, "holds no head" in err) == (3, True)
    code, _, err = called(capsys, "gate", "saved", "--context", "99", "--max-sec", "1")
    assert (code, "--context needs a new measurement" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("analyze", "run", "--margin", "3"), "give one"),
        (("analyze", "run", "--layers", "²"), "is not a list of numbers"),
        (("analyze", "run", "--heads", "3-1"), "not a range"),
        (("watch", "run", "--every", "inf"), "--every"),
        (("gate", "run", "--max-sigma1", "1e301"), "give a number"),
        (("gate", "run", "--margin", "3"), "give one"),
        (("gate", "run", "--sarif", "found", "--junit", "./found"), "a file of their own"),
    ],
)
def test_a_slip_is_told_before_the_work(run, capsys, argv, said):
    code, _, err = called(capsys, *argv)
    assert (code, said in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("qkspec.toml", "num_heads = 0", 2),
        ("qkspec.toml", f"[limits]\nfreezing = 1{'0' * 400}", 2),
        ("qkspec.toml", "[[gate.layer]]\nlayers = []\nmax_sec = 1", 2),
        ("pyproject.toml", "[tool]\nqkspec = 3", 2),
        ("pyproject.toml", "tool = 1", 0),
    ],
)
def test_settings_that_are_none_are_named(run, capsys, name, text, code):
    (run.parent / name).write_text(text)
    found, _, err = called(capsys, "gate", "run", "--no-cache", "--fail-on", "broken")
    assert found == code
    assert (name in err or "freezing" in err) == bool(code)


def test_an_audit_follows_any_steps_and_names_what_it_cannot(run, capsys):
    save(run / "step-900000", seed=1)
    code, out, _ = called(capsys, "audit", run, "--tau", "0.01")
    assert code == 0
    assert " inf " in out
    code, _, err = called(capsys, "audit", run, "--layers", "99")
    assert (code, "no two checkpoints have an attention module in common" in err) == (3, True)
    save(run / "step-000010", width=32)
    code, _, err = called(capsys, "audit", run)
    assert "has other shapes than at step 0" in err


def test_a_loss_that_no_float_holds_is_passed_over(run, capsys):
    rows = [f'{{"step": {step}, "loss": 1{"0" * digits}}}\n' for step, digits in ((0, 1), (10, 400), (20, 1))]
    (run / "metrics.jsonl").write_text("".join(rows))
    assert called(capsys, "analyze", run, "--no-cache")[0] == 0


def test_half_of_torchruns_environment_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    code, _, err = called(capsys, "train", "--steps", "1", "--out", tmp_path / "run")
    assert (code, "start the processes with torchrun" in err) == (2, True)
