"""Attention modules and reports built from real weights, for tests that start behind the reader."""

import numpy as np

from qkspec.metrics import measure
from qkspec.qk import Norm, QKLayer
from qkspec.readings import Readings, text


def random_layer(seed=0, heads=4, kv_heads=None, d_q=8, d=32, **options):
    """A module of Gaussian weights of variance 1/d."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((heads, d_q, d)) / np.sqrt(d)
    k = rng.standard_normal((kv_heads or heads, d_q, d)) / np.sqrt(d)
    return layer_of(q, k, **options)


def collapsed_layer(seed=0, d_q=16, d=64, size=30.0, **options):
    """A module of one head whose W_q'W_k is nearly of rank one with singular value ``size``."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, d)) / np.sqrt(d)
    a = rng.standard_normal(d_q)
    a /= np.linalg.norm(a)
    q = np.sqrt(size) * np.outer(a, u) + 1e-3 * rng.standard_normal((d_q, d))
    k = np.sqrt(size) * np.outer(a, v) + 1e-3 * rng.standard_normal((d_q, d))
    return layer_of(q[None], k[None], **options)


def layer_of(q, k, **options):
    """A module of given weights behind a layer norm without gains, in a model of 64 tokens."""
    known = {"name": "h.0.attn", "layer": 0, "block": "self", "scale": q.shape[1] ** -0.5, "stored": "float32"}
    known |= {"context": 64, "q_input": Norm("layer"), "k_input": Norm("layer")}
    return QKLayer(q=q, k=k, **{**known, **options})


def table(layer, *, run="run", checkpoint="step-0", step=0, sizes=(1, 2, 4, 8)):
    """The readings of one module."""
    values, _ = measure(layer, sizes)
    n = layer.heads
    return Readings(
        {
            "run": text(run, n),
            "checkpoint": text(checkpoint, n),
            "step": np.full(n, step),
            "block": text(layer.block, n),
            "layer": np.full(n, layer.layer),
            "module": text(layer.name, n),
            "head": np.arange(n),
            "kv_head": np.arange(n) // (n // layer.kv_heads),
            "d_model": np.full(n, layer.d_model),
            "d_q": np.full(n, layer.d_q),
            **values,
        }
    )


def gpt2_blocks(layers, d):
    """Names and shapes of the weights of GPT-2's blocks, as torch.nn.Linear holds them."""
    shapes = {}
    for i in range(layers):
        for name, shape in (
            ("attn.c_attn", (3 * d, d)),
            ("attn.c_proj", (d, d)),
            ("mlp.c_fc", (4 * d, d)),
            ("mlp.c_proj", (d, 4 * d)),
        ):
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[:1]}
    return shapes
