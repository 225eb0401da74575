import pytest

from qkspec.errors import UsageError
from qkspec.optim.roles import Role, choose_role, find_role, views

D = 768
ROWS, COLUMNS = Role("matrix", (("q", D), ("k", D), ("v", D)), 0), Role("matrix", (("q", D), ("k", D), ("v", D)), 1)


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("transformer.wte.weight", (50257, D), Role("embedding")),
        ("transformer.wpe.weight", (1024, D), Role("embedding")),
        ("model.embed_tokens.weight", (32000, D), Role("embedding")),
        ("gpt_neox.embed_in.weight", (50304, D), Role("embedding")),
        ("bert.embeddings.word_embeddings.weight", (30522, D), Role("embedding")),
        ("vit.embeddings.position_embeddings", (1, 197, D), Role("embedding")),
        ("pos_embed", (1, 197, D), Role("embedding")),
        ("cls_token", (1, 1, D), Role("embedding")),
        ("layers.0.blocks.0.attn.relative_position_bias_table", (169, 4), Role("embedding")),
        ("patch_embed.proj.weight", (D, 3, 16, 16), Role("matrix")),
        ("vit.embeddings.patch_embeddings.projection.weight", (D, 3, 16, 16), Role("matrix")),
        ("transformer.h.0.attn.c_attn.weight", (3 * D, D), ROWS),
        ("transformer.h.0.attn.c_attn.weight", (D, 3 * D), COLUMNS),
        ("module._orig_mod.transformer.h.0.attn.c_attn.weight", (D, 3 * D), COLUMNS),
        ("transformer.h.0.attn.c_attn.weight", (D, D + 128), Role("matrix")),
        ("blocks.0.attn.qkv.weight", (3 * D, D), ROWS),
        ("blocks.0.attn.qkv.bias", (3 * D,), Role("vector")),
        ("encoder.layers.0.self_attn.in_proj_weight", (3 * D, D), ROWS),
        ("gpt_neox.layers.0.attention.query_key_value.weight", (3 * D, D), Role("matrix")),
        ("model.layers.0.self_attn.q_proj.weight", (D, D), Role("matrix")),
        ("transformer.h.0.mlp.c_fc.weight", (4 * D, D), Role("matrix")),
        ("lm_head.weight", (50257, D), Role("matrix")),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 4 * D, D), Role("matrix", stacked=True)),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 4 * D), Role("vector")),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 4 * D, D), Role("matrix", stacked=True)),
        ("model.layers.0.mlp.experts.3.gate_proj.weight", (4 * D, D), Role("matrix")),
        ("moe.conv.weight", (D, D, 3), Role("matrix")),
        ("conv1.weight", (D, D, 3), Role("matrix")),
        ("ln_f.weight", (D,), Role("vector")),
        ("temperature", (), Role("vector")),
        (None, (50257, D), Role("embedding")),
        (None, (3 * D, D), Role("matrix")),
        (None, (D,), Role("vector")),
    ],
)
def test_names_and_shapes_tell(name, shape, role):
    assert find_role(name, shape) == role


def test_the_user_has_the_last_word():
    assert choose_role("a.c_attn.weight", (D, 3 * D), {"*.c_attn.*": "matrix"}) == Role("matrix")
    assert choose_role("a.mixed.weight", (3 * D, D), {"*.mixed.*": "qkv rows"}) == ROWS
    assert choose_role("a.mixed.weight", (D, 3 * D), {"b": "matrix", "*.mixed.*": "qkv columns"}) == COLUMNS
    assert choose_role("w", (4, D, D), {"w": "experts"}) == Role("matrix", stacked=True)
    assert [(v.name, v.start, v.size) for v in views("w", Role("matrix", stacked=True), (2, 3, 4))] == [
        ("w[0]", 0, 3),
        ("w[1]", 3, 3),
    ]
    grouped = Role("matrix", (("q", 64), ("k", 16), ("v", 16)))
    assert choose_role("qkv_proj.weight", (96, 64), {"qkv_proj*": grouped}) == grouped
    assert [(v.name, v.start, v.size) for v in views("w", grouped, (96, 64))] == [
        ("w[q]", 0, 64),
        ("w[k]", 64, 16),
        ("w[v]", 80, 16),
    ]


@pytest.mark.parametrize(
    ("role", "shape"),
    [
        ("nonsense", (4, 4)),
        ("qkv rows", (4, 4)),
        ("qkv columns", (7,)),
        ("experts", (4, 4)),
        (Role("matrix", (("q", 2), ("k", 3)), 1), (4, 5)),
        (Role("matrix", (("q", 2), ("k", 2)), 0, 2), (4, 5)),
    ],
)
def test_a_cut_that_does_not_add_up_is_refused(role, shape):
    with pytest.raises(UsageError):
        choose_role("w", shape, {"w": role})


def test_a_role_checks_itself():
    with pytest.raises(UsageError, match="kind"):
        Role("tensor")
    with pytest.raises(UsageError, match="at least 1"):
        Role("matrix", (("q", 0),))
    with pytest.raises(UsageError, match="whole"):
        Role("matrix", (("q", 1),), stacked=True)
