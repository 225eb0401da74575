"""Checkpoint files of the shapes that the benchmarks run on: what is measured holds numbers, the rest is a hole."""

import json
import os
from pathlib import Path

import numpy as np

BF16 = "BF16"


def gpt2_small(path, seed=0):
    """One float32 safetensors file of GPT-2 small's tensors, N(0, 0.02): 12 layers, 12 heads, d 768."""
    rng = np.random.default_rng(seed)
    tensors = {"wte.weight": ("F32", (50257, 768), None), "wpe.weight": ("F32", (1024, 768), None)}
    for layer in range(12):
        at = f"h.{layer}."
        tensors[at + "ln_1.weight"] = ("F32", (768,), np.ones(768, "<f4"))
        tensors[at + "ln_1.bias"] = ("F32", (768,), np.zeros(768, "<f4"))
        tensors[at + "attn.c_attn.weight"] = ("F32", (768, 2304), 0.02 * rng.standard_normal((768, 2304), "f4"))
        tensors[at + "attn.c_attn.bias"] = ("F32", (2304,), np.zeros(2304, "<f4"))
        for name, shape in (("attn.c_proj", (768, 768)), ("mlp.c_fc", (768, 3072)), ("mlp.c_proj", (3072, 768))):
            tensors[f"{at}{name}.weight"] = ("F32", shape, None)
            tensors[f"{at}{name}.bias"] = ("F32", shape[1:], None)
    config = {
        "model_type": "gpt2",
        "n_head": 12,
        "n_layer": 12,
        "n_embd": 768,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    return write_folder(Path(path), [tensors], config)


def llama(path, *, layers=32, heads=32, kv_heads=8, d=4096, mlp=14336, vocab=128256, shards=4, seed=0):
    """A sharded bfloat16 checkpoint of Llama's tensors, by default Llama-3-8B's; q, k and norms hold numbers."""
    rng = np.random.default_rng(seed)
    d_q = d // heads
    groups = [{} for _ in range(shards)]
    groups[0]["model.embed_tokens.weight"] = (BF16, (vocab, d), None)
    groups[-1]["lm_head.weight"] = (BF16, (vocab, d), None)
    groups[-1]["model.norm.weight"] = (BF16, (d,), None)
    for layer in range(layers):
        at, shard = f"model.layers.{layer}.", groups[layer * shards // layers]
        shard[at + "input_layernorm.weight"] = (BF16, (d,), bf16(np.exp(0.1 * rng.standard_normal(d, "f4"))))
        for name, rows in (("q_proj", heads * d_q), ("k_proj", kv_heads * d_q)):
            shard[f"{at}self_attn.{name}.weight"] = (BF16, (rows, d), bf16(0.02 * rng.standard_normal((rows, d), "f4")))
        shard[at + "self_attn.v_proj.weight"] = (BF16, (kv_heads * d_q, d), None)
        shard[at + "self_attn.o_proj.weight"] = (BF16, (d, heads * d_q), None)
        shard[at + "post_attention_layernorm.weight"] = (BF16, (d,), None)
        for name, shape in (("gate_proj", (mlp, d)), ("up_proj", (mlp, d)), ("down_proj", (d, mlp))):
            shard[f"{at}mlp.{name}.weight"] = (BF16, shape, None)
    config = {
        "model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": d,
        "num_hidden_layers": layers, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "intermediate_size": mlp, "vocab_size": vocab,
    }  # fmt: skip
    return write_folder(Path(path), groups, config)


def bf16(values):
    """Round float32 to bfloat16, nearest even, as its 16-bit codes."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_folder(path, groups, config):
    """Write config.json and one safetensors file a group of {name: (dtype, shape, values or None for a hole)}."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    places = {}
    for number, tensors in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_file(path / name, tensors)
        places.update(dict.fromkeys(tensors, name))
    if len(groups) > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def write_file(path, tensors):
    """Write one safetensors file, leaving holes where values are None, so that it takes little disk."""
    header, at = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        size = int(np.prod(shape)) * {"F32": 4, BF16: 2}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        start = file.tell()
        for name, (_, _, values) in tensors.items():
            if values is not None:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(np.ascontiguousarray(values).tobytes())
        os.truncate(path, start + at)
