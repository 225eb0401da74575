"""What a run works on: the model, its optimizer, its data and the step it stands at."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from qkspec.engine import cpu_count
from qkspec.errors import UsageError
from qkspec.optim.sigma_reparam import SigmaReparam
from qkspec.train import data, images
from qkspec.train.config import TrainConfig
from qkspec.train.feed import Feed
from qkspec.train.models import registry
from qkspec.train.models.anatomy import choose
from qkspec.train.world import World, current, whole


@dataclass
class Lab:
    """The state of a run; ``step`` counts the updates done. Only ``loop.train`` and ``save.restore`` change it."""

    config: TrainConfig
    model: nn.Module
    shared: nn.Module  # the model, or its DDP wrapper; with fsdp the model itself, its weights divided
    forward: Callable[[Tensor], Tensor]  # that, compiled where the config says so
    optimizer: Optimizer
    data: data.Data
    feed: Feed  # of that data
    device: torch.device
    world: World
    shown: Mapping[int, tuple[int, ...]]  # block ▸ heads whose attention maps are drawn
    step: int = 0


def build(config: TrainConfig) -> Lab:
    """Return a run at step 0. The same config gives the same weights, whatever was drawn before.

    UsageError for a device or a head that is not there, InputError for data that is not.
    """
    world = current()
    for flag, count in (("accumulate", config.accumulate), ("eval-batches", config.eval_batches)):
        if count % world.size and (flag == "accumulate" or config.fsdp):
            raise UsageError(f"--{flag} {count} is no multiple of the {world.size} processes that share it")
    torch.set_num_threads(config.threads or max(1, cpu_count() // world.size))
    device = resolve_device(config.device, world.local)
    material = (images if registry.kind(config.model).data == "images" else data).load(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = registry.module(config.model).build(config).to(device)
    anatomy = registry.module(config.model).anatomy(model)
    shown = choose(config.maps, anatomy)
    if config.reparam == "sigma":
        reparametrise(model, config.seed)
    feed = Feed(material, config, world, device)
    if config.fsdp:
        world.divide(model, [part.block for part in anatomy], device)
    shared = model if config.fsdp else world.wrap(model)
    forward = torch.compile(shared) if config.compile else shared
    return Lab(config, model, shared, forward, make_optimizer(model, config), material, feed, device, world, shown)


@torch.no_grad()
def undivided(lab: Lab) -> Lab:
    """Return the lab; where its weights are divided, with a whole copy of the model, for which every process must ask.

    Weights are gathered one at a time.
    """
    if not lab.config.fsdp or lab.world.size == 1:
        return lab
    state = lab.model.state_dict()
    with torch.random.fork_rng(devices=[]):
        model = registry.module(lab.config.model).build(lab.config).to(lab.device)
    for name, tensor in model.state_dict().items():
        tensor.copy_(whole(state[name]))
    return dataclasses.replace(lab, model=model)


def reparametrise(model: nn.Module, seed: int) -> tuple[str, ...]:
    """Put σReparam on every linear layer, GPT-2's transposed ones too, and return their names.

    A weight that is an embedding as well stays as it is.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    layers = []
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and id(weight) not in embeddings:
            parametrize.register_parametrization(module, "weight", SigmaReparam(weight.detach(), seed=seed))
            layers.append(name)
    return tuple(layers)


def resolve_device(name: str, local: int = 0) -> torch.device:
    """Return the device that a name stands for; "auto" is a CUDA device, number ``local``, where there is one."""
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used ({reason}); try --device cpu") from error
    return device


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer; see ``decays`` for what decays."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [(n, w) for n, w in named if decays(n, w)], "weight_decay": config.weight_decay},
        {"params": [(n, w) for n, w in named if not decays(n, w)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        fused = named[0][1].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused)
    from qkspec.optim.adamw2 import AdamW2

    return AdamW2(groups, lr=config.lr, betas=betas, eps=config.eps, tau=config.tau, seed=config.seed)


def decays(name: str, weight: Tensor) -> bool:
    """Say whether a weight decays: matrices do, token embeddings too; vectors, the class token and positions do not.

    So timm and Swin have it; what focused attention adds decays, as it does where FLatten Transformer is trained.
    """
    return weight.ndim > 1 and name.rpartition(".")[2] not in _FREE


_FREE = ("cls_token", "pos_embed", "relative_position_bias_table")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of update ``step`` (the first is 0): linear warmup, then cosine decay."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def bound_fraction(optimizer: Optimizer) -> float | None:
    """Return the share of bounded tensors whose last update AdamW² cut, or None for another optimizer."""
    share = getattr(optimizer, "bound_fraction", None)
    return None if share is None else float(share() if callable(share) else share)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Say whether every element of every tensor is a finite number."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
