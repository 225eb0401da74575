"""Layout files: what they can say, and that anything else is a sentence and no traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qkspec.checkpoints.memory import from_state_dict
from qkspec.errors import LayoutError
from qkspec.layouts.custom import load
from qkspec.layouts.draft import draft
from qkspec.layouts.find import attention_layers
from qkspec.layouts.layout import Fused, Latent, Separate

GOOD = """
name = "mine"
heads = 4
kv_heads = "groups"
scale = 0.5
causal = true
remarks = ["a thing to know"]
[weights]
qkv = "blocks.{}.mix"
units = "head"
parts = "kqv"
[norm]
at = "blocks.{}.ln"
kind = "rms"
[qk_norm]
q = "blocks.{}.qn"
k = "blocks.{}.kn"
[rotary]
pairing = "adjacent"
share = 0.5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "layout.toml"
    path.write_text(text)
    return path


def test_a_layout_file_reads_a_checkpoint(tmp_path: Path) -> None:
    row = load(written(tmp_path, GOOD))
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8 * 6, 10)).astype(np.float32)
    tensors = {
        "model.blocks.3.mix.weight": w,
        "model.blocks.3.ln.weight": np.ones(10, np.float32),
        "model.blocks.3.qn.weight": np.full(6, 2, np.float32),
        "model.blocks.3.kn.weight": np.full(6, 3, np.float32),
    }
    (layer,) = attention_layers(from_state_dict(tensors, {"groups": 2}), layout=row)
    np.testing.assert_array_equal(layer.k[1], w[24:30])
    np.testing.assert_array_equal(layer.q[2], w[30:36])
    assert (layer.layer, layer.scale, layer.causal, layer.remarks) == (3, 0.5, True, ("a thing to know",))
    assert layer.rotary is not None
    assert layer.rotary.dims == 2
    assert layer.qk_norm is not None
    assert layer.qk_norm.q_gain is not None
    assert layer.qk_norm.q_gain.shape == (4, 6)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('[weights]\nq = "a.{}.q"\nk = "a.{}.k"', Separate),
        ('[weights]\nqkv = "a.{}.qkv"', Fused),
        ('[weights]\nq="a.{}.q"\nq_a="a.{}.qa"\nq_b="a.{}.qb"\nkv_a="a.{}.ka"\nkv_b="a.{}.kb"', Latent),
    ],
)
def test_the_three_ways_to_cut(text: str, kind: type, tmp_path: Path) -> None:
    assert isinstance(load(written(tmp_path, text)).weights, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"\[weights\] is missing"),
        ("[weights]\nq = 'a.{}.q'", "needs q, k"),
        ("[weights]\nqkv = 'a.{}.w'\nrun = 'rm -rf'", "no key run"),
        ("[weights]\nqkv = 3", "qkv is 3"),
        ("[weights]\nqkv = 'a.{}.w'\nunits = 0", "at least 1"),
        ("[weights]\nqkv = 'a.{}.w'\nunits = true", "units is True"),
        ("[weights]\nqkv = 'a.{}.w'\nparts = 'qq'", "each once"),
        ("[weights]\nqkv = 'a.{x}.w'", "is no pattern"),
        ("import = 'os'\n[weights]\nqkv = 'a.{}.w'", "no such key: import"),
        ("heads = 1.5\n[weights]\nqkv = 'a.{}.w'", "heads is 1.5"),
        ("causal = 'yes'\n[weights]\nqkv = 'a.{}.w'", "causal is 'yes'"),
        ("[weights]\nqkv = 'a.{}.w'\n[norm]\nkind = 'batch'", "kind is 'batch'"),
        ("norm = 'rms'\n[weights]\nqkv = 'a.{}.w'", r"\[norm\] must be a table"),
        ("[weights\n", "not valid TOML"),
        ("x = " + "[" * 5000, "TOML|nested"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        load(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="existing layout file"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(LayoutError, match="existing layout file"):
        load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LayoutError, match="not UTF-8"):
        load(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (1 << 21))
    with pytest.raises(LayoutError, match="larger than"):
        load(tmp_path / "huge")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            {"enc.0.mha.wq.weight": (24, 20), "enc.0.mha.wk.weight": (12, 20), "enc.0.pre_norm.weight": (20,)},
            'q = "enc.{}.mha.wq"',
        ),
        ({"enc.0.mha.to_qkv.weight": (60, 20)}, 'qkv = "enc.{}.mha.to_qkv"'),
        ({'a"]\n[x.0.q.weight': (4, 4), 'a"]\n[x.0.k.weight': (4, 4)}, "[weights]"),
        ({"x.weight": (4, 4)}, 'q = ""'),
    ],
)
def test_a_draft_is_a_layout_file(names: dict[str, tuple[int, ...]], expected: str, tmp_path: Path) -> None:
    checkpoint = from_state_dict({name: np.zeros(shape, np.float32) for name, shape in names.items()}, {"n_head": 4})
    text = draft(checkpoint)
    assert expected in text
    if 'q = ""' in text:
        with pytest.raises(LayoutError, match="is no pattern"):
            load(written(tmp_path, text))
    else:
        row = load(written(tmp_path, text))
        assert row.heads == ("n_head",)


def test_a_draft_of_a_readable_model_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"enc.{i}.mha.w{part}.weight": rng.standard_normal((24, 20)).astype(np.float32)
        for i in range(2)
        for part in "qk"
    }
    checkpoint = from_state_dict(tensors, {"n_head": 4})
    layers = list(attention_layers(checkpoint, layout=load(written(tmp_path, draft(checkpoint)))))
    assert [(layer.name, layer.heads, layer.d_q) for layer in layers] == [("enc.0.mha", 4, 6), ("enc.1.mha", 4, 6)]
