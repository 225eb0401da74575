"""``qkspec train``: parse, delegate, exit code."""

# ruff: noqa: ARG001, FBT002 - the options are read by name from the context, and typer passes them by name

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qkspec.train.config import TrainConfig
from qkspec.train.models.registry import BY_NAME
from qkspec.train.presets import PRESETS

_D = TrainConfig()
_RUN, _MODEL, _IMAGES, _DATA, _OPT = "Run", "Model", "Image models", "Data", "Optimizer"
_MACHINE, _PROBES, _KEPT, _SAID = "Machine", "What is measured", "Checkpoints", "What is said"


def train(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the run [default: runs/MODEL-OPTIMIZER-sSEED].", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder; other options given change it.", rich_help_panel=_RUN),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=f"Named settings, under the options given: {', '.join(preset.name for preset in PRESETS)}.",
            rich_help_panel=_RUN,
        ),
    ] = "",
    compare: Annotated[
        str,
        typer.Option(
            help="Run several remedies side by side: adamw,adamw+warmup,adamw2,sigma,qknorm or all.",
            rich_help_panel=_RUN,
        ),
    ] = "",
    learning_rates: Annotated[
        str, typer.Option(help="With --compare: peak learning rates, comma-separated.", rich_help_panel=_RUN)
    ] = "",
    model: Annotated[str, typer.Option(help=f"{', '.join(BY_NAME)}.", rich_help_panel=_MODEL)] = _D.model,
    layers: Annotated[int, typer.Option(help="Blocks (GPT, ViT).", rich_help_panel=_MODEL)] = _D.layers,
    heads: Annotated[
        int, typer.Option(help="Attention heads a block; in a Swin of the first stage.", rich_help_panel=_MODEL)
    ] = _D.heads,
    width: Annotated[
        int, typer.Option(help="Model dimensions d; in a Swin of the first stage.", rich_help_panel=_MODEL)
    ] = _D.width,
    context_length: Annotated[
        int, typer.Option("--context", help="Tokens a sequence (GPT).", rich_help_panel=_MODEL)
    ] = _D.context,
    vocab: Annotated[int, typer.Option(help="Token ids (GPT); 256 is bytes.", rich_help_panel=_MODEL)] = _D.vocab,
    tied: Annotated[
        bool, typer.Option(help="Share input and output embedding (GPT).", rich_help_panel=_MODEL)
    ] = _D.tied,
    norm: Annotated[str, typer.Option(help="layer or rms.", rich_help_panel=_MODEL)] = _D.norm,
    norm_position: Annotated[str, typer.Option(help="pre or post.", rich_help_panel=_MODEL)] = _D.norm_position,
    qk_norm: Annotated[bool, typer.Option(help="Normalise queries and keys.", rich_help_panel=_MODEL)] = _D.qk_norm,
    reparam: Annotated[str, typer.Option(help="none or sigma (σReparam).", rich_help_panel=_MODEL)] = _D.reparam,
    init: Annotated[str, typer.Option(help="xavier, or gpt2: N(0, 0.02).", rich_help_panel=_MODEL)] = _D.init,
    image_size: Annotated[
        int, typer.Option(help="Pixels a side of an image.", rich_help_panel=_IMAGES)
    ] = _D.image_size,
    channels: Annotated[int, typer.Option(help="Colour channels: 1 or 3.", rich_help_panel=_IMAGES)] = _D.channels,
    classes: Annotated[int, typer.Option(help="Classes of images.", rich_help_panel=_IMAGES)] = _D.classes,
    patch: Annotated[int, typer.Option(help="Pixels a side of a patch.", rich_help_panel=_IMAGES)] = _D.patch,
    mlp: Annotated[int, typer.Option(help="Inner width of the ViT's MLP; 0: 4 d.", rich_help_panel=_IMAGES)] = _D.mlp,
    stages: Annotated[str, typer.Option(help="Blocks a stage of a Swin.", rich_help_panel=_IMAGES)] = _D.stages,
    window: Annotated[
        int, typer.Option(help="Tokens a side of a Swin's windows.", rich_help_panel=_IMAGES)
    ] = _D.window,
    focused: Annotated[
        int, typer.Option(help="First stages of a Flatten-Swin, with linear attention.", rich_help_panel=_IMAGES)
    ] = _D.focused,
    augment: Annotated[
        str,
        typer.Option(
            help="Of a folder of images: none; crop (random crop and mirror); rand (crop and RandAugment 9, 0.5).",
            rich_help_panel=_IMAGES,
        ),
    ] = _D.augment,
    mixup: Annotated[float, typer.Option(help="Mixup's α, of images; 0: none.", rich_help_panel=_IMAGES)] = _D.mixup,
    cutmix: Annotated[float, typer.Option(help="CutMix's α, of images; 0: none.", rich_help_panel=_IMAGES)] = _D.cutmix,
    erasing: Annotated[
        float, typer.Option(help="Chance that a box of an image becomes noise.", rich_help_panel=_IMAGES)
    ] = _D.erasing,
    drop_path: Annotated[
        float, typer.Option(help="Stochastic depth of the last block (ViT, Swin).", rich_help_panel=_IMAGES)
    ] = _D.drop_path,
    data: Annotated[
        str,
        typer.Option(
            help="stdlib (Python's sources) or digits (scikit-learn's); a text file, a folder of them, a nanoGPT "
            ".bin (uint16); a folder of images, one subfolder a class.",
            rich_help_panel=_DATA,
        ),
    ] = _D.data,
    batch: Annotated[int, typer.Option(help="Sequences or images a micro-batch.", rich_help_panel=_DATA)] = _D.batch,
    accumulate: Annotated[int, typer.Option(help="Micro-batches a step.", rich_help_panel=_DATA)] = _D.accumulate,
    optimizer: Annotated[str, typer.Option(help="adamw2 or adamw.", rich_help_panel=_OPT)] = _D.optimizer,
    steps: Annotated[int, typer.Option(help="Updates.", rich_help_panel=_OPT)] = _D.steps,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=_OPT)] = _D.lr,
    warmup: Annotated[int, typer.Option(help="Steps of linear warmup.", rich_help_panel=_OPT)] = _D.warmup,
    final_lr: Annotated[
        float, typer.Option(help="Cosine ends at this share of lr.", rich_help_panel=_OPT)
    ] = _D.final_lr,
    tau: Annotated[
        float, typer.Option(help="AdamW²: largest σ1(update)/σ1(weight) of a step.", rich_help_panel=_OPT)
    ] = _D.tau,
    beta1: Annotated[float, typer.Option(help="Decay of the first moment.", rich_help_panel=_OPT)] = _D.beta1,
    beta2: Annotated[float, typer.Option(help="Decay of the second moment.", rich_help_panel=_OPT)] = _D.beta2,
    eps: Annotated[float, typer.Option(help="Added to the root of the second moment.", rich_help_panel=_OPT)] = _D.eps,
    weight_decay: Annotated[
        float, typer.Option(help="Decoupled; matrices only.", rich_help_panel=_OPT)
    ] = _D.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0: no clipping.", rich_help_panel=_OPT)] = _D.clip,
    smoothing: Annotated[
        float, typer.Option(help="Label smoothing of the training loss.", rich_help_panel=_OPT)
    ] = _D.smoothing,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_MACHINE)] = _D.device,
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: autocast, weights stay float32.", rich_help_panel=_MACHINE)
    ] = _D.dtype,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="torch.compile the model.", rich_help_panel=_MACHINE)
    ] = _D.compile,
    fsdp: Annotated[
        bool, typer.Option(help="Under torchrun: divide weights, not only batches.", rich_help_panel=_MACHINE)
    ] = _D.fsdp,
    threads: Annotated[
        int, typer.Option(help="CPU threads; 0: one for each core.", rich_help_panel=_MACHINE)
    ] = _D.threads,
    seed: Annotated[
        int, typer.Option(help="Seed of weights, batches and estimates.", rich_help_panel=_MACHINE)
    ] = _D.seed,
    eval_every: Annotated[
        int, typer.Option(help="Steps between validations.", rich_help_panel=_PROBES)
    ] = _D.eval_every,
    eval_batches: Annotated[
        int, typer.Option(help="Validation micro-batches.", rich_help_panel=_PROBES)
    ] = _D.eval_batches,
    probe_every: Annotated[
        int,
        typer.Option(
            help="Steps between probes: entropy, largest logit, the norms of equation 1; 0: never.",
            rich_help_panel=_PROBES,
        ),
    ] = _D.probe_every,
    maps: Annotated[
        str,
        typer.Option(
            help="Draw attention maps of the probe batch into OUT/maps, stills and a GIF: of all heads (all), of "
            "blocks (0,5) or of single heads (5.0,5.3).",
            rich_help_panel=_PROBES,
        ),
    ] = _D.maps,
    maps_every: Annotated[
        int, typer.Option(help="Steps between those; 0: with every checkpoint kept.", rich_help_panel=_PROBES)
    ] = _D.maps_every,
    log: Annotated[
        str, typer.Option(help="Loggers beside metrics.jsonl: tensorboard,wandb,mlflow.", rich_help_panel=_PROBES)
    ] = "",
    save_every: Annotated[
        int, typer.Option(help="Steps between checkpoints, beside the early ones.", rich_help_panel=_KEPT)
    ] = _D.save_every,
    keep: Annotated[
        str,
        typer.Option(
            help="Weights in a checkpoint: all, or attention (q, k, v and their norm).", rich_help_panel=_KEPT
        ),
    ] = _D.keep,
    save_dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16, of the weights in a checkpoint.", rich_help_panel=_KEPT)
    ] = _D.save_dtype,
    ring: Annotated[
        int,
        typer.Option(help="Steps before a loss spike or crash whose weights are kept; 0: none.", rich_help_panel=_KEPT),
    ] = _D.ring,
    full_states: Annotated[
        int, typer.Option(help="Newest checkpoints to resume from; 0: none.", rich_help_panel=_KEPT)
    ] = _D.full_states,
    fail_on_nan: Annotated[
        bool, typer.Option("--fail-on-nan", help="Exit 1 when the loss is no longer finite.", rich_help_panel=_SAID)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_SAID)] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Lines, no bar.", rich_help_panel=_SAID)] = False,
) -> None:
    """Train a model and write a checkpoint sequence that analyze reads.

    Without options: a small GPT on Python's own sources, with AdamW² and no warmup, in a minute or two on a CPU.
    """
    if "WORLD_SIZE" in os.environ:  # read when PyTorch is imported: DDP advises against the order of sums in world.py
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from qkspec.train.session import Request, conduct

    knobs = {_KNOB.get(name, name): value for name, value in context.params.items() if name not in _OURS}
    given = {_KNOB.get(name, name) for name in knobs_given(context)}
    request = Request(
        knobs,
        frozenset(given),
        out,
        resume,
        preset=preset,
        log=log,
        compare=compare,
        rates=learning_rates,
        fail_on_nan=fail_on_nan,
        quiet=quiet,
        live=not no_progress,
    )
    code = conduct(request)
    if code:
        raise typer.Exit(code)


_KNOB = {"context_length": "context", "compile_model": "compile"}
_OURS = ("out", "resume", "preset", "log", "compare", "learning_rates", "fail_on_nan", "quiet", "no_progress")


def knobs_given(context: typer.Context) -> list[str]:
    """Return the names of the training knobs that the command line or the environment set."""
    names: dict[str, Any] = context.params
    return [n for n in names if n not in _OURS and _source(context, n) != "DEFAULT"]


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name
