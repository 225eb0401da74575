import pytest

from qkspec.cli import main
from qkspec.train.config import TrainConfig


def sections(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    assert main([command, "--help"]) == 0
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line[:-1]] = []
        elif line.startswith("  -") and found:
            found[list(found)[-1]] += [w.rstrip(",") for w in line.split() if w.startswith("--")][:1]
    return found


def test_options_of_train_stand_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    found = sections("train", capsys)
    assert list(found)[:3] == ["Run", "Model", "Image models"]
    assert list(found)[-1] == "Options"
    assert "--tau" in found["Optimizer"]
    assert "--maps" in found["What is measured"]
    every = [option for options in found.values() for option in options]
    assert len(every) == len(set(every))
    assert {f"--{name.replace('_', '-')}" for name in TrainConfig().as_dict()} <= set(every)


def test_a_command_without_headings_keeps_the_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert sections("explain", capsys) == {"Arguments": [], "Options": ["--help"]}
