"""README tells the truth: its commands run, its links lead somewhere, every command and option is documented."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from qkspec.cli import COMMANDS, application

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that need what a test machine may lack (a bucket, the hub, a cluster), install, or run for minutes.
NOT_HERE = ("pip install", "s3://", "gs://", "hf://", "https://", "ray", "watch", "torchrun", "-m pytest", "bakeoff")


def commands():
    """Every qkspec command line in README's sh blocks."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.split("  #")[0].strip()
            if text.startswith("qkspec ") and not any(mark in text for mark in NOT_HERE):
                yield text


def prepared(arguments):
    """Shorten a training run; everything else runs as it is written."""
    return [*arguments, "--steps", "3", "--eval-every", "3", "--no-progress"] if arguments[0] == "train" else arguments


@pytest.mark.timeout(600)
def test_commands_run_in_their_order(tmp_path):
    """One test, since what a command writes the next ones read: spread over processes they would miss each other."""
    shutil.copytree(ROOT / "sample_ckpts", tmp_path / "sample_ckpts")
    wrong = {}
    for line in dict.fromkeys(commands()):
        expected = {int(code) for code in re.findall(rf"{re.escape(line)}\s+# exits (\d)", README)} or {0}
        done = subprocess.run(
            [sys.executable, "-m", "qkspec", *prepared(shlex.split(line)[1:])],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            check=False,
        )
        if done.returncode not in expected:
            wrong[line] = done.returncode, done.stderr
    assert not wrong


def test_there_are_commands_to_run():
    assert len(list(commands())) >= 8


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"`qkspec {name}" in README or f"qkspec {name} " in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name):
    command = typer.main.get_command(application()).commands[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name}"


def test_relative_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_test_command_stands_alone():
    """.ci/run cuts README's test command out by its mark."""
    assert len(re.findall(r"<!-- tests -->\n```sh\n.+?\n```", README, re.DOTALL)) == 1
