"""Every knob of a training run, on one line with its unit."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from qkspec.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. The defaults are the demonstration: a GPT that AdamW without warmup loses and AdamW² trains.

    ``UsageError`` is raised for a value outside its range, naming the option and the range.
    """

    # model
    model: str = "gpt"  # a name of MODELS
    layers: int = 4  # blocks
    heads: int = 2  # attention heads a block; d_q = width / heads
    width: int = 128  # d, model dimensions
    context: int = 64  # tokens a sequence (GPT)
    vocab: int = 256  # token ids (GPT); 256 is bytes
    mlp: int = 0  # inner width of the MLP (ViT); 0 is 4 width
    image_size: int = 8  # pixels a side (ViT)
    patch: int = 2  # pixels a side of a patch (ViT, Swin); divides image_size
    stages: str = "2,2"  # blocks in each stage (Swin); width and heads double from one to the next
    window: int = 2  # tokens a side of an attention window (Swin)
    focused: int = 2  # stages, from the first, with focused linear attention (Flatten-Swin)
    channels: int = 1  # of an image: 1 or 3
    classes: int = 10  # of images
    norm: str = "layer"  # layer | rms
    norm_position: str = "pre"  # pre | post: the norm before the sublayer, or after the residual sum
    qk_norm: bool = False  # normalise queries and keys per head (RMS, learned gain)
    reparam: str = "none"  # none | sigma: γ/σ1(W) W in every linear layer (σReparam)
    init: str = "xavier"  # xavier | gpt2: uniform by fan in and out, or N(0, 0.02) with scaled output projections
    tied: bool = False  # share the token embedding with the output layer (GPT)
    # data
    data: str = "auto"  # stdlib (GPT) or digits (ViT) | text file or folder, nanoGPT .bin | folder of images
    batch: int = 16  # sequences (or images) a micro-batch
    accumulate: int = 1  # micro-batches a step
    augment: str = "none"  # none | crop | rand, of a folder of images: random crop and mirror; and RandAugment (9, 0.5)
    mixup: float = 0.0  # α of Mixup's Beta(α, α), of images; 0 is none
    cutmix: float = 0.0  # α of CutMix's; with both, one of the two is drawn for each micro-batch
    erasing: float = 0.0  # chance that a box of an image becomes noise
    smoothing: float = 0.0  # label smoothing of the training loss
    drop_path: float = 0.0  # chance that the last block skips a sublayer (ViT, Swin); it grows linearly with depth
    # optimizer
    optimizer: str = "adamw2"  # adamw | adamw2
    steps: int = 600  # updates
    lr: float = 0.01  # peak learning rate
    warmup: int = 0  # steps of linear warmup from 0
    final_lr: float = 0.1  # cosine decay ends at this fraction of lr
    beta1: float = 0.9  # decay of the first moment, per step
    beta2: float = 0.95  # decay of the second moment, per step
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # decoupled, times lr; matrices only
    tau: float = 0.01  # AdamW²: the largest σ1(update)/σ1(weight) of one step
    clip: float = 0.0  # largest global gradient norm; 0 is no clipping
    # machine
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "float32"  # float32 | bfloat16: autocast of the forward and backward pass; weights stay float32
    compile: bool = False  # torch.compile the model
    fsdp: bool = False  # divide weights, gradients and optimizer state among torchrun's processes (FSDP2)
    threads: int = 0  # CPU threads; 0 is one for each core; the last bits of a run depend on it
    seed: int = 0  # of weights, batches and σ1 estimates
    # what is written
    eval_every: int = 100  # steps between validation losses; the first and last step always have one
    eval_batches: int = 16  # validation micro-batches
    probe_every: int = 0  # steps between probes (entropy, largest logit, the norms of eq. 1); 0 is never
    maps: str = ""  # blocks (0,5), heads of blocks (5.0,5.3) or all: whose attention maps are drawn; empty: none
    maps_every: int = 0  # steps between those pictures; 0 is wherever the weights are kept
    save_every: int = 100  # steps between checkpoints, beside the early ones
    keep: str = "all"  # all | attention: which weights a checkpoint holds (attention: q, k, v and the norm before them)
    save_dtype: str = "float32"  # float32 | bfloat16: of the weights in a checkpoint; the resume state stays exact
    ring: int = 0  # steps before an alarm (loss spike, crash) whose weights join the sequence; 0 keeps none
    full_states: int = 2  # newest checkpoints that keep the state to resume from; 0: the run cannot be resumed

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"--{_flag(name)} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"--{_flag(name)} {getattr(self, name)} is outside {low:g} to {high:g}")
        if self.width % self.heads:
            raise UsageError(f"--heads {self.heads} does not divide --width {self.width}")
        if self.image_size % self.patch:
            raise UsageError(f"--patch {self.patch} does not divide --image-size {self.image_size}")
        if self.fsdp and (self.ring or self.reparam != "none"):
            raise UsageError("--fsdp divides the weights: leave out --ring and --reparam, which need them whole")
        if self.warmup > self.steps:
            raise UsageError(f"--warmup {self.warmup} is longer than the run of --steps {self.steps}")

    def as_dict(self) -> dict[str, Any]:
        """Return the knobs as plain data that strict JSON holds: infinity is "inf"."""
        return {name: "inf" if value == _INF else value for name, value in dataclasses.asdict(self).items()}


_INF = float("inf")
_CHOICES = {
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post"),
    "reparam": ("none", "sigma"),
    "init": ("xavier", "gpt2"),
    "augment": ("none", "crop", "rand"),
    "optimizer": ("adamw", "adamw2"),
    "dtype": ("float32", "bfloat16"),
    "keep": ("all", "attention"),
    "save_dtype": ("float32", "bfloat16"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "layers": (1, 1024),
    "heads": (1, 1024),
    "width": (1, 65_536),
    "context": (1, 1_048_576),
    "vocab": (2, 65_536),
    "mlp": (0, 1_048_576),
    "image_size": (1, 8192),
    "patch": (1, 8192),
    "window": (1, 1024),
    "focused": (0, 64),
    "channels": (1, 3),
    "classes": (2, 1_000_000),
    "batch": (1, 65_536),
    "accumulate": (1, 65_536),
    "mixup": (0.0, 100.0),
    "cutmix": (0.0, 100.0),
    "erasing": (0.0, 1.0),
    "smoothing": (0.0, 0.99),
    "drop_path": (0.0, 0.99),
    "steps": (0, 10**9),
    "lr": (0.0, 1e3),
    "warmup": (0, 10**9),
    "final_lr": (0.0, 1.0),
    "beta1": (0.0, 0.9999999),
    "beta2": (0.0, 0.9999999),
    "eps": (0.0, 1.0),
    "weight_decay": (0.0, 1e3),
    "tau": (1e-12, _INF),
    "clip": (0.0, _INF),
    "threads": (0, 4096),
    "seed": (0, 2**31 - 1),
    "eval_every": (1, 10**9),
    "eval_batches": (1, 10**6),
    "probe_every": (0, 10**9),
    "maps_every": (0, 10**9),
    "save_every": (1, 10**9),
    "ring": (0, 10_000),
    "full_states": (0, 1000),
}


def _flag(name: str) -> str:
    return name.replace("_", "-")


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Return the config that ``as_dict`` wrote; UsageError for an unknown knob or a value of the wrong type."""
    hints = get_type_hints(TrainConfig)
    values = {k: _INF if v == "inf" and hints.get(k) is float else v for k, v in values.items()}
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{name!r} is not a setting of qkspec train")
        kind = hints[name]
        right = isinstance(value, (int, float) if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        if not right:
            raise UsageError(f"{_flag(name)} must be {kind.__name__}, not {value!r}")
    return TrainConfig(**values)
