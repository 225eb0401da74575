"""How megatron_core.tar.xz was made: two ranks of Megatron-core 0.16.1 save a small model on CPUs (torch 2.13, gloo).

    python megatron_core.py FOLDER      # then: tar -cJf megatron_core.tar.xz -C FOLDER iter_0000700 qk.safetensors

It holds what ``megatron.core.dist_checkpointing.save`` wrote for a GPTModel split over two ranks (tensor parallelism,
grouped queries, biases, a norm of queries and keys), its arguments as Megatron-LM keeps them, and the queries and keys
that the model's own attention computed for the 8 unit vectors, all heads together: (layers, heads, d_q, 8).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

RANKS = 2


def main(rank: int, folder: str) -> None:
    """Save one rank's part."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank))
    import torch
    import torch.distributed as dist

    torch.cuda.synchronize = torch.cuda.current_device = lambda *_: None  # its writer assumes a GPU
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.enums import AttnBackend
    from megatron.core.transformer.transformer_config import TransformerConfig
    from safetensors.torch import save_file

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=RANKS)
    shape = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 4}
    config = TransformerConfig(
        **shape,
        ffn_hidden_size=8,
        normalization="RMSNorm",
        qk_layernorm=True,
        add_qkv_bias=True,
        add_bias_linear=False,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    layer = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    model = GPTModel(config, layer, vocab_size=8, max_sequence_length=16, position_embedding_type="rope")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.manual_seed(len(name) + (0 if "layernorm" in name else 100 * rank))
            parameter.copy_(torch.randn_like(parameter))
    args = argparse.Namespace(
        **shape,
        group_query_attention=True,
        position_embedding_type="rope",
        rotary_base=500_000,
        rotary_percent=0.5,
        rotary_interleaved=False,
        apply_layernorm_1p=False,
        norm_epsilon=1e-5,
        seq_length=16,
        params_dtype=torch.bfloat16,
        attention_backend=AttnBackend.auto,
    )
    state = {"args": args, "checkpoint_version": 3.0, "iteration": 700, **model.sharded_state_dict()}
    Path(f"{folder}/iter_0000700").mkdir(exist_ok=True)
    dist_checkpointing.save(state, f"{folder}/iter_0000700")
    unit = torch.eye(8)[:, None]  # (tokens, 1, d)
    made = {"q": [], "k": []}
    for block in model.decoder.layers:
        query, key, *_ = block.self_attention.get_query_key_value_tensors(unit, None)
        for name, value in (("q", query), ("k", key)):
            parts = [torch.empty_like(value) for _ in range(RANKS)]
            dist.all_gather(parts, value.detach().contiguous())
            made[name].append(torch.cat(parts, 2)[:, 0].permute(1, 2, 0).contiguous())
    if rank == 0:
        save_file({name: torch.stack(values) for name, values in made.items()}, f"{folder}/qk.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        Path(sys.argv[1]).mkdir(parents=True)
        ranks = [subprocess.Popen([sys.executable, __file__, sys.argv[1], str(rank)]) for rank in range(RANKS)]
        sys.exit(max(rank.wait() for rank in ranks))
    main(int(sys.argv[2]), sys.argv[1])
