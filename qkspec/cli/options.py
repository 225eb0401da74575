"""Options that several commands share, written once: each by itself, and those of measuring together as Flags."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from qkspec.engine import Engine

_MEASURE, _WORK, _OUTPUT = "What is measured", "How the work is done", "What is printed"


class Device(StrEnum):
    """What ``--device`` takes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Lines(StrEnum):
    """What ``--format`` takes where lines of text are printed."""

    TEXT = "text"
    JSON = "json"


Paths = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoint file or directory, run (a directory of checkpoints), glob, or URL (s3:// gs:// hf:// https://).",
        metavar="PATH",
        show_default=False,
    ),
]
Sizes = Annotated[
    list[int] | None,
    typer.Option("-s", help="The s of SEC(d_q, s); repeatable. Default: 1, 2, 4, 8.", rich_help_panel=_MEASURE),
]
Layers = Annotated[str | None, typer.Option("--layers", help="Only these layers: 0,2,8-11.", rich_help_panel=_MEASURE)]
Heads = Annotated[str | None, typer.Option("--heads", help="Only these heads: 0,2,8-11.", rich_help_panel=_MEASURE)]
NumHeads = Annotated[
    int | None,
    typer.Option(
        "--num-heads",
        help="Heads a layer, for files that do not say (timm, torch.nn).",
        min=1,
        rich_help_panel=_MEASURE,
    ),
]
NumKvHeads = Annotated[
    int | None, typer.Option("--num-kv-heads", help="Key heads a layer, likewise.", min=1, rich_help_panel=_MEASURE)
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", help="Tokens T in an attention row, for files that do not say.", min=2, rich_help_panel=_MEASURE
    ),
]
LayoutFile = Annotated[
    str | None,
    typer.Option(
        "--layout", help="TOML file with a layout of your own (qkspec inspect drafts one).", rich_help_panel=_MEASURE
    ),
]
LimitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", help="Threshold of the verdicts, NAME=VALUE: see qkspec explain limits.", rich_help_panel=_MEASURE
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Processes; 0 (default) chooses by the machine and the work. Beside a GPU there is one.",
        min=0,
        rich_help_panel=_WORK,
    ),
]
OnDevice = Annotated[
    Device | None,
    typer.Option(
        "--device",
        help="Where spectra are computed; auto (default): on a CUDA device with room for a module where there is half a"
        " minute of work for a CPU, else on the CPU.",
        rich_help_panel=_WORK,
    ),
]
OnEngine = Annotated[
    Engine | None,
    typer.Option("--engine", help="local (default), or ray: a Ray cluster (qkspec[ray]).", rich_help_panel=_WORK),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="Running cluster: auto, or ray://HOST:10001. Default: start one.", rich_help_panel=_WORK
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder of earlier results. Default: the platform's cache folder.", rich_help_panel=_WORK
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither use nor keep earlier results.", rich_help_panel=_WORK)
]
Offsets = Annotated[
    str | None,
    typer.Option(
        "--offsets",
        help="Rotary models: measure W_q'R W_k for keys so many tokens before the query, 0,1,16,256.",
        rich_help_panel=_MEASURE,
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="File of what the attention modules were given on real data (qkspec.activations.record).",
        rich_help_panel=_MEASURE,
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Run each checkpoint's model on this file's first 2,048 tokens, or on random ones (--text random), and"
        " judge by its own maps. The whole model must fit into memory in float32, twice while it loads. Needs"
        " qkspec[transformers]; runs of qkspec train need torch alone.",
        rich_help_panel=_MEASURE,
    ),
]
Embeddings = Annotated[
    bool | None,
    typer.Option(
        "--embeddings",
        help="Predict maps of embedded random tokens, too, where the checkpoint has the embeddings.",
        rich_help_panel=_MEASURE,
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", help="Report directory of a healthy run, whose bands the heads are held against."),
]
Margin = Annotated[
    float | None, typer.Option("--margin", help="How far outside --baseline's bands: a factor. Default: 2.")
]
Revisions = Annotated[
    str | None,
    typer.Option(
        "--revisions",
        help="Which revisions of a hub repository or its cache are the run: a pattern such as 'step*'.",
        rich_help_panel=_MEASURE,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.", rich_help_panel=_OUTPUT)]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what was passed over on purpose.", rich_help_panel=_OUTPUT)
]


@dataclass(frozen=True)
class Flags:
    """The measuring options as they were given; None where one was not."""

    sizes: Sizes = None
    layers: Layers = None
    heads: Heads = None
    num_heads: NumHeads = None
    num_kv_heads: NumKvHeads = None
    context: Context = None
    layout: LayoutFile = None
    limits: LimitOptions = None
    offsets: Offsets = None
    embeddings: Embeddings = None
    activations: Activations = None
    text: Text = None
    revisions: Revisions = None
    workers: Workers = None
    device: OnDevice = None
    engine: OnEngine = None
    ray_address: RayAddress = None
    cache: CacheFolder = None
    no_cache: NoCache = False


MODEL = ("layers", "num_heads", "num_kv_heads", "layout")
VERDICT = ("heads", "context", "limits")
ENGINE = ("workers", "engine", "ray_address")
WORK = (*ENGINE, "device", "cache", "no_cache")
MAPS = ("embeddings", "activations", "text")  # of tokens that are not isotropic


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the named options of Flags, in the order of Flags, in place of its parameter ``flags``."""
    hints = get_type_hints(Flags, include_extras=True)
    spliced = {
        name: Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(Flags, name), annotation=hint)
        for name, hint in hints.items()
        if name in names
    }

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            command(flags=Flags(**{name: given.pop(name) for name in spliced}), **given)

        own = {name: parameter for name, parameter in signature(command).parameters.items() if name != "flags"}
        whole = signature(command).replace(parameters=[*own.values(), *spliced.values()])
        run.__signature__ = whole  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in whole.parameters.items()}
        return run

    return decorated
