"""Rows of the table: models of text and sound that attend both ways, and pairs of encoder and decoder."""

from dataclasses import replace

from qkspec.layouts.facts import disentangled_scale, fixed, from_key
from qkspec.layouts.layout import RAW, Fused, InputNorm, Layout, QKNormAt, RotaryRule, Separate

# A row is read across, not down.
# fmt: off
POST = InputNorm("encoder.layer.{}.output.LayerNorm", first="embeddings.LayerNorm")
BERT = Layout(
    "bert",
    ("bert", "bert-generation", "camembert", "roberta", "xlm-roberta", "data2vec-text", "electra", "ernie",
     "layoutlm", "markuplm", "roc_bert", "splinter", "dpr", "tapas", "visual_bert", "big_bird", "git", "ibert",
     "luke", "xmod", "chinese_clip_text_model", "clap_text_model", "align_text_model", "blip_text_model", "lilt",
     "longformer", "bridgetower_text_model", "altclip_text_model"),
    Separate("encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.key"),
    full=True, kv_heads=(), head_dim=(), norm=POST, by_name=True,
)
SAMPLED = ("only the queries with the most uneven logits attend; the others take the mean of all values",)
EMBEDDED = ("encoder.layernorm_embedding", "decoder.layernorm_embedding")
# fmt: on


def like_bert(name: str, *model_types: str, **facts: object) -> Layout:
    """Return BERT's row with another name and whatever else differs."""
    return replace(BERT, **{"name": name, "model_types": model_types or (name,), "by_name": False, **facts})  # type: ignore[arg-type]


def pair(
    name: str,
    model_types: tuple[str, ...],
    *,
    post: bool,
    cross: str = "encoder_attn",
    first: tuple[str, str] = EMBEDDED,
    keys: str = "encoder.layer_norm",
    **facts: object,
) -> tuple[Layout, ...]:
    """Return the three rows of an encoder and a decoder with the names of BART.

    Args:
        name: as in Layout.
        model_types: as in Layout.
        cross: what the decoder calls its attention to the encoder.
        first: the norms that feed the first layer of each where ``post`` ("" where none does).
        post: whether the norms stand after attention and MLP (BART, Marian) or before them (mBART, Whisper).
        keys: the norm at the end of the encoder, where not ``post``.
        facts: what else differs, for all three.
    """
    rows, firsts = [], dict(zip(("encoder", "decoder"), first, strict=True))
    for block, side, attention in (
        ("encoder.self", "encoder", "self_attn"),
        ("decoder.self", "decoder", "self_attn"),
        ("decoder.cross", "decoder", cross),
    ):
        before = InputNorm(f"{side}.layers.{{}}.{attention}_layer_norm")
        after = InputNorm(f"{side}.layers.{{}}.final_layer_norm", first=firsts[side])
        other = attention == cross
        inside = InputNorm("decoder.layers.{}.self_attn_layer_norm") if other else after
        fed = InputNorm("encoder.layers.{}.final_layer_norm" if post else keys, last=True) if other else None
        row = Layout(
            name,
            model_types,
            Separate(f"{side}.layers.{{}}.{attention}.q_proj", f"{side}.layers.{{}}.{attention}.k_proj"),
            block,
            heads=(f"{side}_attention_heads", "num_attention_heads"),
            kv_heads=(),
            head_dim=(),
            full=not other,
            norm=inside if post else before,
            k_norm=fed,
            causal=block == "decoder.self",
        )
        rows.append(replace(row, **facts))  # type: ignore[arg-type]
    return tuple(rows)


def t5(name: str, model_types: tuple[str, ...], encoder: str = "SelfAttention") -> tuple[Layout, ...]:
    """Return the three rows of a T5: no scale, RMS norms, a learned bias by relative position."""
    bias = ("a bias by relative position is added",)
    common = Layout(name, model_types, Separate("q", "k"), kv_heads=(), scale=fixed(1.0), remarks=bias, by_name=True)
    rows = []
    for block, at, keys in (
        ("encoder.self", f"encoder.block.{{}}.layer.0.{encoder}", None),
        ("decoder.self", "decoder.block.{}.layer.0.SelfAttention", None),
        (
            "decoder.cross",
            "decoder.block.{}.layer.1.EncDecAttention",
            InputNorm("encoder.final_layer_norm", "rms", last=True),
        ),
    ):
        norm = InputNorm(at.rpartition(".")[0] + ".layer_norm", "rms")
        side, kind = ("encoder", encoder) if block == "encoder.self" else ("decoder", "SelfAttention")
        counted = (f"{side}.block.0.layer.0.{kind}.relative_attention_bias", 1)
        rows.append(
            replace(
                common,
                weights=Separate(f"{at}.q", f"{at}.k"),
                block=block,
                norm=norm,
                k_norm=keys,
                heads_at=counted,
                causal=block == "decoder.self",
                remarks=() if keys else bias,
            )
        )
    return tuple(rows)


# fmt: off
ENCODERS = (
    BERT,
    like_bert("bert", *BERT.model_types, block="cross", full=False,
        norm=InputNorm("encoder.layer.{}.attention.output.LayerNorm"),
        weights=Separate("encoder.layer.{}.crossattention.self.query", "encoder.layer.{}.crossattention.self.key"),
        k_norm=RAW, unknown=("the keys come from another model",)),
    like_bert("layoutlmv3", norm=replace(POST, first="LayerNorm"), remarks=("a bias by place on the page is added",)),
    like_bert("altclip", "altclip_text_model", weights=Separate("encoder.layers.{}.attention.self.query",
        "encoder.layers.{}.attention.self.key"), norm=InputNorm("encoder.layers.{}.output.LayerNorm",
        first="embeddings.LayerNorm")),
    like_bert("bros", remarks=("terms by place on the page that depend on the query are added",)),
    like_bert("mobilebert", full=False, norm=None),
    *(like_bert("canine", weights=Separate(f"{at}.layer.{{}}.attention.self.query",
        f"{at}.layer.{{}}.attention.self.key"),
        block=block, norm=InputNorm(f"{at}.layer.{{}}.output.LayerNorm", first=first), remarks=remarks)
        for at, block, first, remarks in (("encoder", "self", "chars_to_molecules.LayerNorm", ()),
        ("initial_char_encoder", "chars.self", "char_embeddings.LayerNorm", ("attention stays within windows",)),
        ("final_char_encoder", "last.self", "projection.LayerNorm", ()))),
    *(like_bert("lxmert", weights=Separate(f"encoder.{at}.query", f"encoder.{at}.key"), block=block, norm=norm)
        for at, block, norm in (("layer.{}.attention.self", "self", POST), ("r_layers.{}.attention.self", "vision.self",
        InputNorm("encoder.r_layers.{}.output.LayerNorm", first="")), ("x_layers.{}.lang_self_att.self", "x.self",
        InputNorm("encoder.x_layers.{}.visual_attention.output.LayerNorm")), ("x_layers.{}.visn_self_att.self",
        "x.vision", InputNorm("encoder.x_layers.{}.visual_attention.output.LayerNorm")),
        ("x_layers.{}.visual_attention.att", "x.cross", None))),
    like_bert("funnel", full=False, weights=Separate("attention.q_head", "attention.k_head"), norm=None,
        heads=("n_head",), biases=("attention.r_w_bias", "attention.k_head.bias"),
        remarks=("terms by relative position that depend on the query are added",)),
    *(like_bert("perceiver", weights=Separate(f"encoder.{at}.attention.self.query", f"encoder.{at}.attention.self.key"),
        block=block, heads=(heads,), full=False, norm=InputNorm(f"encoder.{at}.attention.self.layernorm1"),
        k_norm=k_norm)
        for at, block, heads, k_norm in (("cross_attention", "cross", "num_cross_attention_heads",
        InputNorm("encoder.cross_attention.attention.self.layernorm2")),
        ("self_attends.{}", "self", "num_self_attention_heads", None))),
    like_bert("yoso", softmax=False, qk_norm=QKNormAt(None, None, "l2", flag="model_type"),
         remarks=("hashes of queries and keys that meet take the place of a softmax",)),
    like_bert("rembert", norm=replace(POST, first="")),
    like_bert("megatron-bert", norm=InputNorm("encoder.layer.{}.attention.ln")),
    like_bert("roberta-prelayernorm", norm=InputNorm("encoder.layer.{}.attention.LayerNorm")),
    like_bert("xlm-roberta-xl", norm=InputNorm("encoder.layer.{}.attention.self_attn_layer_norm")),
    like_bert("esm", norm=InputNorm("encoder.layer.{}.attention.LayerNorm"),
        rotary=RotaryRule(flag=("position_embedding_type", "rotary"))),
    like_bert("roformer", rotary=RotaryRule("adjacent")),
    like_bert("nystromformer", softmax=False, remarks=("the softmax is approximated by landmarks",)),
    like_bert("mra", softmax=False, remarks=("the softmax is approximated in blocks, most of them by their means",)),
    like_bert("deberta", weights=Fused("encoder.layer.{}.attention.self.in_proj", units=None), scale=disentangled_scale,
        remarks=("content-position terms are added",)),
    like_bert("deberta-v2", weights=Separate("encoder.layer.{}.attention.self.query_proj",
        "encoder.layer.{}.attention.self.key_proj"), scale=disentangled_scale,
        remarks=("content-position terms are added",)),
    like_bert("mpnet", weights=Separate("encoder.layer.{}.attention.attn.q", "encoder.layer.{}.attention.attn.k"),
        remarks=("a bias by relative position is added",)),
    like_bert("albert", weights=Separate("encoder.albert_layer_groups.{}.albert_layers.{}.attention.query",
        "encoder.albert_layer_groups.{}.albert_layers.{}.attention.key"),
        norm=InputNorm("encoder.albert_layer_groups.{}.albert_layers.{}.full_layer_layer_norm"),
        remarks=("these weights are used by every layer of the group",)),
    like_bert("distilbert", weights=Separate("transformer.layer.{}.attention.q_lin",
        "transformer.layer.{}.attention.k_lin"), norm=InputNorm("transformer.layer.{}.output_layer_norm",
        first="embeddings.LayerNorm")),
    like_bert("modernbert", weights=Fused("layers.{}.attn.Wqkv"), norm=InputNorm("layers.{}.attn_norm",
        instead="embeddings.norm"), rotary=RotaryRule()),
    like_bert("modernbert-decoder", weights=Separate("layers.{}.attn.q_proj", "layers.{}.attn.k_proj"),
        norm=InputNorm("layers.{}.attn_norm", instead="embeddings.norm"), rotary=RotaryRule(), causal=True),
    like_bert("xlnet", weights=Separate("layer.{}.rel_attn.q", "layer.{}.rel_attn.k"), inputs_first=True,
        heads=("n_head", "num_attention_heads"), norm=InputNorm("layer.{}.ff.layer_norm", first=""),
        remarks=("content-position terms and their biases are added",)),
    like_bert("convbert", head_ratio="head_ratio", full=False, remarks=("half of the mixing is done by convolutions",)),
    like_bert("squeezebert", norm=InputNorm("encoder.layers.{}.output.layernorm", first="embeddings.LayerNorm"),
        full=False, weights=Separate("encoder.layers.{}.attention.query", "encoder.layers.{}.attention.key",
        groups=("q_groups", "k_groups"))),
    like_bert("xlm", "xlm", "flaubert", weights=Separate("attentions.{}.q_lin", "attentions.{}.k_lin"),
        heads=("n_heads",), when={"pre_norm": False}, norm=InputNorm("layer_norm2.{}", first="layer_norm_emb")),
    like_bert("flaubert", weights=Separate("attentions.{}.q_lin", "attentions.{}.k_lin"), heads=("n_heads",),
        when={"pre_norm": True}, norm=InputNorm("layer_norm1.{}")),
    like_bert("nomic_bert", weights=Fused("encoder.layers.{}.attn.Wqkv"), full=False,
        norm=InputNorm("encoder.layers.{}.norm2", first="emb_ln"), rotary=RotaryRule()),
    like_bert("jina_embeddings_v3", weights=Fused("encoder.layers.{}.mixer.Wqkv"),
        norm=InputNorm("encoder.layers.{}.norm2", first="emb_ln"), rotary=RotaryRule()),
    like_bert("gte", weights=Fused("encoder.layer.{}.attention.qkv_proj"), norm=InputNorm("encoder.layer.{}.mlp_ln",
        first="embeddings.LayerNorm"), rotary=RotaryRule()),
    like_bert("nomic_bert", "nomic_bert", "jina_embeddings_v3", "gte", full=False, rotary=RotaryRule(),
        weights=Separate("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj"),
        norm=InputNorm("layers.{}.post_mlp_layernorm", first="embeddings.LayerNorm")),
    # sound
    like_bert("wav2vec2-conformer", "wav2vec2-conformer", "wav2vec2-bert",
        norm=InputNorm("encoder.layers.{}.self_attn_layer_norm"),
        weights=Separate("encoder.layers.{}.self_attn.linear_q", "encoder.layers.{}.self_attn.linear_k"),
        remarks=("terms by relative position may be added, with biases of their own",)),
    like_bert("audio_encoder", "qwen2_audio_encoder", "voxtral_encoder", "moss_transcribe_diarize_audio",
        "audioflamingo3_encoder",
        weights=Separate("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj"),
        norm=InputNorm("layers.{}.self_attn_layer_norm"), heads=("encoder_attention_heads", "num_attention_heads")),
    *(replace(BERT, name=kind, model_types=types, by_name=False, norm=norm, when={"do_stable_layer_norm": pre},
        weights=Separate("encoder.layers.{}.attention.q_proj", "encoder.layers.{}.attention.k_proj")) for kind,
        types in (("wav2vec2", ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "sew",
        "wavlm")),) for pre, norm in ((False, InputNorm("encoder.layers.{}.final_layer_norm",
        first="encoder.layer_norm")), (True, InputNorm("encoder.layers.{}.layer_norm")))),
    # encoder and decoder
    *pair("bart", ("bart", "marian", "mvp", "plbart"), post=True),
    *pair("blenderbot-small", ("blenderbot-small",), post=True, first=("encoder.layernorm_embedding", "")),
    *pair("mbart", ("mbart", "pegasus", "blenderbot", "m2m_100", "speech_to_text", "whisper"), post=False),
    *pair("nllb-moe", ("nllb-moe",), post=False, cross="cross_attention"),
    *pair("pegasus_x", ("pegasus_x",), post=False),
    *pair("led", ("led",), post=True)[1:],
    like_bert("led", weights=Separate("encoder.layers.{}.self_attn.longformer_self_attn.query",
        "encoder.layers.{}.self_attn.longformer_self_attn.key"), block="encoder.self",
        heads=("encoder_attention_heads",), norm=InputNorm("encoder.layers.{}.final_layer_norm",
        first="encoder.layernorm_embedding"), remarks=("tokens attend to a window, chosen ones to all",)),
    *pair("bigbird_pegasus", ("bigbird_pegasus",), post=False, keys="encoder.layernorm_embedding")[1:],
    like_bert("bigbird_pegasus", weights=Separate("encoder.layers.{}.self_attn.self.query",
        "encoder.layers.{}.self_attn.self.key"), block="encoder.self", heads=("encoder_attention_heads",),
        norm=InputNorm("encoder.layers.{}.self_attn_layer_norm")),
    # between its layers that distil, a convolution and a pooling take the place of the norm
    *(replace(row, when={"attention_type": kind, "distil": distil}, remarks=SAMPLED if kind == "prob" else (),
        norm=None if distil and row.block == "encoder.self" else row.norm)
        for kind in ("prob", "full") for distil in (True, False)
        for row in pair("informer", ("informer",), post=True)[:2]),
    *pair("informer", ("informer",), post=True)[2:],
    *pair("fsmt", ("fsmt",), post=True, first=("", "")),
    *(replace(row, k_norm=RAW, unknown=("the keys come from another model",)) if row.k_norm else row
        for row in pair("trocr", ("trocr",), post=True, first=("", "decoder.layernorm_embedding"))[1:]),
    *(like_bert("pp_formulanet", "pp_formulanet_text", weights=Separate(f"layers.{{}}.{at}.q_proj",
        f"layers.{{}}.{at}.k_proj"), block=block, heads=("decoder_attention_heads",), causal=block == "self",
        norm=InputNorm(f"layers.{{}}.{at}_layer_norm"), k_norm=k_norm) for at, block, k_norm in (
        ("self_attn", "self", None), ("encoder_attn", "cross", RAW))),
    *(like_bert("prophetnet", full=False, weights=Separate(f"{at}.query_proj", f"{at}.key_proj"), block=block,
        heads=("num_{side}_attention_heads",), norm=norm, k_norm=k_norm) for at, block, norm, k_norm in (
        ("encoder.layers.{}.self_attn", "encoder.self", InputNorm("encoder.layers.{}.feed_forward_layer_norm",
        first="encoder.embeddings_layer_norm"), None),
        ("decoder.layers.{}.cross_attn", "decoder.cross", InputNorm("decoder.layers.{}.self_attn_layer_norm"),
        InputNorm("encoder.layers.{}.feed_forward_layer_norm", last=True)))),
    *(Layout("t5gemma", ("t5gemma", "t5_gemma_module"), Separate(f"{side}.layers.{{}}.{attention}.q_proj",
        f"{side}.layers.{{}}.{attention}.k_proj"), block,
        norm=InputNorm(f"{side}.layers.{{}}.pre_{attention}_layernorm", "rms", 1.0),
        scale=from_key("query_pre_attn_scalar", -0.5), k_norm=InputNorm("encoder.norm", "rms", 1.0,
        last=True) if attention == "cross_attn" else None, rotary=RotaryRule() if attention == "self_attn" else None,
        softcap="attn_logit_softcapping", causal=block == "decoder.self") for block, side,
        attention in (("encoder.self", "encoder", "self_attn"), ("decoder.self", "decoder", "self_attn"),
        ("decoder.cross", "decoder", "cross_attn"))),
    *t5("longt5", ("longt5",), "LocalSelfAttention")[:1],
    replace(t5("longt5", ("longt5",), "TransientGlobalSelfAttention")[0],
        unknown=("norm of the summaries of blocks, which are keys as well",)),
    *t5("t5", ("t5", "mt5", "umt5", "switch_transformers", "longt5", "udop", "pop2piano")),
)
# fmt: on
