"""What looks like attention and has no query-key matrix: said by name, so that nobody takes silence for health."""

import re
from collections.abc import Collection

NO_SOFTMAX = "linear attention or a state space, to which Theorem 1 does not apply"
BORROWED = "its keys are those that a layer before it made of other inputs: no W_q'W_k of its own"
INDEXER = "an indexer, which chooses tokens for another module: its scores pass no softmax"
TOKENS = "learned query tokens, not a projection"

# How a tensor's name ends ▸ why its module has no spectrum.
KEYLESS = {
    "sampling_offsets.weight": "deformable attention: a query alone says where to look and how much; there are no keys",
    ".w_g": "additive attention: queries are summed before any meets a key, so there is no query-key matrix",
    "channel_attn.qkv.weight": "attention between channels: tokens are what is summed over, so no logit holds W_q'W_k",
    "query_key.weight": "hashing: queries are their own keys, of length one, and only tokens whose hashes agree meet",
    "conv_qk_grouped.weight": "convolutions: they mix queries and keys with each other and with those of tokens before",
    "k_sconv.weight": "short convolutions: each key is made of several tokens, so that no one matrix makes a logit",
    "dot_product_scoring.query_proj.weight": "scores of each query against the prompt, with no softmax over keys",
    "qkv_proj.convolution.weight": "linear attention: one number a token stands in for its query, and meets no key",
}
KEYLESS["self_attn.output_gate.weight"] = NO_SOFTMAX  # MiniMax's lightning attention, if MiniMax it is
KEYLESS |= dict.fromkeys(
    ("k_sconv.conv1d.weight", "k_sconv.static_weight", "k_sconv.static_w"), KEYLESS["k_sconv.weight"]
)
# Reasons that leave no gap in what was measured: no softmax over logits of queries and keys that are the module's own.
APART = (NO_SOFTMAX, BORROWED, INDEXER, TOKENS, *(KEYLESS[end] for end in (
    "sampling_offsets.weight", ".w_g", "channel_attn.qkv.weight", "dot_product_scoring.query_proj.weight",
    "qkv_proj.convolution.weight",
)))  # fmt: skip
# Model types that attend in another way under the same names.
OTHERWISE = {"autoformer": "autocorrelation: a query meets keys shifted in time, so no logit is a query times a key"}
ENDINGS = tuple(KEYLESS)
REASONS = frozenset((NO_SOFTMAX, BORROWED, *KEYLESS.values(), *OTHERWISE.values()))
ATTENTION = re.compile(r"att(?:e?n|_)|query|[qk]_?proj|qkv|(^|[._])w?[qk](_|\.|$)|in_proj|lstm|mixer", re.IGNORECASE)


def without_keys(names: Collection[str], kinds: Collection[str]) -> dict[str, str]:
    """Return the paths of modules that look like attention and multiply no query with a key, each with why.

    Args:
        names: of all tensors.
        kinds: the model types of the config and of those nested in it.
    """
    found = {}
    for name in names:
        if not name.endswith(ENDINGS):
            continue
        path = name.removesuffix(".weight").rpartition(".")[0]
        if name.endswith("output_gate.weight") and not any(kind.startswith("minimax") for kind in kinds):
            continue  # a softmax may be gated too
        if name.endswith(".w_g") and f"{path}.to_query.weight" not in names:
            continue  # a router of experts
        found[path.removesuffix(".k_sconv")] = next(why for end, why in KEYLESS.items() if name.endswith(end))
    return found
