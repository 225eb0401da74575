"""Attention that no row of the table lists: a query and a key projection side by side, wherever they stand.

Two tensors that are called query and key cut into heads in one way only, once the count of heads is known. What else
shapes their logits (norms, rotation, masks) is not known, and readings say so.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from qkspec.layouts.layout import Layout, Separate

PAIRS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("query_proj", "key_proj"),
    ("to_q", "to_k"),
    ("linear_q", "linear_k"),
    ("q_lin", "k_lin"),
    ("wq", "wk"),
    ("q", "k"),
    ("project_q", "project_k"),
    ("q_head", "k_head"),
    ("q_proj.linear", "k_proj.linear"),
)

ROW = Layout("unlisted", (), Separate("q", "k"), unlisted=True, unknown=("scale, rotation and mask",))
UNLISTED = (
    *(replace(ROW, weights=Separate(q, k)) for q, k in PAIRS),
    replace(ROW, weights=Separate("to_q", "to_kv", k_parts="kv")),
)

# What stands beside the projections of linear attention and of state spaces, and never beside those of a softmax.
RECURRENT = re.compile(
    r"(^|\.)(A_log|dt_bias|([qkv]_)?conv1d|b_proj|f_[ab]_proj|slope_rate|[if]gate_preact|time_decay|decay|receptance)(\.|$)"
)
CROSS = re.compile(r"cross|encoder_attn|enc_?dec|x_attn|context_att")


def recurrent(names: Iterable[str]) -> frozenset[str]:
    """Return the paths of modules beside whose projections stands what only recurrences have."""
    found = (RECURRENT.search(name) for name in names)
    return frozenset(match.string[: match.start()] for match in found if match)
