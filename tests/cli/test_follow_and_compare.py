"""watch, compare, audit, simulate, explain and the files of gate, as a user runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkspec.cli import COMMANDS, application, main
from qkspec.cli.explain import terms

ROOT = Path(__file__).parents[2]
LOST, SOUND = str(ROOT / "sample_ckpts" / "adamw-no-warmup"), str(ROOT / "sample_ckpts" / "adamw2")


def say(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


@pytest.fixture
def short(tmp_path):
    """A run of five checkpoints: sound, sound, warned, warned, lost."""
    for step in ("000000", "000020", "000040", "000060", "000200"):
        shutil.copytree(Path(LOST) / f"step-{step}", tmp_path / "run" / f"step-{step}")
    return tmp_path / "run"


def test_watch_ends_at_the_verdict_that_it_waits_for(short, capsys):
    out = say(capsys, "watch", short, "--every", "0.1", "--until-verdict", "warned").splitlines()
    assert len(out) == 3
    assert "step 40" in out[2]
    assert "warned" in out[2]
    assert "turned malignant: transformer.h.0.attn head 0" in out[2]


def test_watch_tells_what_it_held_back_before_it_ends(short, capsys):
    config = short / "step-000020" / "config.json"
    config.write_text(config.read_text().replace('"n_head": 2', '"n_head": 7'))
    out = say(capsys, "watch", short, "--every", "0.1", "--until-verdict", "warned").splitlines()
    assert ["cannot be measured" in line for line in out] == [False, False, True]
    assert "step 20" in out[2]


def test_watch_ends_when_nothing_comes_any_more(short, capsys):
    out = say(capsys, "watch", short, "--every", "0.1", "--until-idle", "0.3", "--format", "json").splitlines()
    moments = [json.loads(line) for line in out]
    assert [m["step"] for m in moments] == [0, 20, 40, 60, 200]
    assert moments[-1]["verdict"] == "lost"
    assert moments[-1]["counts"]["malignant"] == 8
    assert {"module", "head", "before", "after"} == set(moments[-1]["turns"][0])


def test_a_report_kept_inside_its_run_is_no_checkpoint(short, capsys):
    report = short / "report"
    say(capsys, "analyze", short, "-o", report, "-q")
    say(capsys, "gate", short, "--max-freezing", "1e9", "-q")
    say(capsys, "audit", short, "-q")
    out = say(capsys, "watch", short, "--every", "0.1", "--until-idle", "0.2")
    assert len(out.splitlines()) == 5
    for command in (["inspect"], ["audit"], ["watch", "--until-idle", "1"]):
        assert main([command[0], str(report), *command[1:]]) == 2
        assert "a saved report, not a checkpoint; analyze, gate, compare and plot take one" in capsys.readouterr().err


def test_an_alert_is_run_without_a_shell_and_told_the_facts(short, tmp_path, capsys):
    script = tmp_path / "alert.py"
    script.write_text(
        "import json, os, sys\n"
        "facts = {k: v for k, v in os.environ.items() if k.startswith('QKSPEC_')}\n"
        f"open({str(tmp_path / 'told')!r}, 'a').write(json.dumps([sys.argv[1:], facts]) + '\\n')\n"
    )
    command = f"{sys.executable} {script} '$(touch {tmp_path / 'shell'})' ;"
    say(capsys, "watch", short, "--every", "0.1", "--until-verdict", "lost", "--on-alert", command)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [facts["QKSPEC_STEP"] for _, facts in told] == ["40", "60", "200"]
    assert told[0][0] == [f"$(touch {tmp_path / 'shell'})", ";"]
    assert not (tmp_path / "shell").exists()
    assert told[0][1]["QKSPEC_VERDICT"] == "warned"
    assert json.loads(told[0][1]["QKSPEC_COUNTS"])["malignant"] == 1


def test_an_alert_that_fails_is_a_warning(short, capsys):
    for command, said in (("no-such-command-here", "could not be started"), ("false", "status 1")):
        assert main(["watch", str(short), "--every", "0.1", "--until-verdict", "warned", "--on-alert", command]) == 0
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--until-verdict", "awful"], ["--on-alert", ""], ["--on-alert", "'"], ["--every", "0"], ["--limit", "x=1"]],
)
def test_watch_refuses_what_makes_no_sense(wrong, short, capsys):
    assert main(["watch", str(short), *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watch_ends_when_told(short, sent, code):
    command = [sys.executable, "-m", "qkspec", "watch", str(short), "--every", "0.2", "--until-idle", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "step 0" in process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(sent)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.splitlines()[-1] == {130: "interrupted", 143: "terminated"}[code]
    assert "Traceback" not in err


def test_compare_as_text_and_as_json(capsys):
    text = say(capsys, "compare", LOST, SOUND, "-q")
    assert "median sigma1 parts for good at step 2" in text
    assert "8 malignant in A and healthy in B" in text
    assert "the loss of adamw-no-warmup parted from the other's at step" in text
    found = json.loads(say(capsys, "compare", LOST, SOUND, "-q", "--format", "json"))
    assert found["parted"] == {"step": 2, "metric": "sigma1"}
    assert found["verdicts"] == [{"a": "malignant", "b": "healthy", "heads": 8}]
    assert len(found["tracks"][0]["a"]) == len(found["steps"]) == 13


def test_compare_says_what_a_narrow_terminal_hides(capsys, monkeypatch):
    hidden = "(wider terminals show eff. rank, entropy)"
    for width, told in ((60, True), (100, False)):
        monkeypatch.setattr("qkspec.cli.compare.columns", lambda width=width: width)
        assert (hidden in say(capsys, "compare", LOST, SOUND, "-q").splitlines()) == told


def test_compare_takes_a_saved_report_and_refuses_several_runs(tmp_path, capsys):
    say(capsys, "analyze", SOUND, "-o", tmp_path / "saved", "-q")
    assert "parts for good" in say(capsys, "compare", LOST, tmp_path / "saved", "-q")
    assert main(["compare", str(ROOT / "sample_ckpts"), SOUND, "-q"]) == 2
    assert "2 runs" in capsys.readouterr().err


def test_audit_as_text_and_as_json(capsys):
    text = say(capsys, "audit", LOST, "--tau", "0.004")
    assert "AdamW2 at tau 0.004 would have cut" in text
    assert "no change proves a step" in say(capsys, "audit", SOUND, "--tau", "0.004", "--layers", "0")
    found = json.loads(say(capsys, "audit", LOST, "--format", "json", "--terms", "all"))
    assert found["increments"][0]["bound"] is True
    assert {"module", "W_q", "W_k", "W_v", "W_q'W_k", "gamma_1", "beta_1"} <= set(found["terms"][0]["blocks"][0])
    free = json.loads(say(capsys, "audit", LOST, "--tau", "inf", "--format", "json"))
    assert (free["tau"], free["increments"][0]["limit"], free["increments"][0]["bound"]) == (None, None, False)
    assert main(["audit", str(ROOT / "sample_ckpts")]) == 2
    assert main(["audit", str(Path(LOST) / "step-000000")]) == 3
    assert main(["audit", LOST, "--tau", "0"]) == 2


def test_simulate_prints_draws_and_refuses(tmp_path, capsys):
    text = say(capsys, "simulate", "--d", "96", "--d-q", "16", "--tokens", "40", "-o", tmp_path / "modes.png")
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("verdict")] == [
        ["healthy", "malignant", "benign"]
    ]
    assert (tmp_path / "modes.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(say(capsys, "simulate", "--as-printed", "--format", "json"))
    assert [mode["verdict"] for mode in found["modes"]] == ["sharp", "malignant", "benign"]
    for wrong in (["--kappa", "nan"], ["--as-printed", "--kappa", "1"], ["--d-q", "9", "--d", "8"], ["-o", "x.bmp"]):
        assert main(["simulate", *wrong]) == 2
    assert main(["simulate", "-o", str(tmp_path / "none" / "x.png")]) == 4


def test_every_term_is_explained_in_a_sentence(capsys):
    for name, text in terms().items():
        assert len(text) >= 10, name
        assert say(capsys, "explain", name).startswith(f"{name}: ")
    listed = say(capsys, "explain")
    assert all(name in listed for name in terms())


def test_what_a_report_and_a_policy_hold_can_be_looked_up():
    from dataclasses import fields

    from qkspec.metrics import names
    from qkspec.policy import Policy
    from qkspec.theorem import KINDS, Limits, Verdict

    known = terms()
    wanted = {*names((1, 2, 4, 8), kinds=KINDS), *(v.value.replace(" ", "_") for v in Verdict)}
    wanted |= {f"limit_{f.name}" for f in fields(Limits)} | {f.name for f in fields(Policy)}
    assert wanted <= set(known)
    assert all(known[f"limit_{f.name}"].split(": ", 1)[1] for f in fields(Limits))


def test_terms_are_found_as_people_write_them(capsys):
    for spelling in ("kappa", "Not Applicable", "max-sec", "policy", "SEC", "--tau", "learning rate"):
        assert say(capsys, "explain", spelling)


def test_every_knob_of_train_is_explained_in_the_words_of_its_help(capsys):
    from dataclasses import fields

    from typer.main import get_command

    from qkspec.train.config import TrainConfig

    params = {p.name: p for p in get_command(application(["train"])).commands["train"].params}
    for field in fields(TrainConfig):
        param = params.get(field.name) or params[{"context": "context_length", "compile": "compile_model"}[field.name]]
        text = say(capsys, "explain", field.name)
        assert " ".join(str(param.help).split()) in " ".join(text.split()), field.name
        assert "option of" in text
    assert "[default: 0.01]" in say(capsys, "explain", "tau")
    assert say(capsys, "explain", "layers").count("\n  option of") == 1, "those of train mean something else"


def test_a_misspelled_term_is_told_its_neighbours(capsys):
    for word, near in (("warmpu", "warmup"), ("kapa", "freezing_ratio"), ("maligant", "malignant")):
        assert main(["explain", word]) == 2
        assert near in capsys.readouterr().err


def test_gate_writes_its_files_and_reads_a_policy(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    policy = tmp_path / "policy.toml"
    policy.write_text('fail_on = "malignant"\n[[layer]]\nlayers = "1-3"\nfail_on = []\n')
    files = {name: tmp_path / name for name in ("junit.xml", "found.sarif", "found.md")}
    written = ("--junit", files["junit.xml"], "--sarif", files["found.sarif"], "--markdown", files["found.md"])
    out = say(capsys, "gate", LOST, "--last", "--policy", policy, *written, "-q", code=1)
    assert out.count("FAIL") == 2, "the two heads of layer 0"
    assert "::error" not in out
    assert files["junit.xml"].read_text().count("<failure") == 2
    assert len(json.loads(files["found.sarif"].read_text())["runs"][0]["results"]) == 2
    assert "failed" in files["found.md"].read_text()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::error" in say(capsys, "gate", LOST, "--last", "--policy", policy, "-q", code=1)
    assert main(["gate", SOUND, "--policy", str(tmp_path / "none.toml")]) == 2


def test_gate_and_analyze_against_a_baseline(tmp_path, capsys):
    say(capsys, "analyze", SOUND, "-o", tmp_path / "base", "-q")
    assert "passed" in say(capsys, "gate", SOUND, "--baseline", tmp_path / "base", "-q")
    assert "--baseline sigma1" in say(capsys, "gate", LOST, "--baseline", tmp_path / "base", "-q", code=1)
    text = say(capsys, "analyze", LOST, "--baseline", tmp_path / "base", "-q")
    assert "8 of 8 heads outside the bands" in " ".join(text.split())
    assert main(["gate", LOST, "--baseline", str(tmp_path / "none"), "-q"]) == 3


def test_a_lost_run_is_no_baseline_and_a_warned_one_is_told(short, tmp_path, capsys):
    say(capsys, "analyze", short, "-o", tmp_path / "lost", "-q")
    for command in (["gate", SOUND], ["analyze", SOUND], ["plot", str(tmp_path / "lost")]):
        assert main([*command, "--baseline", str(tmp_path / "lost")]) == 2
        assert "is lost; give the report of a healthy run" in capsys.readouterr().err
    shutil.rmtree(short / "step-000200")
    say(capsys, "analyze", short, "-o", tmp_path / "warned", "-q")
    for more, told in (((), True), (("-q",), False)):
        main(["gate", str(short), "--baseline", str(tmp_path / "warned"), *more])
        assert ("is warned" in capsys.readouterr().err) == told


def test_a_baseline_alone_still_forbids_malignant_heads(tmp_path, capsys):
    say(capsys, "analyze", SOUND, "-o", tmp_path / "base", "-q")
    out = say(capsys, "gate", LOST, "--baseline", tmp_path / "base", "--margin", "1e9", "-q", code=1)
    assert "--fail-on broken, --fail-on malignant" in out
    assert "verdict malignant" in out


def test_a_gate_says_what_it_held_and_why_it_held_nothing(tmp_path, monkeypatch, capsys):
    assert "held to --max-sec 1 -s 16" in say(capsys, "gate", SOUND, "--max-sec", "1", "-s", "16", "-q", "--last")
    assert "gate passed: 8 head readings held to --max-share 0.5" in say(
        capsys, "gate", SOUND, "--max-share", "0.5", "-q"
    )
    policy = tmp_path / "policy.toml"
    policy.write_text("[[layer]]\nlayers = 99\nmax_sec = 0.5\n")
    out = say(capsys, "gate", SOUND, "--policy", policy, "-q", code=3)
    assert "no head was held to the policy, and nothing checked is no pass" in out
    assert "1 override for layers" in out
    policy.write_text("max_sec = true")
    assert main(["gate", SOUND, "--policy", str(policy), "-q"]) == 2
    assert str(policy) in capsys.readouterr().err


def test_json_of_a_gate_whose_baseline_lacks_a_layer_is_whole(tmp_path, capsys):
    say(capsys, "analyze", SOUND, "--layers", "0", "-o", tmp_path / "base", "-q")
    out = say(capsys, "gate", SOUND, "--baseline", tmp_path / "base", "--format", "json", "-q", code=3)
    assert {found["limit"] for found in json.loads(out)["unmeasured"]} == {None}
    assert "--baseline sigma1: the baseline has no band for it" in say(
        capsys, "gate", SOUND, "--baseline", tmp_path / "base", "-q", code=3
    )


@pytest.mark.parametrize("state", ["lost", "warned", "sound"])
def test_the_states_of_a_run_are_explained(state, capsys):
    assert say(capsys, "explain", state) == say(capsys, "explain", "run-verdict")


def test_what_explain_says_of_a_limit_the_option_takes(capsys):
    assert "Limits(sec=None) leaves it out" in " ".join(say(capsys, "explain", "limit_sec").split())


def test_analyze_says_what_its_table_has_no_place_for(capsys):
    text = " ".join(say(capsys, "analyze", LOST, "-q", "--offsets", "0,4").split())
    assert "8 of 8 heads surged" in text
    assert "no rotary position here" in text


@pytest.mark.parametrize("command", [["analyze", LOST, "-q"], ["explain", "kappa"], ["explain"], ["simulate"]])
def test_a_terminal_of_ascii_is_enough(command):
    done = subprocess.run(
        [sys.executable, "-m", "qkspec", *command],
        capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_nothing_at_all_is_a_call_for_help(capsys):
    text = say(capsys)
    assert text.startswith("Usage: ")
    assert all(f"  {name} " in text and words in text for name, words in COMMANDS.items())


def test_no_command_needs_torch_to_be_looked_up():
    code = "import sys; from qkspec.cli import main; main(['explain', 'surging']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert {"compare", "watch", "audit", "simulate", "explain"} <= set(COMMANDS)
