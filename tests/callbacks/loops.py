"""A small GPT in a plain torch loop, and what "the same as analyze" means."""

import doctest
import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from qkspec.train.config import TrainConfig
from qkspec.train.models import gpt

TINY = TrainConfig(layers=2, heads=2, width=32, context=16, vocab=64)


class Loop:
    """A loop that knows nothing of the monitor: AdamW on random tokens, with dropout, which draws random numbers."""

    def __init__(self, lr=1e-2, seed=0, config=TINY):
        self.config = gpt.config_json(config)
        torch.manual_seed(seed)
        self.model = gpt.build(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)

    def update(self, forward=None):
        ids = torch.randint(64, (4, 17))
        logits = functional.dropout((forward or self.model)(ids[:, :-1]), 0.1)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save(self, folder, step, tensors=None):
        target = folder / f"step-{step:06d}"
        target.mkdir(parents=True)
        tensors = {name: t.detach().clone().contiguous() for name, t in (tensors or self.model.state_dict()).items()}
        save_file(tensors, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(self.config))
        return target


@torch.no_grad()
def collapse(model, size=400.0):
    """Plant the malignant pattern: every head's W_q'W_k of rank one and large."""
    for block in model.transformer.h:
        weight = block.attn.c_attn.weight  # (d, 3 d)
        d = weight.shape[0]
        u, v = torch.randn(2, d, 1, generator=torch.Generator().manual_seed(1))
        heads = torch.ones(1, 2 * d)
        weight[:, : 2 * d] = torch.cat([u * heads[:, :d], v * heads[:, d:]], dim=1) * (size / d**2) ** 0.5


def same(judgement, report, checkpoint=None):
    """Assert that a judgement holds what the report says of one checkpoint: every key and number, every verdict."""
    rows = np.ones(len(report.readings), dtype=bool)
    if checkpoint is not None:
        rows = np.asarray(report.readings["checkpoint"] == checkpoint)
    expected = report.readings.where(rows)
    assert len(expected) > 0
    assert judgement.readings.columns.keys() == expected.columns.keys()
    for name in expected.columns:
        if name not in ("run", "checkpoint"):
            np.testing.assert_array_equal(judgement.readings[name], expected[name], err_msg=name)
    assert judgement.verdicts.tolist() == report.verdicts[rows].tolist()


def run_example(documented, namespace):
    """Execute the >>> lines of a docstring."""
    examples = doctest.DocTestParser().get_examples(documented.__doc__)
    assert examples
    for example in examples:
        exec(compile(example.source, "docstring", "exec"), namespace)
    return namespace
