"""A Swin transformer, its tensors named and oriented as timm's SwinTransformer has them.

Flatten-Swin is the same with focused linear attention over all tokens of the first stages.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkspec.errors import UsageError
from qkspec.train.config import TrainConfig
from qkspec.train.models.anatomy import Anatomy, vectors
from qkspec.train.models.focused import FocusedAttention
from qkspec.train.models.vit import MLP, DropPath, drop_chances

_FOCUSED = ("dwc", "scale", "positional_encoding")  # what focused attention has and windows have not
_PATCHES = ("patch_embed.proj.weight", "patch_embed.proj.bias")


class Attention(nn.Module):
    """Attention within windows, with a learned bias by relative position and, where windows shift, a mask.

    Args:
        width: d of this stage.
        heads: attention heads.
        side: tokens a side of a window.
        mask: (windows, tokens, tokens), True where two tokens may not see each other, or None.
    """

    def __init__(self, width: int, heads: int, side: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.register_buffer("index", _relative(side), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (batch x windows, heads, tokens, d_q)."""
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def bias(self, rows: int) -> Tensor:
        """Return what is added to the logits, broadcastable to (rows, heads, tokens, tokens)."""
        index = self.get_buffer("index")
        bias = self.relative_position_bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)[None]
        if not isinstance(self.mask, Tensor):
            return bias
        hidden = self.mask.repeat(rows // len(self.mask), 1, 1)[:, None]
        return bias.expand(rows, -1, -1, -1).masked_fill(hidden, -math.inf)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (batch x windows, heads, tokens, tokens): rows are queries."""
        q, k, _ = self.project(x)
        return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + self.bias(len(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch x windows, tokens, d)."""
        y = functional.scaled_dot_product_attention(*self.project(x), attn_mask=self.bias(len(x)))
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and MLP with a residual each, norms first.

    Every second block shifts its windows by half. With focused attention the whole grid is one window.
    """

    def __init__(
        self, width: int, heads: int, grid: int, window: int, drop: float, *, shifted: bool, focused: bool
    ) -> None:
        super().__init__()
        self.drop = DropPath(drop)
        self.side = grid if focused else min(window, grid)
        self.shift = self.side // 2 if shifted and grid > self.side else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn: FocusedAttention | Attention
        if focused:
            self.attn = FocusedAttention(width, heads, grid)
        else:
            self.attn = Attention(width, heads, self.side, _mask(grid, self.side, self.shift))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, grid, grid, d)."""
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = _join(self.attn(_windows(y, self.side)), x.shape, self.side)
        x = x + self.drop(torch.roll(y, (self.shift, self.shift), (1, 2)))
        return torch.as_tensor(x + self.drop(self.mlp(self.norm2(x))))


class Merge(nn.Module):
    """Join each 2 x 2 square of tokens into one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, grid / 2, grid / 2, 2 d)."""
        b, h, w, d = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = self.reduction(self.norm(x))
        return out


class Stage(nn.Module):
    """Blocks of one width, after a merge in all stages but the first."""

    def __init__(self, config: TrainConfig, number: int, drops: Sequence[float], grid: int) -> None:
        super().__init__()
        width, heads = config.width << number, config.heads << number
        self.downsample = Merge(width // 2) if number else nn.Identity()
        focused = number < focused_stages(config)
        self.blocks = nn.ModuleList(
            Block(width, heads, grid, config.window, drop, shifted=i % 2 == 1, focused=focused)
            for i, drop in enumerate(drops)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, grid, grid, d) of this stage."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    """Cut an image into squares, project each, and normalise."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, grid, grid, d) of images (batch, channels, size, size)."""
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class Swin(nn.Module):
    """A Swin that reads its answer off the mean of the last tokens; see ``config_json``."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        depths = stages(config)
        grid = config.image_size // config.patch
        self.patch_embed = PatchEmbed(config)
        drops = iter(drop_chances(config, sum(depths)))
        self.layers = nn.ModuleList(
            Stage(config, i, [next(drops) for _ in range(depth)], grid >> i) for i, depth in enumerate(depths)
        )
        last = config.width << (len(depths) - 1)
        self.norm = nn.LayerNorm(last)
        self.head = nn.ModuleDict({"fc": nn.Linear(last, config.classes)})

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits, (batch, classes), of images (batch, channels, size, size)."""
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        out: Tensor = self.head["fc"](self.norm(x).mean((1, 2)))
        return out


def stages(config: TrainConfig) -> tuple[int, ...]:
    """Return the blocks of each stage; UsageError for settings that a Swin does not have or that do not fit."""
    words = config.stages.split(",")
    if not all(word.strip().isdecimal() and len(word) < 5 and int(word) > 0 for word in words):
        raise UsageError(f"--stages {config.stages!r} is no list of block counts such as 2,2,18,2")
    if config.norm_position != "pre" or config.norm != "layer" or config.qk_norm:
        raise UsageError(f"--model {config.model} has pre-LN, LayerNorm and no QK-norm; leave those options out")
    grid = config.image_size // config.patch
    for number in range(len(words)):
        side = grid >> number
        if (number and (grid >> (number - 1)) % 2) or side < 1 or side % min(config.window, side):
            raise UsageError(f"--window {config.window} does not fit the {side} x {side} tokens of stage {number + 1}")
    return tuple(int(word) for word in words)


def focused_stages(config: TrainConfig) -> int:
    """Return how many stages, from the first, have focused linear attention."""
    return config.focused if config.model == "flatten-swin" else 0


@torch.no_grad()
def build(config: TrainConfig) -> Swin:
    """Return the model with its initial weights: Xavier (uniform) or N(0, 0.02); position biases N(0, 0.02).

    With N(0, 0.02), Swin's own, the patches' convolution is as torch draws it. What focused attention adds starts as in
    its reference: scales and positions 0, the convolution as torch draws it.
    """
    model = Swin(config)
    for name, weight in model.named_parameters():
        if any(part in name.split(".") for part in _FOCUSED) or (config.init == "gpt2" and name in _PATCHES):
            continue
        if name.endswith("relative_position_bias_table") or (weight.ndim > 1 and config.init == "gpt2"):
            nn.init.trunc_normal_(weight, std=0.02)
        elif weight.ndim > 1:
            nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return model


def attention_weight(name: str, config: TrainConfig) -> bool:  # noqa: ARG001 - other models ask the config
    """Say whether a tensor belongs to the queries, keys and values, or to the norm that feeds them."""
    return any(part in ("qkv", "norm1", "relative_position_bias_table", *_FOCUSED) for part in name.split("."))


def anatomy(model: Swin) -> list[Anatomy]:
    """Return the blocks of all stages as probes see them."""
    found = []
    for s, stage in enumerate(model.layers):
        assert isinstance(stage, Stage)
        for i, block in enumerate(stage.blocks):
            assert isinstance(block, Block)
            q, k, v = block.attn.qkv.weight.chunk(3)
            rest = {"o": block.attn.proj.weight, "fc1": block.mlp.fc1.weight, "fc2": block.mlp.fc2.weight}
            norms, name = vectors(block.norm1, block.norm2), f"layers.{s}.blocks.{i}.attn"
            matrices = {"q": q, "k": k, "v": v} | rest
            softmax = isinstance(block.attn, Attention)
            heads = block.attn.heads
            found.append(Anatomy(name, block, block.attn, heads, matrices, norms, causal=False, softmax=softmax))
    return found


def config_json(config: TrainConfig) -> dict[str, Any]:
    """Return the config.json in timm's form, with ``num_heads`` a stage and the tokens of a window added.

    timm has no Flatten-Swin: ``architecture`` then names our class, and ``focused_stages`` counts its first stages.
    """
    depths = stages(config)
    heads = [config.heads << i for i in range(len(depths))]
    model_args = {"img_size": config.image_size, "patch_size": config.patch, "in_chans": config.channels}
    model_args |= {"num_classes": config.classes, "embed_dim": config.width, "window_size": config.window}
    nested = {"depths": list(depths), "num_heads": heads}
    focused = {"focused_stages": focused_stages(config)} if focused_stages(config) else {}
    return focused | {
        "architecture": "qkspec_flatten_swin" if focused else "swin_base_patch4_window7_224",
        "num_classes": config.classes,
        "num_heads": heads,
        "context_length": min(config.window, config.image_size // config.patch) ** 2,
        "model_args": model_args | nested,
    }


def _windows(x: Tensor, side: int) -> Tensor:
    """Cut (batch, h, w, d) into (batch x windows, side², d)."""
    b, h, w, d = x.shape
    return x.view(b, h // side, side, w // side, side, d).transpose(2, 3).reshape(-1, side * side, d)


def _join(windows: Tensor, shape: torch.Size, side: int) -> Tensor:
    """Undo ``_windows`` for a tensor of shape (batch, h, w, d)."""
    b, h, w, d = shape
    return windows.view(b, h // side, w // side, side, side, d).transpose(2, 3).reshape(b, h, w, d)


def _relative(side: int) -> Tensor:
    """Return, for each pair of tokens of a window, the row of the bias table: (side², side²) int64."""
    at = torch.arange(side * side)
    row, column = at // side, at % side
    down = row[:, None] - row[None] + side - 1
    return down * (2 * side - 1) + column[:, None] - column[None] + side - 1


def _mask(grid: int, side: int, shift: int) -> Tensor | None:
    """Return which tokens of a shifted window were not neighbours before the shift: (windows, side², side²) bool."""
    if not shift:
        return None
    band = torch.bucketize(torch.arange(grid), torch.tensor([grid - side, grid - shift]), right=True)
    region = (3 * band[:, None] + band[None]).view(1, grid, grid, 1)
    cut = _windows(region, side)[..., 0]
    return cut[:, :, None] != cut[:, None]
