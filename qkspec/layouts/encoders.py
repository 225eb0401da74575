"""Rows of the table: models of text and sound that attend both ways, and pairs of encoder and decoder."""

from dataclasses import replace

from qkspec.layouts.facts import disentangled_scale, fixed
from qkspec.layouts.layout import Fused, InputNorm, Layout, RotaryRule, Separate

# fmt: off  (a row is read across, not down)
POST = InputNorm("encoder.layer.{}.output.LayerNorm", first="embeddings.LayerNorm")
BERT = Layout(
    "bert",
    ("bert", "bert-generation", "camembert", "roberta", "xlm-roberta", "data2vec-text", "electra", "ernie", "layoutlm", "markuplm",
     "roc_bert", "splinter", "mobilebert_", "dpr", "tapas", "visual_bert", "big_bird", "luke_", "canine_", "git", "ibert_"),
    Separate("encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.key"), full=True, kv_heads=(), head_dim=(),
    norm=POST, by_name=True,
)
EMBEDDED = ("encoder.layernorm_embedding", "decoder.layernorm_embedding")


def like_bert(name: str, *model_types: str, **facts: object) -> Layout:
    """Return BERT's row with another name and whatever else differs."""
    return replace(BERT, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


def pair(name: str, model_types: tuple[str, ...], *, post: bool, cross: str = "encoder_attn", first: tuple[str, str] = EMBEDDED, **facts: object) -> tuple[Layout, ...]:
    """Return the three rows of an encoder and a decoder with the names of BART.

    Args:
        name, model_types: as in Layout.
        cross: what the decoder calls its attention to the encoder.
        first: the norms that feed the first layer of each where ``post`` ("" where none does).
        post: whether the norms stand after attention and MLP (BART, Marian) or before them (mBART, Whisper).
        facts: what else differs, for all three.
    """
    rows, firsts = [], dict(zip(("encoder", "decoder"), first, strict=True))
    for block, side, attention in (("encoder.self", "encoder", "self_attn"), ("decoder.self", "decoder", "self_attn"), ("decoder.cross", "decoder", cross)):
        before = InputNorm(f"{side}.layers.{{}}.{attention}_layer_norm")
        after = InputNorm(f"{side}.layers.{{}}.final_layer_norm", first=firsts[side])
        other = attention == cross
        inside = InputNorm("decoder.layers.{}.self_attn_layer_norm") if other else after
        keys = InputNorm("encoder.layers.{}.final_layer_norm" if post else "encoder.layer_norm", last=True) if other else None
        row = Layout(
            name, model_types, Separate(f"{side}.layers.{{}}.{attention}.q_proj", f"{side}.layers.{{}}.{attention}.k_proj"), block,
            heads=(f"{side}_attention_heads", "num_attention_heads"), kv_heads=(), head_dim=(), full=not other,
            norm=inside if post else before, k_norm=keys, causal=block == "decoder.self",
        )
        rows.append(replace(row, **facts))  # type: ignore[arg-type]
    return tuple(rows)


def t5(name: str, model_types: tuple[str, ...], encoder: str = "SelfAttention") -> tuple[Layout, ...]:
    """Return the three rows of a T5: no scale, RMS norms, a learned bias by relative position."""
    bias = ("a bias by relative position is added",)
    common = Layout(name, model_types, Separate("q", "k"), kv_heads=(), scale=fixed(1.0), remarks=bias)
    rows = []
    for block, at, keys in (
        ("encoder.self", f"encoder.block.{{}}.layer.0.{encoder}", None),
        ("decoder.self", "decoder.block.{}.layer.0.SelfAttention", None),
        ("decoder.cross", "decoder.block.{}.layer.1.EncDecAttention", InputNorm("encoder.final_layer_norm", "rms", last=True)),
    ):
        norm = InputNorm(at.rpartition(".")[0] + ".layer_norm", "rms")
        rows.append(replace(common, weights=Separate(f"{at}.q", f"{at}.k"), block=block, norm=norm, k_norm=keys, causal=block == "decoder.self",
                            remarks=() if keys else bias))
    return tuple(rows)


ENCODERS = (
    BERT,
    like_bert("rembert", norm=replace(POST, first="")),
    like_bert("megatron-bert", norm=InputNorm("encoder.layer.{}.attention.ln")),
    like_bert("roberta-prelayernorm", norm=InputNorm("encoder.layer.{}.attention.LayerNorm")),
    like_bert("xlm-roberta-xl", norm=InputNorm("encoder.layer.{}.attention.self_attn_layer_norm")),
    like_bert("esm", norm=InputNorm("encoder.layer.{}.attention.LayerNorm"), rotary=RotaryRule(flag=("position_embedding_type", "rotary"))),
    like_bert("roformer", rotary=RotaryRule("adjacent")),
    like_bert("nystromformer", softmax=False, remarks=("the softmax is approximated by landmarks",)),
    like_bert("deberta", weights=Fused("encoder.layer.{}.attention.self.in_proj", units=None), scale=disentangled_scale,
              biases=("encoder.layer.{}.attention.self.q_bias", None), remarks=("content-position terms are added",)),
    like_bert("deberta-v2", weights=Separate("encoder.layer.{}.attention.self.query_proj", "encoder.layer.{}.attention.self.key_proj"),
              scale=disentangled_scale, remarks=("content-position terms are added",)),
    like_bert("mpnet", weights=Separate("encoder.layer.{}.attention.attn.q", "encoder.layer.{}.attention.attn.k"),
              remarks=("a bias by relative position is added",)),
    like_bert("albert", weights=Separate("encoder.albert_layer_groups.{}.albert_layers.{}.attention.query",
                                         "encoder.albert_layer_groups.{}.albert_layers.{}.attention.key"),
              norm=InputNorm("encoder.albert_layer_groups.{}.albert_layers.{}.full_layer_layer_norm"),
              remarks=("these weights are used by every layer of the group",)),
    like_bert("distilbert", weights=Separate("transformer.layer.{}.attention.q_lin", "transformer.layer.{}.attention.k_lin"),
              norm=InputNorm("transformer.layer.{}.output_layer_norm", first="embeddings.LayerNorm")),
    like_bert("modernbert", weights=Fused("layers.{}.attn.Wqkv"), norm=InputNorm("layers.{}.attn_norm", instead="embeddings.norm"), rotary=RotaryRule()),
    like_bert("modernbert-decoder", weights=Separate("layers.{}.attn.q_proj", "layers.{}.attn.k_proj"), norm=InputNorm("layers.{}.attn_norm", instead="embeddings.norm"),
              rotary=RotaryRule(), causal=True),
    like_bert("xlnet", weights=Separate("layer.{}.rel_attn.q", "layer.{}.rel_attn.k"), inputs_first=True, heads=("n_head", "num_attention_heads"),
              norm=InputNorm("layer.{}.ff.layer_norm", first=""), remarks=("content-position terms and their biases are added",)),
    # sound
    *(replace(BERT, name=kind, model_types=types, by_name=False, norm=norm, when={"do_stable_layer_norm": pre},
              weights=Separate("encoder.layers.{}.attention.q_proj", "encoder.layers.{}.attention.k_proj"))
      for kind, types in (("wav2vec2", ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "sew")), )
      for pre, norm in ((False, InputNorm("encoder.layers.{}.final_layer_norm", first="encoder.layer_norm")),
                        (True, InputNorm("encoder.layers.{}.layer_norm")))),
    # encoder and decoder
    *pair("bart", ("bart", "marian", "mvp", "plbart"), post=True),
    *pair("blenderbot-small", ("blenderbot-small",), post=True, first=("encoder.layernorm_embedding", "")),
    *pair("mbart", ("mbart", "pegasus", "blenderbot", "m2m_100", "speech_to_text", "whisper"), post=False),
    *pair("nllb-moe", ("nllb-moe",), post=False, cross="cross_attention"),
    *t5("t5", ("t5", "mt5", "umt5", "switch_transformers", "udop", "pop2piano", "longt5")),
)
# fmt: on

