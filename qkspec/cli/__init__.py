"""The command line: parse, delegate, exit code. One module a command; heavy imports wait inside each."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from types import FrameType
from typing import Annotated

import typer

from qkspec.clean import clean
from qkspec.cli.words import Command, Group, Interrupted
from qkspec.engine import one_blas_thread, seldom_collect
from qkspec.errors import QkspecError

WHAT = "Spectra of W_q'W_k of Transformer checkpoints: diagnosis, a CI gate, and training without warmup (AdamW²)."
COMMANDS = {
    "analyze": "Measure and judge every head of checkpoints.",
    "gate": "Exit 1 when a threshold is crossed, for CI.",
    "compare": "Lay two runs side by side: where they part.",
    "watch": "Follow a run that is still being written.",
    "audit": "Hold changes between checkpoints to Rule 1.",
    "inspect": "Say what is in a checkpoint, by its headers.",
    "plot": "Draw the figures of a saved report.",
    "train": "Train a model, with checkpoints to analyze.",
    "simulate": "Simulate the paper's three modes of attention.",
    "explain": "Say what a metric, verdict or option means.",
}

# Typer carries its own Click and exports one of its usage errors: the base of that class is every error of the parser.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _options(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        from qkspec import __version__

        typer.echo(f"qkspec {__version__}")
        raise typer.Exit
    if debug:
        os.environ["QKSPEC_DEBUG"] = "1"


def application(argv: Sequence[str] = ()) -> typer.Typer:
    """Return the program with the one command that ``argv`` names, with all of them where it names none.

    Each command is a function of its own name in a module of its own name.
    """
    app = typer.Typer(
        name="qkspec",
        help=WHAT,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(cls=Group, invoke_without_command=True)(_options)
    first = next((word for word in argv if not word.startswith("-")), "")
    for name in (first,) if first in COMMANDS else COMMANDS:
        how = {"ignore_unknown_options": name == "explain"}  # "qkspec explain --tau" asks for the word
        made = app.command(name, cls=Command, short_help=COMMANDS[name], context_settings=how)
        made(getattr(import_module(f"qkspec.cli.{name}"), name))
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code of cli.md; the only place where an error is printed."""
    one_blas_thread()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without a letter shows its code, and no crash
    if argv is not None:
        return _handled(argv)
    seldom_collect()
    try:
        return _handled(sys.argv[1:])
    finally:
        gc.freeze()  # the process ends: its last collections need not look at all that is alive, a tenth of a start


def _handled(argv: Sequence[str]) -> int:
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(argv, debug="--debug" in argv)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(argv: Sequence[str], *, debug: bool) -> int:  # noqa: PLR0911 - one return an outcome
    try:
        code = application(argv)(args=list(argv) or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except QkspecError as error:
        return _fail(error, error.exit_code, debug=debug)
    except _ParserError as error:
        return _fail(f"{error.format_message()} (see qkspec --help)", 2, debug=debug)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, Interrupted, typer.Abort):
        _say("interrupted")
        return 130
    except _Terminated:
        _say("terminated")
        return 143
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The reader of stdout went away, which the parser turns into exit code 1; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}", 4, debug=debug)
    except MemoryError as error:
        return _fail("out of memory: use fewer workers, or a machine with more", 4, debug=debug and bool(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug becomes one line and exit code 4
        return _fail(f"internal error, please report: {type(error).__name__}: {error}", 4, debug=debug)
    return code if isinstance(code, int) else 0


def _fail(message: object, code: int, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    _say(f"error: {clean(message, limit=1000)}")
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 - the one place that speaks


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
    raise _Terminated
