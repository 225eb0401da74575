import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.checkpoints.memory import from_state_dict
from qkspec.layouts.find import plan
from qkspec.terms import DENSE, TERMS, blocks, norm


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(-200, 200), st.integers(0, 99))
def test_norm_of_any_size(rows, columns, power, seed):
    w = np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**power
    assert norm(w) == pytest.approx(np.linalg.norm(w / 10.0**power, 2) * 10.0**power, rel=1e-7)


def test_norm_of_products_and_of_large_matrices():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 30)), rng.standard_normal((30, 50))
    assert norm(a, b) == pytest.approx(np.linalg.norm(a @ b, 2), rel=1e-8)
    large = rng.standard_normal((DENSE + 40, DENSE + 8))
    assert norm(large) == pytest.approx(np.linalg.norm(large, 2), rel=1e-8)
    assert norm(0 * a) == 0
    assert np.isnan(norm(a * np.nan))


def gpt2():
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(
        GPT2Config(vocab_size=30, n_positions=16, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )


def llama():
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(
            vocab_size=30,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    )


def neox():
    from transformers import GPTNeoXConfig, GPTNeoXModel

    return GPTNeoXModel(
        GPTNeoXConfig(vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    )


def vit():
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=8, patch_size=4
        ),
        add_pooling_layer=False,
    )


def parts(model):
    """q, k, v, o, fc1, fc2 (outputs, inputs) and the two norms of layer 1, named by hand for each family."""
    kind, d = model.config.model_type, 24
    if kind == "gpt2":
        b = model.h[1]
        q, k, v = b.attn.c_attn.weight.T.split(d)
        return [q, k, v, b.attn.c_proj.weight.T, b.mlp.c_fc.weight.T, b.mlp.c_proj.weight.T], [b.ln_1, b.ln_2]
    if kind == "llama":
        b = model.layers[1]
        a = b.self_attn
        weights = [a.q_proj, a.k_proj, a.v_proj, a.o_proj, b.mlp.up_proj, b.mlp.down_proj]
        return [m.weight for m in weights], [b.input_layernorm, b.post_attention_layernorm]
    if kind == "bert":
        b = model.encoder.layer[1]
        a = b.attention
        weights = [a.self.query, a.self.key, a.self.value, a.output.dense, b.intermediate.dense, b.output.dense]
        return [m.weight for m in weights], [a.output.LayerNorm, b.output.LayerNorm]
    if kind == "gpt_neox":
        b = model.layers[1]
        q, k, v = b.attention.query_key_value.weight.view(4, 3, 6, d).transpose(0, 1).reshape(3, d, d)
        weights = [q, k, v, b.attention.dense.weight, b.mlp.dense_h_to_4h.weight, b.mlp.dense_4h_to_h.weight]
        return weights, [b.input_layernorm, b.post_attention_layernorm]
    state = {n: p for n, p in model.state_dict().items() if ".1." in n and n.endswith("weight") and p.ndim == 2}
    pick = [
        next(p for n, p in state.items() if f".{s}." in n)
        for s in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
    ]
    b = next(m for n, m in model.named_modules() if n.endswith("layers.1"))
    return pick, [b.layernorm_before, b.layernorm_after]


@pytest.mark.parametrize("build", [gpt2, llama, bert, neox, vit])
def test_every_term_of_equation_1_in_real_models(build):
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    checkpoint = from_state_dict(model.state_dict(), model.config.to_dict())
    found = list(blocks(checkpoint, plan(checkpoint)))[1].values
    (q, k, v, o, first, second), norms = parts(model)
    q, k, v, o, first, second = (w.detach().double().numpy() for w in (q, k, v, o, first, second))
    names = ("W_q", "W_k", "W_v", "W_o", "W_1", "W_2")
    for name, w in zip(names, (q, k, v, o, first, second), strict=True):
        assert found[name] == pytest.approx(np.linalg.norm(w, 2), rel=1e-6), name
    group = len(q) // len(v)
    spread = np.repeat(v.reshape(len(v) // 6, 6, -1), group, axis=0).reshape(len(q), -1)
    assert found["W_oW_v"] == pytest.approx(np.linalg.norm(o @ spread, 2), rel=1e-6)
    assert found["W_2W_1"] == pytest.approx(np.linalg.norm(second @ first, 2), rel=1e-6)
    heads = [np.linalg.norm(q[6 * h : 6 * h + 6].T @ k[6 * (h // group) : 6 * (h // group) + 6], 2) for h in range(4)]
    assert found["W_q'W_k"] == pytest.approx(max(heads), rel=1e-6)
    for i, module in enumerate(norms, start=1):
        assert found[f"gamma_{i}"] == pytest.approx(float(module.weight.detach().norm()), rel=1e-6)
        if getattr(module, "bias", None) is not None:
            assert found[f"beta_{i}"] == pytest.approx(float(module.bias.detach().norm()), rel=1e-6)
    missing = set(TERMS) - set(found)
    assert missing == ({"beta_1", "beta_2"} if build is llama else set()), "an RMSNorm model has 13 terms, not 15"
