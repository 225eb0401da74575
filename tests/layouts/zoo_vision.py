"""The architectures of the conformance suite that see, hear or join what was seen and heard with text, one line each.

Most run layer by layer: what stands before their layers is convolutions of every kind, which no test needs.
"""

from __future__ import annotations

from typing import Any

import torch
from layouts.tiny import Case, Out

X = (6, 8, 32)
WIDE = (10, 8, 64)
TOKEN = (48, 1, 32)
FLAT = (48, 32)
LENGTHS = torch.tensor([0, 48], dtype=torch.int32)
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8] * 4,
    "depths": [1] * 4,
    "out_features": ["stage4"],
}
DETR = {"backbone_config": RESNET}
RT = {
    "backbone_config": {**RESNET, "model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]},
    "encoder_in_channels": [8] * 3,
    "encoder_hidden_dim": 32,
    "decoder_in_channels": [32] * 3,
    "num_queries": 6,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "encoder_ffn_dim": 32,
    "d_model": 32,
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1] * 4,
    "num_heads": [1, 2, 2, 2],
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
WORDS = torch.arange(6, 54).view(48, 1)
BARK = ("semantic", "coarse_acoustics", "fine_acoustics")
BARK_SIZES = {
    **{f"{at}_config.{key}": 40 for at in BARK for key in ("input_vocab_size", "output_vocab_size")},
    **{f"{at}_config.block_size": 16 for at in BARK},
    "codec_config.num_filters": 2,
    "codec_config.hidden_size": 8,
    "codec_config.codebook_dim": 8,
}
MIMI = {
    "hidden_size": 64,
    "num_filters": 8,
    "upsample_groups": 64,
    "codebook_size": 8,
    "codebook_dim": 8,
    "num_quantizers": 8,
    "vector_quantization_hidden_dimension": 8,
}
SOUND = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SEAMLESS = {
    **{f"{at}_attention_heads": 4 for at in ("speech_encoder", "encoder", "decoder", "t2u_encoder", "t2u_decoder")},
    **{f"{at}_layers": 1 for at in ("speech_encoder", "encoder", "decoder", "t2u_encoder", "t2u_decoder")},
    "speech_encoder_intermediate_size": 32,
    "t2u_vocab_size": 40,
    "unit_hifi_gan_vocab_size": 40,
    "upsample_initial_channel": 64,
    "unit_embed_dim": 8,
    "lang_embed_dim": 4,
    "spkr_embed_dim": 4,
    "num_adapter_layers": 1,
    "vocoder_offset": 4,
}
RESAMPLER = {"resampler_n_heads": 4, "resampler_head_dim": 8, "num_key_value_heads": 2}
POINTS = (12, 1, 8, 32)
PVT = {
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "num_attention_heads": [1, 4],
    "num_encoder_blocks": 2,
    "sr_ratios": [1, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [1, 1],
    "decoder_hidden_size": 8,
}
ONE = {"query": (1, 48, 32), "key": (1, 48, 32), "value": (1, 48, 32)}
SAM2 = {
    f"vision_config.{key}": value
    for key, value in {
        "backbone_config.embed_dim_per_stage": [8, 16, 16, 16],
        "backbone_config.hidden_size": 8,
        "backbone_config.blocks_per_stage": [1, 2, 1, 1],
        "backbone_config.num_attention_heads_per_stage": [1, 2, 2, 2],
        "backbone_config.global_attention_blocks": [3],
        "backbone_channel_list": [16, 16, 16, 8],
        "fpn_hidden_size": 32,
    }.items()
}


def still(*shape: int) -> list[torch.Tensor]:
    """Return the cosine and sine of no rotation."""
    return [torch.ones(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64)]


def layers(path: str, count: int, **feed: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return the layers path.0, path.1, ..., each fed with what the one before gave; the first input is the stream."""
    stream = next(iter(feed))
    return tuple((f"{path}.{i}", feed | ({stream: Out(f"{path}.{i - 1}")} if i else {})) for i in range(count))


def heads(*paths: str, **feed: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return attention modules that are run by themselves, without the norms around them."""
    return tuple((path, feed) for path in paths)


def parts(name: str, *also: tuple[tuple[str, dict[str, Any]], ...], **facts: Any) -> Case:
    """Return the case of a model of which only parts are run."""
    return Case(name, also=sum(also, ()), whole=False, turn="", **facts)


def bridge(layer: int, mine: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return a layer of BridgeTower for each side, fed with what stands in front of it on both."""
    return tuple(
        (
            f"cross_modal_{side}_layers.{layer}",
            {
                "hidden_states": Out(f"cross_modal_{side}_{mine}"),
                "encoder_hidden_states": Out(f"cross_modal_{other}_{mine}"),
            },
        )
        for side, other in (("text", "image"), ("image", "text"))
    )


SAM3 = (
    layers("geometry_encoder.layers", 2, prompt_feats=X, vision_feats=X, vision_pos_encoding=X, prompt_mask=None),
    layers("detr_encoder.layers", 2, vision_feats=X, prompt_feats=X, vision_pos_encoding=X),
    heads(
        *(
            f"detr_decoder.layers.{i}.{at}"
            for i in range(2)
            for at in ("self_attn", "text_cross_attn", "vision_cross_attn")
        ),
        "mask_decoder.prompt_cross_attn",
        query=X,
        key=X,
        value=X,
    ),
)

CASES = (
    # towers that see
    parts("radio", layers("encoder.layer", 2, hidden_states=X), changes={"max_img_size": 16, "cpe_max_size": 16}),
    parts("tipsv2_vision_model", layers("encoder.layer", 2, hidden_states=X)),
    parts("tipsv2_text_model", layers("encoder.layers", 2, hidden_states=X, attention_mask=None)),
    parts("eomt", layers("layers", 2, hidden_states=X), auto="AutoModelForUniversalSegmentation"),
    parts("videomt", layers("layers", 2, hidden_states=X), auto="AutoModelForUniversalSegmentation"),
    parts(
        "eomt_dinov3",
        layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 8)),
        auto="AutoModelForUniversalSegmentation",
    ),
    parts("pixio", layers("layers", 2, hidden_states=X)),
    parts("qianfan_ocr_vision", layers("layers", 2, hidden_states=X)),
    parts("ovis2_vision", layers("transformer.encoder.layers", 2, hidden_states=X), auto="Ovis2VisionModel"),
    parts("kosmos_2_5_vision_model", layers("layer", 2, hidden_states=X), auto="Kosmos2_5VisionEncoder"),
    parts("pix2struct_vision_model", layers("encoder.layer", 2, hidden_states=X), auto="Pix2StructVisionModel"),
    parts(
        "unlimited_ocr_vision_encoder",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None),
        auto="UnlimitedOcrVisionEncoder",
    ),
    parts(
        "cosmos3_edge_vision",
        layers("encoder.layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS),
        auto="Cosmos3EdgeVisionModel",
    ),
    parts("mlcd_vision_model", layers("encoder.layers", 2, hidden_states=X, position_embeddings=still(8, 8))),
    parts(
        "paddleocr_vl_vision",
        layers("encoder.layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(48, 8)),
        auto="PaddleOCRVisionTransformer",
    ),
    parts(
        "video_llama_3_vision",
        layers("encoder.layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(48, 8)),
    ),
    parts("molmo2_vision", layers("layers", 2, hidden_states=X, attention_mask=None), auto="Molmo2VisionModel"),
    *(
        parts(kind, layers("layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(1, 48, 8)))
        for kind in ("muse_spark_vision", "muse_glimmer_vision")
    ),
    parts(
        "qwen2_5_omni_vision_encoder",
        layers("blocks", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(48, 8)),
        auto="Qwen2_5OmniVisionEncoder",
    ),
    # detectors
    parts(
        "detr",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None),
        layers("decoder.layers", 2, hidden_states=X, encoder_hidden_states=Out("encoder.layers.1")),
        changes=DETR,
    ),
    *(
        parts(
            kind,
            layers("encoder.aifi.0.layers", 2, hidden_states=X, attention_mask=None),
            (
                ("decoder.layers.0.self_attn", {"hidden_states": X}),
                ("decoder.layers.1.self_attn", {"hidden_states": X}),
            ),
            changes=RT,
            norms=False,
        )
        for kind in ("rt_detr", "rt_detr_v2", "pp_doclayout_v3")
    ),
    # towers that hear
    *(
        parts(kind, layers("layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS), auto=auto, changes=changes)
        for kind, auto, changes in (
            ("qwen2_5_omni_audio_encoder", "Qwen2_5OmniAudioEncoder", {}),
            ("qwen3_asr_encoder", "AutoModel", {"downsample_hidden_size": 8}),
            ("qwen3_omni_moe_audio_encoder", "Qwen3OmniMoeAudioEncoder", {"downsample_hidden_size": 8}),
        )
    ),
    parts("glmasr_encoder", layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 8))),
    parts("voxtral_realtime_encoder", layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 16))),
    *(
        parts(kind, layers("layers", 2, hidden_states=X, position_embeddings=(6, 15, 32)), zero=("bias_u",))
        for kind in ("parakeet_encoder", "nemotron_asr_streaming_encoder")
    ),
    parts("lasr_encoder", layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 8))),
    parts("moonshine_streaming_encoder", layers("layers", 2, hidden_states=X), auto="MoonshineStreamingEncoder"),
    parts(
        "rf_detr",
        layers("backbone.backbone.encoder.layer", 2, hidden_states=X),
        (("decoder.layers.0.self_attn", {"hidden_states": X}), ("decoder.layers.1.self_attn", {"hidden_states": X})),
        norms=False,
    ),
    parts(
        "lw_detr",
        layers("backbone.backbone.encoder.layer", 2, hidden_states=X),
        (("decoder.layers.0.self_attn", {"hidden_states": X}), ("decoder.layers.1.self_attn", {"hidden_states": X})),
        norms=False,
        changes={"backbone_config.image_size": 32, "backbone_config.num_windows": 4},
    ),
    parts(
        "table-transformer",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None, object_queries=X),
        layers(
            "decoder.layers", 2, hidden_states=X, object_queries=X, query_position_embeddings=X, encoder_hidden_states=X
        ),
        changes=DETR,
        norms=False,
    ),
    parts(
        "conditional_detr",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None),
        tuple(
            (f"decoder.layers.{i}.self_attn", {"hidden_states": X, "query_position_embeddings": X}) for i in range(2)
        ),
        (
            (
                "decoder.layers.0.encoder_attn",
                {
                    "hidden_states": X,
                    "encoder_hidden_states": X,
                    "query_sine_embed": X,
                    "encoder_position_embeddings": X,
                    "query_position_embeddings": X,
                },
            ),
            (
                "decoder.layers.1.encoder_attn",
                {
                    "hidden_states": X,
                    "encoder_hidden_states": X,
                    "query_sine_embed": X,
                    "encoder_position_embeddings": X,
                },
            ),
        ),
        changes=DETR,
        zero=("pos_proj", "sine_proj"),
        norms=False,
    ),
    parts(
        "dab-detr",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None, object_queries=X),
        layers(
            "decoder.layers",
            2,
            hidden_states=X,
            object_queries=X,
            query_position_embeddings=X,
            query_sine_embed=X,
            encoder_hidden_states=Out("encoder.layers.1"),
        ),
        changes=DETR,
        zero=("pos_proj", "sine_proj"),
        norms=False,
    ),
    parts(
        "deformable_detr",
        tuple((f"decoder.layers.{i}.self_attn", {"hidden_states": X}) for i in range(2)),
        changes={**DETR, "num_feature_levels": 1},
        norms=False,
    ),
    parts(
        "idefics",
        layers("vision_model.encoder.layers", 2, hidden_states=X, attention_mask=None),
        heads(
            *("layers.0.self_attn", "layers.1.self_attn"),
            hidden_states=X,
            position_ids=torch.zeros(6, 8, dtype=torch.long),
        ),
        heads(
            *("gated_cross_attn_layers.0.cross_attn", "gated_cross_attn_layers.1.cross_attn"),
            hidden_states=X,
            key_value_states=X,
        ),
        norms=False,
    ),
    parts("clvp_decoder", layers("layers", 2, hidden_states=X), auto="ClvpDecoder"),
    parts(
        "musicgen_decoder with text",
        layers("layers", 2, hidden_states=X, encoder_hidden_states=X),
        auto="MusicgenDecoder",
    ),
    parts("canary_decoder", layers("layers", 2, hidden_states=X, encoder_hidden_states=X), auto="CanaryDecoder"),
    parts("dia_encoder", layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 16)), auto="DiaEncoder"),
    parts(
        "speecht5",
        heads("encoder.wrapped_encoder.layer_norm", input=X),
        (("encoder.wrapped_encoder.layers.0", {"hidden_states": Out("encoder.wrapped_encoder.layer_norm")}),),
        (("encoder.wrapped_encoder.layers.1", {"hidden_states": Out("encoder.wrapped_encoder.layers.0")}),),
        layers(
            "decoder.wrapped_decoder.layers",
            2,
            hidden_states=X,
            encoder_hidden_states=Out("encoder.wrapped_encoder.layers.1"),
        ),
    ),
    parts(
        "time_series_transformer",
        heads("encoder.layernorm_embedding", "decoder.layernorm_embedding", input=X),
        (("encoder.layers.0", {"hidden_states": Out("encoder.layernorm_embedding"), "attention_mask": None}),),
        (("encoder.layers.1", {"hidden_states": Out("encoder.layers.0"), "attention_mask": None}),),
        *(
            ((f"decoder.layers.{i}", {"hidden_states": Out(before), "encoder_hidden_states": Out("encoder.layers.1")}),)
            for i, before in enumerate(("decoder.layernorm_embedding", "decoder.layers.0"))
        ),
        changes={"prediction_length": 4, "context_length": 8},
    ),
    parts("patchtst", layers("encoder.layers", 2, hidden_state=(6, 2, 4, 32))),
    parts("timesfm", layers("layers", 2, hidden_states=X, attention_mask=None, paddings=None)),
    parts("timesfm2_5", layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 16)), zero=("scaling",)),
    parts(
        "perceiver",
        (
            ("encoder.cross_attention.attention", {"hidden_states": X, "inputs": X}),
            *((f"encoder.self_attends.{i}.attention", {"hidden_states": X}) for i in range(2)),
        ),
        inside=("layernorm1", "layernorm2"),
        changes={
            "d_latents": 32,
            "d_model": 32,
            "num_latents": 8,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_cross_attention_heads": 4,
            "num_self_attention_heads": 4,
        },
    ),
    parts(
        "prophetnet",
        layers("encoder.layers", 2, hidden_states=X, attention_mask=None),
        tuple((f"decoder.layers.{i}.cross_attn", {"hidden_states": X, "key_value_states": X}) for i in range(2)),
        unrun=2,
        norms=False,
        changes={
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
        },
    ),
    parts(
        "trocr",
        heads("model.decoder.layernorm_embedding", input=X),
        *(
            ((f"model.decoder.layers.{i}", {"hidden_states": Out(before), "encoder_hidden_states": X}),)
            for i, before in enumerate(("model.decoder.layernorm_embedding", "model.decoder.layers.0"))
        ),
        auto="AutoModelForCausalLM",
    ),
    parts(
        "pp_formulanet_text",
        layers("layers", 2, hidden_states=X, encoder_hidden_states=X),
        auto="PPFormulaNetTextModel",
    ),
    parts(
        "udop",
        *(
            tuple(
                (f"{at}.{i}.layer.{j}", {"hidden_states": X, **({"key_value_states": X} if j else {})})
                for i in range(2)
                for j in range(count)
            )
            for at, count in (("encoder.block", 1), ("decoder.block", 2))
        ),
        norms=False,
    ),
    parts(
        "moonshine",
        layers("encoder.layers", 2, hidden_states=X, position_embeddings=still(1, 8, 4)),
        layers("decoder.layers", 2, hidden_states=X, encoder_hidden_states=X, position_embeddings=still(1, 8, 4)),
        norms=False,
        changes={"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2},
    ),
    parts(
        "minimax_m3_vl_vision",
        tuple(
            (
                f"layers.{i}.self_attn",
                {"hidden_states": FLAT, "cu_seqlens": LENGTHS, "position_embeddings": still(48, 8)},
            )
            for i in range(2)
        ),
        auto="MiniMaxM3VLVisionModel",
        norms=False,
    ),
    parts(
        "lxmert",
        layers("encoder.layer", 2, hidden_states=X),
        layers("encoder.r_layers", 1, hidden_states=X),
        (
            (
                "encoder.x_layers.0",
                {"lang_feats": X, "lang_attention_mask": None, "visual_feats": X, "visual_attention_mask": None},
            ),
        ),
        changes={"l_layers": 2, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8, "num_qa_labels": 4},
        norms=False,
    ),
    parts("blip_2_qformer", layers("encoder.layer", 2, hidden_states=X, encoder_hidden_states=X, query_length=8)),
    *(
        parts(kind, layers("encoder.layer", 2, hidden_states=X, encoder_hidden_states=X, query_length=8), auto=auto)
        for kind, auto in (
            ("instructblip_qformer", "InstructBlipQFormerModel"),
            ("instructblipvideo_qformer", "InstructBlipVideoQFormerModel"),
        )
    ),
    parts(
        "chameleon_vqgan",
        (("encoder.mid.attn_1", {"hidden_states": (48, 32, 1, 1)}),),
        auto="ChameleonVQVAE",
        changes={"base_channels": 32, "channel_multiplier": [1, 1], "embed_dim": 8, "num_embeddings": 8},
    ),
    parts(
        "janus_vqgan",
        heads(
            "encoder.mid.attn_1",
            "decoder.mid.attn_1",
            "encoder.down.1.attn.0",
            "encoder.down.1.attn.1",
            *(f"decoder.up.0.attn.{i}" for i in range(3)),
            hidden_states=(48, 32, 1, 1),
        ),
        auto="JanusVQVAE",
        changes={"base_channels": 32, "channel_multiplier": [1, 1], "embed_dim": 8, "num_embeddings": 8},
    ),
    parts(
        "superglue",
        tuple((f"gnn.layers.{i}.attention", {"hidden_states": X}) for i in range(2)),
        auto="AutoModelForKeypointMatching",
        changes={"hidden_size": 32, "gnn_layers_types": ["self", "cross"], "keypoint_encoder_sizes": [8, 8]},
    ),
    parts(
        "lightglue",
        heads("transformer_layers.0.self_attention", hidden_states=X, position_embeddings=still(1, 8, 8)),
        heads("transformer_layers.0.cross_attention", hidden_states=X),
        changes={"descriptor_dim": 32, "num_hidden_layers": 1},
    ),
    *(
        parts(
            kind,
            heads("encoder.aifi.0.layers.0.self_attn", "encoder.aifi.0.layers.1.self_attn", hidden_states=X),
            heads("decoder.layers.0.self_attn", "decoder.layers.1.self_attn", hidden_states=X),
            changes={**RT, "head_dim": 8},
            norms=False,
        )
        for kind in ("d_fine", "deimv2")
    ),
    parts(
        "pp_doclayout_v2",
        heads("model.encoder.aifi.0.layers.0.self_attn", "model.encoder.aifi.0.layers.1.self_attn", hidden_states=X),
        heads("model.decoder.layers.0.self_attn", "model.decoder.layers.1.self_attn", hidden_states=X),
        auto="AutoModelForObjectDetection",
        changes=RT,
        norms=False,
        unrun=2,
    ),
    parts(
        "mask2former",
        heads("transformer_module.decoder.layers.0.cross_attn", **ONE),
        heads(
            "transformer_module.decoder.layers.0.self_attn", hidden_states=(1, 48, 32), position_embeddings=(1, 48, 32)
        ),
        changes={"backbone_config": SWIN, "feature_size": 32, "mask_feature_size": 32, "decoder_layers": 2},
        unrun=4,
        norms=False,
    ),
    parts(
        "maskformer",
        layers("transformer_module.decoder.layers", 2, hidden_states=X, encoder_hidden_states=X),
        changes={"backbone_config": SWIN, "fpn_feature_size": 32, "mask_feature_size": 32},
        unrun=4,
    ),
    parts(
        "oneformer",
        heads(
            "transformer_module.decoder.layers.0.cross_attn.multihead_attn",
            *(
                f"transformer_module.decoder.query_transformer.decoder.layers.{i}.{at}"
                for i in range(2)
                for at in ("self_attn", "multihead_attn")
            ),
            **ONE,
        ),
        heads(
            "transformer_module.decoder.layers.0.self_attn.self_attn",
            hidden_states=(1, 48, 32),
            position_embeddings=(1, 48, 32),
        ),
        changes={"backbone_config": SWIN, "conv_dim": 32, "mask_dim": 32, "query_dec_layers": 2, "decoder_layers": 2},
        unrun=4,
        norms=False,
    ),
    *(
        parts(
            kind,
            heads(
                *(f"encoder.layers.{i}.text_enhancer_layer.self_attn" for i in range(2)),
                *(f"decoder.layers.{i}.{at}" for i in range(2) for at in ("self_attn", "encoder_attn_text")),
                queries=X,
                keys=X,
                values=X,
            ),
            heads("encoder.layers.0.fusion_layer", "encoder.layers.1.fusion_layer", vision_features=X, text_features=X),
            changes={"backbone_config": SWIN, "num_feature_levels": 1},
            unrun=6,
            norms=False,
        )
        for kind in ("grounding-dino", "mm-grounding-dino")
    ),
    # segment anything
    *(
        parts(
            kind,
            heads(
                *(
                    f"mask_decoder.transformer.layers.{i}.{at}"
                    for i in range(2)
                    for at in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
                ),
                "mask_decoder.transformer.final_attn_token_to_image",
                query=POINTS,
                key=POINTS,
                value=POINTS,
            ),
            *(
                (
                    heads(
                        "memory_attention.layers.0.self_attn",
                        "memory_attention.layers.1.self_attn",
                        query=POINTS,
                        key=POINTS,
                        value=POINTS,
                        position_embeddings=still(8, 32),
                    ),
                    heads(
                        "memory_attention.layers.0.cross_attn_image",
                        "memory_attention.layers.1.cross_attn_image",
                        query=POINTS,
                        key=(12, 1, 8, 64),
                        value=(12, 1, 8, 64),
                        position_embeddings=still(8, 32),
                    ),
                )
                if "video" in kind
                else ()
            ),
            changes={
                **changes,
                **({"memory_attention_hidden_size": 32, "memory_attention_num_layers": 2} if "video" in kind else {}),
            },
            unrun=unrun,
            norms=False,
        )
        for kind, unrun, changes in (
            ("sam", 2, {"vision_config.output_channels": 32}),
            ("sam_hq", 2, {"vision_config.output_channels": 32}),
            ("sam2", 5, SAM2),
            ("sam2_video", 5, SAM2),
            ("sam3_tracker", 2, {}),
            (
                "sam3_tracker_video",
                2,
                {"vision_config.fpn_hidden_size": 32, "memory_attention_feed_forward_hidden_size": 32},
            ),
        )
    ),
    parts(
        "sam2_hiera_det_model",
        heads("blocks.0", hidden_states=(2, 8, 8, 8)),
        heads("blocks.2", hidden_states=(6, 4, 4, 16)),
        changes={key.split(".")[2]: size for key, size in SAM2.items() if "backbone_config." in key},
        unrun=3,
    ),
    parts(
        "sam3",
        *SAM3,
        layers("text_encoder.text_model.encoder.layers", 2, hidden_states=X, attention_mask=None),
        unrun=2,
        norms=False,
    ),
    # pyramids
    Case(
        "groupvit_vision_model",
        {"depths": [1, 1, 1], "num_group_tokens": [8, 8, 0], "num_output_groups": [8, 8, 0]},
        auto="GroupViTVisionModel",
        batch=24,
    ),
    Case("glpn", PVT, feed={"pixel_values": (8, 3, 32, 32)}),
    Case("pvt_v2", PVT, feed={"pixel_values": (8, 3, 32, 32)}),
    Case(
        "cvt",
        {
            "embed_dim": [16],
            "num_heads": [2],
            "depth": [2],
            "cls_token": [True],
            "patch_sizes": [3],
            "patch_stride": [2],
            "patch_padding": [1],
            "stride_kv": [1],
        },
        feed={"pixel_values": (48, 3, 8, 8)},
        every=17,
    ),
    Case(
        "levit",
        {
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "image_size": 16,
            "key_dim": [8, 8, 8],
            "patch_size": 16,
            "num_channels": 3,
            "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]],
        },
        feed={"pixel_values": (48, 3, 16, 16)},
    ),
    Case(
        "florence_vision",
        {
            "embed_dim": [16, 32],
            "depths": [1, 1],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "patch_size": [3, 3],
            "patch_stride": [2, 1],
            "patch_padding": [1, 1],
            "patch_prenorm": [False, True],
            "window_size": 8,
            "drop_path_rate": 0.0,
        },
        auto="Florence2VisionBackbone",
        feed={"hidden_states": (8, 3, 16, 16), "pixel_values": None},
    ),
    Case(
        "mobilevit",
        {"hidden_sizes": [8, 16, 16], "neck_hidden_sizes": [8] * 7, "image_size": 64},
        feed={"pixel_values": (8, 3, 64, 64)},
    ),
    Case(
        "vjepa2",
        {"crop_size": 16, "frames_per_clip": 2, "hidden_size": 24, "num_attention_heads": 2, "pred_hidden_size": 24}
        | {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        feed={"pixel_values_videos": (48, 2, 3, 16, 16), "skip_predictor": True, "pixel_values": None},
        every=16,
        unrun=1,
    ),
    Case(
        "maskformer-swin", {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "patch_size": 2, "window_size": 4}
    ),
    parts(
        "sapiens2",
        layers("model.layer", 2, hidden_states=X, position_embeddings=still(1, 8, 8)),
        changes={"num_key_value_heads_per_layer": [4, 2]},
    ),
    parts("bark", *(layers(f"{at}.layers", 2, hidden_states=X) for at in BARK), changes=BARK_SIZES),
    parts(
        "tvp",
        layers("encoder.layer", 2, hidden_states=X),
        changes={**DETR, "max_img_size": 16, "visual_prompt_size": 2},
    ),
    parts(
        "inkling2_vision",
        layers("layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(48, 8)),
        changes={"text_hidden_size": 32, "projector_hidden_size": 32},
    ),
    parts(
        "pp_formulanet_vision",
        layers("layers", 2, hidden_states=(6, 4, 4, 32)),
        auto="PPFormulaNetVisionModel",
        changes={
            "output_channels": 8,
            "post_conv_mid_channels": 8,
            "post_conv_out_channels": 8,
            "window_size": 0,
            "global_attn_indexes": [0, 1],
        },
        zero=("rel_pos",),
    ),
    parts(
        "unlimited_ocr_sam_vision_model",
        layers("layers", 2, hidden_states=(6, 4, 4, 32)),
        auto="UnlimitedOcrSamVisionEncoder",
        changes={"output_channels": 8, "downsample_channels": [8, 8], "window_size": 0, "global_attn_indexes": [0, 1]},
        zero=("rel_pos",),
    ),
    parts(
        "dia_decoder",
        layers("layers", 2, hidden_states=X, encoder_hidden_states=X, position_embeddings=still(1, 8, 16)),
        auto="DiaDecoder",
        changes={
            "cross_hidden_size": 32,
            "cross_num_attention_heads": 4,
            "cross_num_key_value_heads": 4,
            "cross_head_dim": 8,
        },
    ),
    parts(
        "kimi_k25_vision",
        layers("layers", 2, hidden_states=FLAT, cu_seqlens=LENGTHS, position_embeddings=still(48, 8)),
    ),
    *(
        parts(
            kind,
            layers(
                "encoder.layers", 2, hidden_states=(1, 48, 32), attention_mask=None, cu_seqlens=LENGTHS, max_seqlen=48
            ),
            (("vit_merger.self_attn", {"hidden_states": (1, 48, 32), "cu_seqlens": LENGTHS, "max_seqlen": 48}),),
            auto=auto,
            norms=False,
        )
        for kind, auto in (
            ("minicpmv4_6_vision", "MiniCPMV4_6VisionModel"),
            ("minicpm_ocr_vision", "AutoModel"),
            ("minicpmv4_7_vision", "AutoModel"),
        )
    ),
    Case(
        "clap_audio_model",
        {
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "num_hidden_layers": 2,
            "spec_size": 32,
            "num_mel_bins": 8,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": [4, 4],
        },
        auto="ClapAudioModel",
        feed={"input_features": (8, 1, 32, 8), "is_longer": torch.zeros(8, 1, dtype=torch.bool)},
    ),
    Case("xclip_vision_model", auto="XCLIPVisionModel", batch=48),
    parts(
        "pix2struct_text_model",
        heads("layer.0.self_attention", "layer.1.self_attention", hidden_states=X),
        heads(*(f"layer.{i}.encoder_decoder_attention" for i in range(2)), hidden_states=X, key_value_states=X),
        auto="Pix2StructTextModel",
        changes={"initializer_range": 0.02, "d_kv": 8},
        norms=False,
    ),
    parts(
        "clvp_encoder",
        layers("layers", 2, hidden_states=X, rotary_pos_emb=None, attention_mask=None, position_ids=None),
        auto="ClvpEncoder",
    ),
    parts(
        "mimi",
        *(
            layers(f"{at}.{at}_transformer.layers", 2, hidden_states=(10, 8, 64), position_embeddings=still(1, 8, 16))
            for at in ("encoder", "decoder")
        ),
        changes=MIMI,
    ),
    parts(
        "kyutai_speech_to_text", layers("layers", 2, hidden_states=X, position_ids=torch.zeros(6, 8, dtype=torch.long))
    ),
    parts(
        "phi4_multimodal_audio",
        heads("encoders.0.self_attn", hidden_states=X, attention_mask=None),
        auto="Phi4MultimodalAudioModel",
        changes={"num_blocks": 1},
        norms=False,
    ),
    parts(
        "granite_speech_encoder",
        layers("layers", 2, hidden_states=X, attention_dists=torch.zeros(8, 8, dtype=torch.long)),
        auto="GraniteSpeechCTCEncoder",
        changes={"context_size": 8},
        inside=("pre_norm",),
    ),
    parts(
        "granite_speech_plus_encoder",
        layers("layers", 2, hidden_states=X, attention_dists=torch.zeros(8, 8, dtype=torch.long)),
        auto="GraniteSpeechPlusCTCEncoder",
        changes={"context_size": 8},
        inside=("pre_norm",),
    ),
    parts(
        "gemma3n_audio",
        heads("conformer.0.attention.attn", hidden_states=(48, 1, 32), mask=torch.zeros(48, 1, dtype=torch.bool)),
        changes={
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 1,
            "conf_attention_chunk_size": 1,
            "conf_attention_context_left": 1,
            "conf_attention_logit_cap": 1e9,
        },
        zero=("pos_proj",),
        norms=False,
    ),
    parts(
        "gemma4_audio",
        heads("layers.0.self_attn", "layers.1.self_attn", hidden_states=(48, 1, 32), position_embeddings=(1, 32)),
        changes={"attention_chunk_size": 1, "attention_context_left": 1, "attention_logit_cap": 1e9},
        wide=True,
        norms=False,
    ),
    parts(
        "canine",
        heads("encoder.layer.0.attention", "encoder.layer.1.attention", hidden_states=X),
        heads("final_char_encoder.layer.0.attention", hidden_states=X),
        changes={"num_hash_buckets": 64},
        unrun=1,
        norms=False,
    ),
    Case("mobilebert", {"intra_bottleneck_size": 32, "true_hidden_size": 32, "num_feedforward_networks": 1}),
    Case("bros", {"dim_bbox_projection": 8}, feed={"bbox": torch.zeros(48, 1, 8)}, zero=("bbox",)),
    Case(
        "funnel",
        {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1, "type_vocab_size": 3},
        feed={"input_ids": torch.arange(192).view(24, 8) % 60 + 6},
        auto="AutoModelForPreTraining",
        zero=("r_kernel", "seg_embed", "r_s_bias"),
    ),
    *(
        parts(
            kind,
            layers(f"{kind[5:]}_transformer.layers", 2, hidden_states=(10, 8, 64), position_embeddings=still(1, 8, 16)),
            auto=auto,
            changes=MIMI,
        )
        for kind, auto in (("mimi_encoder", "AutoModel"), ("mimi_decoder", "AutoModel"))
    ),
    parts(
        "pp_chart2table",
        layers("model.vision_tower.layers", 2, hidden_states=(6, 4, 4, 32)),
        layers("model.language_model.layers", 2, hidden_states=X, position_embeddings=still(1, 8, 8)),
        auto="AutoModelForImageTextToText",
        zero=("rel_pos",),
        changes={
            f"vision_config.{k}": v
            for k, v in {
                "output_channels": 8,
                "downsample_channels": [8, 8],
                "window_size": 0,
                "global_attn_indexes": [0, 1],
            }.items()
        },
    ),
    parts(
        "sam3_lite_text",
        *SAM3,
        unrun=2,
        norms=False,
    ),
    # its keys are made of two inputs, which no map of one can show
    parts("idefics2_perceiver", changes=RESAMPLER, auto="Idefics2PerceiverResampler", unrun=3),
    parts(
        "xclip",
        heads(*(f"prompts_generator.decoder.{i}.cross_attn" for i in range(2)), queries=X, keys=X, values=X),
        layers("mit.encoder.layers", 1, hidden_states=X, attention_mask=None),
        changes={
            "prompt_num_attention_heads": 4,
            "vision_config.mit_num_attention_heads": 2,  # its text has 4
            "vision_config.mit_hidden_size": 32,
            "vision_config.mit_intermediate_size": 32,
        },
        norms=False,
        unrun=6,
    ),
    parts(
        "vits",
        layers("text_encoder.encoder.layers", 2, hidden_states=X, padding_mask=torch.ones(6, 8, 1)),
        changes={
            "upsample_initial_channel": 32,
            "spectrogram_bins": 8,
            "flow_size": 8,
            "duration_predictor_filter_channels": 8,
            "depth_separable_channels": 2,
            "wavenet_dilation_rate": 1,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1]],
        },
        zero=("emb_rel",),
    ),
    *(
        parts(
            kind,
            heads(
                "text_encoder.layers.0.self_attn",
                "text_decoder.layers.0.self_attn",
                *(f"t2u_model.model.{side}.layers.0.self_attn" for side in ("encoder", "decoder")),
                "speech_encoder.adapter.layers.0.self_attn",
                "speech_encoder.encoder.layers.0.self_attn",
                hidden_states=X,
            ),
            heads("text_decoder.layers.0.cross_attention", hidden_states=X, encoder_hidden_states=X),
            changes=SEAMLESS | more,
            norms=False,
            unrun=unrun,
        )
        for kind, unrun, more in (
            ("seamless_m4t", 1, {"position_embeddings_type": ""}),
            ("seamless_m4t_v2", 0, {"position_embeddings_type": ""}),
        )
    ),
    Case("sew-d", {**SOUND, "conv_dim": [16] * 13, "hidden_size": 32, "pos_att_type": []}, batch=48),
    parts(
        "pe_audio_encoder",
        layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 16)),
        changes={"dac_config.encoder_hidden_size": 4},
    ),
    parts(
        "hunyuan_vl_vision",
        layers("layers", 2, hidden_states=(1, 48, 32), attention_mask=None, cu_seqlens=LENGTHS),
        changes={"max_image_size": 32, "text_hidden_size": 32},
    ),
    parts(
        "vitpose",
        layers("backbone.encoder.layer", 2, hidden_states=X),
        auto="VitPoseForPoseEstimation",
        changes={"backbone_config.num_experts": 1, "backbone_config.part_features": 8},
    ),
    Case(
        "swin2sr",
        {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 8, "image_size": 8, "patch_size": 1},
    ),
    parts(
        "bridgetower",
        layers("vision_model.visual.transformer.resblocks", 2, hidden_state=(72, 1, 64)),
        heads("text_model.embeddings.LayerNorm", input=WIDE),
        (("text_model.encoder.layer.0", {"hidden_states": Out("text_model.embeddings.LayerNorm")}),),
        (("text_model.encoder.layer.1", {"hidden_states": Out("text_model.encoder.layer.0")}),),
        heads("cross_modal_text_layernorm", "cross_modal_image_layernorm", input=WIDE),
        bridge(0, "layernorm"),
        tuple(
            (
                f"cross_modal_{side}_link_tower.0",
                {
                    "hidden_states": WIDE,
                    "cross_modal_hidden_states": Out(f"cross_modal_{side}_layers.0"),
                    "attention_mask": None,
                },
            )
            for side in ("text", "image")
        ),
        bridge(1, "link_tower.0"),
        changes={
            "hidden_size": 64,
            "text_config.num_attention_heads": 1,
            "text_config.hidden_size": 64,
            "vision_config.hidden_size": 64,
            "vision_config.patch_size": 8,
        },
    ),
    parts(
        "informer",
        *(((f"{side}.layernorm_embedding", {"input": TOKEN}),) for side in ("encoder", "decoder")),
        layers("encoder.layers", 2, hidden_states=TOKEN, attention_mask=None),
        *(
            ((f"decoder.layers.{i}", {"hidden_states": Out(before), "encoder_hidden_states": Out("encoder.layers.1")}),)
            for i, before in enumerate(("decoder.layernorm_embedding", "decoder.layers.0"))
        ),
        changes={"prediction_length": 4, "context_length": 8},
    ),
    parts(
        "informer full",
        *(((f"{side}.layernorm_embedding", {"input": X}),) for side in ("encoder", "decoder")),
        (("encoder.layers.0", {"hidden_states": Out("encoder.layernorm_embedding"), "attention_mask": None}),),
        (("encoder.layers.1", {"hidden_states": Out("encoder.layers.0"), "attention_mask": None}),),
        *(
            ((f"decoder.layers.{i}", {"hidden_states": Out(before), "encoder_hidden_states": Out("encoder.layers.1")}),)
            for i, before in enumerate(("decoder.layernorm_embedding", "decoder.layers.0"))
        ),
        changes={"prediction_length": 4, "context_length": 8, "attention_type": "full", "distil": False},
    ),
    parts(
        "videoprism_vision_model",
        *(layers(f"vision_model.{at}_layers", 2, hidden_states=X) for at in ("spatial", "temporal")),
        layers("auxiliary_layers", 2, hidden_states=X),
        auto="VideoPrismVideoModel",
        changes={"num_spatial_layers": 2, "num_temporal_layers": 2, "tubelet_size": [1, 4, 4]},
        unrun=1,
    ),
    parts("videoprism_text_model", layers("layers", 2, hidden_states=X), auto="VideoPrismTextModel"),
    parts("mra", unrun=2),
    Case(
        "kimi_k25",
        {
            "text_config.first_k_dense_replace": 2,
            "text_config.head_dim": 4,
            "text_config.num_key_value_heads": 4,
            "vision_config.num_hidden_layers": 0,
        },
        auto="AutoModelForImageTextToText",
    ),
    Case("pop2piano", auto="Pop2PianoForConditionalGeneration"),
    parts(
        "deepseek_ocr2_encoder",
        layers("layers", 2, hidden_states=X, position_embeddings=still(1, 8, 8)),
        auto="DeepseekOcr2VisionEncoder",
    ),
)
