"""A vision transformer, its tensors named and oriented as timm's VisionTransformer has them."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkspec.train.config import TrainConfig
from qkspec.train.models.anatomy import Anatomy, vectors
from qkspec.train.models.gpt import HeadNorm

EPS = 1e-6  # timm's, of every norm


class Attention(nn.Module):
    """Multi-head attention over all tokens with one fused projection, its rows in the order q, k, v."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = HeadNorm(config.width // config.heads)
            self.k_norm = HeadNorm(config.width // config.heads)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (batch, heads, tokens, d_q), as they enter the attention product."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return (self.q_norm(q), self.k_norm(k), v) if self.qk_norm else (q, k, v)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (batch, heads, tokens, tokens): rows are queries."""
        q, k, _ = self.project(x)
        return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        y = functional.scaled_dot_product_attention(*self.project(x))
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two projections with a GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """In training, leave a sublayer out for some samples (Huang et al. 2016, stochastic depth); no weights.

    Args:
        chance: of each sample; what stays is divided by 1 - chance.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """Return x (batch, ...), each sample whole or zero."""
        if not self.training or not self.chance:
            return x
        stays = torch.rand((len(x), *(1,) * (x.ndim - 1)), device=x.device) >= self.chance
        return x * stays / (1 - self.chance)


def drop_chances(config: TrainConfig, blocks: int) -> list[float]:
    """Return each block's chance to be left out: from 0 in the first to ``drop_path`` in the last."""
    return [config.drop_path * i / max(1, blocks - 1) for i in range(blocks)]


class Block(nn.Module):
    """Attention and MLP with a residual each; the norm stands before the sublayer (pre) or after the sum (post)."""

    def __init__(self, config: TrainConfig, drop: float) -> None:
        super().__init__()
        self.drop = DropPath(drop)
        self.norm1 = norm(config)
        self.attn = Attention(config)
        self.norm2 = norm(config)
        self.mlp = MLP(config.width, config.mlp or 4 * config.width)
        self.post = config.norm_position == "post"

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        if self.post:
            x = self.norm1(x + self.drop(self.attn(x)))
            return torch.as_tensor(self.norm2(x + self.drop(self.mlp(x))))
        x = x + self.drop(self.attn(self.norm1(x)))
        return torch.as_tensor(x + self.drop(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Cut an image into squares and project each."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, patches, d) of images (batch, channels, size, size)."""
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class ViT(nn.Module):
    """A ViT that reads its answer off a class token; see ``config_json`` for what its checkpoints say of it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // config.patch) ** 2 + 1, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drop_chances(config, config.layers))
        self.norm = norm(config) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits, (batch, classes), of images (batch, channels, size, size)."""
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


def norm(config: TrainConfig) -> nn.Module:
    """Return the normalisation over d that the config asks for."""
    return nn.RMSNorm(config.width, eps=EPS) if config.norm == "rms" else nn.LayerNorm(config.width, eps=EPS)


@torch.no_grad()
def build(config: TrainConfig) -> ViT:
    """Return the model with its initial weights; the caller has seeded torch.

    Xavier (uniform) or N(0, 0.02), biases zero, the class token and positions N(0, 0.02) either way.
    """
    model = ViT(config)
    for name, weight in model.named_parameters():
        if name in ("cls_token", "pos_embed") or (weight.ndim > 1 and config.init == "gpt2"):
            nn.init.trunc_normal_(weight, std=0.02)
        elif weight.ndim > 1:
            nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return model


def attention_weight(name: str, config: TrainConfig) -> bool:
    """Say whether a tensor belongs to the queries, keys and values, or to the norm that feeds them."""
    feeds = "norm2" if config.norm_position == "post" else "norm1"
    return any(part in ("qkv", "q_norm", "k_norm", feeds) for part in name.split("."))


def anatomy(model: ViT) -> list[Anatomy]:
    """Return the blocks as probes see them."""
    found = []
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv.weight.chunk(3)
        rest = {"o": block.attn.proj.weight, "fc1": block.mlp.fc1.weight, "fc2": block.mlp.fc2.weight}
        matrices = {"q": q, "k": k, "v": v} | rest
        norms = vectors(block.norm1, block.norm2)
        found.append(Anatomy(f"blocks.{i}.attn", block, block.attn, block.attn.heads, matrices, norms, causal=False))
    return found


def config_json(config: TrainConfig) -> dict[str, Any]:
    """Return the config.json in timm's form: ``timm.create_model(architecture, **model_args)`` takes the weights.

    Added are ``num_heads`` and ``context_length`` (tokens), which timm's own files lack, and ``norm_position``,
    ``norm`` and ``qk_norm``; where one of these three differs from timm's ViT, ``architecture`` names our class.
    """
    plain = config.norm_position == "pre" and config.norm == "layer" and not config.qk_norm
    return {
        "architecture": "vit_base_patch16_224" if plain else "qkspec_vit",
        "num_classes": config.classes,
        "num_heads": config.heads,
        "context_length": (config.image_size // config.patch) ** 2 + 1,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch,
            "in_chans": config.channels,
            "num_classes": config.classes,
            "embed_dim": config.width,
            "depth": config.layers,
            "num_heads": config.heads,
            "mlp_ratio": (config.mlp or 4 * config.width) / config.width,
        },
        "norm_position": config.norm_position,
        "norm": config.norm,
        "qk_norm": config.qk_norm,
    }
