"""Focused linear attention (Han et al. 2023, FLatten Transformer): no softmax, and a cost linear in the tokens."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FACTOR = 3  # the power that sharpens queries and keys
KERNEL = 5  # tokens a side that the depthwise convolution sees
EPS = 1e-6


class FocusedAttention(nn.Module):
    """Attention of every token of a square grid to all, its tensors named as the reference implementation has them.

    Args:
        width: d of this stage.
        heads: attention heads.
        side: tokens a side of the grid.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        d_q = width // heads
        self.dwc = nn.Conv2d(d_q, d_q, KERNEL, padding=KERNEL // 2, groups=d_q)
        self.scale = nn.Parameter(torch.zeros(1, 1, width))
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, width))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return focused q and k, and v, each (batch, heads, tokens, d_q), in float32."""
        q, k, v = self.qkv(x).float().chunk(3, dim=-1)
        scale = functional.softplus(self.scale)
        parts = focus(q, scale), focus(k + self.positional_encoding, scale), v
        batch, tokens, width = x.shape
        a, b, c = (part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        return a, b, c

    def maps(self, x: Tensor) -> Tensor:
        """Return what each token takes from each, (batch, heads, tokens, tokens): rows are queries.

        A row sums to one, or to less where a head gives its query next to no weight.
        """
        q, k, _ = self.project(x)
        scores = q @ k.transpose(-2, -1) / x.shape[1]
        return scores / (scores.sum(-1, keepdim=True) + EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d): the map times v, never formed, and v itself seen through the convolution."""
        q, k, v = self.project(x)
        root = math.sqrt(x.shape[1])
        mixed = q @ ((k / root).transpose(-2, -1) @ (v / root))
        mixed = mixed / (q @ k.mean(-2, keepdim=True).transpose(-2, -1) + EPS)
        grid = v.flatten(0, 1).transpose(1, 2).reshape(-1, v.shape[-1], self.side, self.side)
        local = self.dwc(grid).flatten(2).transpose(1, 2).reshape(v.shape)
        out: Tensor = self.proj((mixed + local).transpose(1, 2).flatten(2))
        return out


def focus(x: Tensor, scale: Tensor) -> Tensor:
    """Return tokens turned towards their largest coordinates, each keeping its length.

    Args:
        x: (batch, tokens, d).
        scale: positive, (1, 1, d); coordinates are divided by it.

    Returns:
        (batch, tokens, d), positive: ``x ** 3`` with the l2 norm of ``x``, after a ReLU.
    """
    x = (functional.relu(x) + EPS) / scale
    sharp = x**FACTOR
    return torch.as_tensor(sharp * (x.norm(dim=-1, keepdim=True) / sharp.norm(dim=-1, keepdim=True)))
