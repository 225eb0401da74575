"""Plain words are taken as they are; everything else, and every mistake, is Typer's to convert."""

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from qkspec.cli.words import Command, Group

ROOT = Path(__file__).parents[2]


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def command(
    names: Annotated[list[str], typer.Argument()],
    *,
    text: Annotated[str | None, typer.Option("--text")] = None,
    word: Annotated[str, typer.Option("--word")] = "none",
    colour: Annotated[Colour | None, typer.Option("--colour")] = None,
    size: Annotated[int | None, typer.Option("--size", min=2)] = None,
    bound: Annotated[int, typer.Option("--bound", max=9)] = 5,
    sizes: Annotated[list[int] | None, typer.Option("-s")] = None,
    share: Annotated[float | None, typer.Option("--share")] = None,
    path: Annotated[Path | None, typer.Option("--path")] = None,
    flag: Annotated[bool, typer.Option("--flag")] = False,
    perhaps: Annotated[bool | None, typer.Option("--perhaps")] = None,
):
    print(repr((names, text, word, colour, size, bound, sizes, share, path, flag, perhaps)))


def outcome(*arguments, ours):
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback(**({"cls": Group} if ours else {}))(lambda: None)
    app.command("run", **({"cls": Command} if ours else {}))(command)
    done = CliRunner().invoke(app, ["run", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "arguments",
    [
        "a", "a b c", "", "a --text x --word y", "a --text", "a --colour blue", "a --colour green", "a --colour BLUE",
        "a --size 3", "a --size 2", "a --size 1", "a --size 0", "a --size -4", "a --size 3.5", "a --size ٣",
        "a --size 007",
        "a --size 99999999999999999999", "a --size +3", "a --size 1_0", "a --bound 9", "a --bound 10", "a -s 1 -s 20",
        "a -s 1 -s x", "a -s -3", "a --share 0.5", "a --share x", "a --path p", "a --flag --perhaps", "a --no-perhaps",
        "--help", "a --bogus",
    ],
)  # fmt: skip
def test_as_typer_alone(arguments):
    assert outcome(*arguments.split(), ours=True) == outcome(*arguments.split(), ours=False)


@pytest.mark.parametrize("arguments", ["analyze {} --format json --no-cache --workers 1 -s 2", "gate {} -q"])
def test_plain_words_need_no_validator(arguments, sample):
    code = "import sys; from qkspec.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.format(sample).split()],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert not {"pydantic", "typer._adapters"} & set(done.stderr.split())
