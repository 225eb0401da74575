"""GPT-2's architecture, its tensors named and oriented as Hugging Face's GPT2LMHeadModel saves them."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkspec.train.config import TrainConfig
from qkspec.train.models.anatomy import Anatomy, vectors


class Conv1D(nn.Module):
    """x W + b with W stored as (inputs, outputs), GPT-2's orientation: the transpose of nn.Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs) for x of (..., inputs)."""
        return functional.linear(x, self.weight.t(), self.bias)


class HeadNorm(nn.Module):
    """RMS normalisation of each head's queries or keys over d_q, with one learned gain for all heads."""

    def __init__(self, d_q: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_q))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., d_q) with unit root mean square times the gain."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class Attention(nn.Module):
    """Causal multi-head attention with one fused projection, its columns in the order q, k, v."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = Conv1D(config.width, 3 * config.width)
        self.c_proj = Conv1D(config.width, config.width)
        if config.qk_norm:
            self.q_norm = HeadNorm(config.width // config.heads)
            self.k_norm = HeadNorm(config.width // config.heads)
        self.qk_norm = config.qk_norm

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (batch, heads, tokens, d_q), as they enter the attention product."""
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=-1)
        )
        return (self.q_norm(q), self.k_norm(k), v) if self.qk_norm else (q, k, v)

    def logits(self, x: Tensor) -> Tensor:
        """Return the masked logits (batch, heads, tokens, tokens): rows are queries, -inf above the diagonal."""
        q, k, _ = self.project(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        q, k, v = self.project(x)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two projections with a GELU between, four times as wide inside."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.width, 4 * config.width)
        self.c_proj = Conv1D(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """Attention and MLP with a residual each; the norm stands before the sublayer (pre) or after the sum (post)."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = Attention(config)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)
        self.post = config.norm_position == "post"

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, d)."""
        if self.post:
            x = self.ln_1(x + self.attn(x))
            return torch.as_tensor(self.ln_2(x + self.mlp(x)))
        x = x + self.attn(self.ln_1(x))
        return torch.as_tensor(x + self.mlp(self.ln_2(x)))


class Trunk(nn.Module):
    """Embeddings, blocks and, with pre-norm, a last norm."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        if config.norm_position == "pre":
            self.ln_f = norm(config)
        self.pre = config.norm_position == "pre"

    def forward(self, ids: Tensor) -> Tensor:
        """Return the last hidden states, (batch, tokens, d), of ids (batch, tokens)."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return torch.as_tensor(self.ln_f(x)) if self.pre else x


class GPT(nn.Module):
    """A GPT-2 language model; see ``config_json`` for what its checkpoints say of it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.transformer = Trunk(config)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the next-token logits, (batch, tokens, vocab), of ids (batch, tokens)."""
        out: Tensor = self.lm_head(self.transformer(ids))
        return out


def norm(config: TrainConfig) -> nn.Module:
    """Return the normalisation over d that the config asks for."""
    return nn.RMSNorm(config.width, eps=1e-5) if config.norm == "rms" else nn.LayerNorm(config.width, eps=1e-5)


@torch.no_grad()
def initialise(model: GPT, config: TrainConfig) -> None:
    """Fill the weights from torch's generator: Xavier (uniform) or GPT-2's N(0, 0.02).

    Xavier takes each stored matrix as one, the fused q, k, v too, as the reference code bases do: their fan is 4 d.
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        if config.init == "gpt2":
            output = name.endswith("c_proj.weight")
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.layers) if output else 0.02)
        else:
            nn.init.xavier_uniform_(weight)


def build(config: TrainConfig) -> GPT:
    """Return the model with its initial weights; the caller has seeded torch."""
    model = GPT(config)
    initialise(model, config)
    return model


def attention_weight(name: str, config: TrainConfig) -> bool:
    """Say whether a tensor belongs to the queries, keys and values, or to the norm that feeds them."""
    feeds = "ln_2" if config.norm_position == "post" else "ln_1"
    return any(part in ("c_attn", "q_norm", "k_norm", feeds) for part in name.split("."))


def anatomy(model: GPT) -> list[Anatomy]:
    """Return the blocks as probes see them."""
    found = []
    for i, block in enumerate(model.transformer.h):
        assert isinstance(block, Block)
        q, k, v = block.attn.c_attn.weight.t().chunk(3)
        rest = {"o": block.attn.c_proj.weight.t(), "fc1": block.mlp.c_fc.weight.t(), "fc2": block.mlp.c_proj.weight.t()}
        matrices = {"q": q, "k": k, "v": v} | rest
        norms = vectors(block.ln_1, block.ln_2)
        found.append(
            Anatomy(f"transformer.h.{i}.attn", block, block.attn, block.attn.heads, matrices, norms, causal=True)
        )
    return found


def config_json(config: TrainConfig) -> dict[str, Any]:
    """Return the config.json: transformers' own for plain GPT-2, with three keys of ours for what it cannot express.

    ``norm_position`` ("pre" or "post"), ``norm`` ("layer" or "rms") and ``qk_norm`` (bool) are always there; where one
    differs from GPT-2, ``architectures`` names our class, since transformers would load the weights and compute
    something else.
    """
    plain = config.norm_position == "pre" and config.norm == "layer" and not config.qk_norm
    return {
        "architectures": ["GPT2LMHeadModel" if plain else "QkspecGPT"],
        "model_type": "gpt2",
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.width,
        "n_positions": config.context,
        "vocab_size": config.vocab,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tied,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "norm_position": config.norm_position,
        "norm": config.norm,
        "qk_norm": config.qk_norm,
    }
