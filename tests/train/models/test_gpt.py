import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkspec.train.config import TrainConfig
from qkspec.train.models import gpt


def _write(model: gpt.GPT, config: TrainConfig, folder: Path) -> None:
    folder.mkdir()
    tensors = {n: t for n, t in model.state_dict().items() if not (config.tied and n == "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(gpt.config_json(config)), encoding="utf-8")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["xavier", "gpt2"])
def test_transformers_loads_it_and_gives_the_same_logits(
    tiny: TrainConfig, tmp_path: Path, tied: bool, init: str
) -> None:
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(tiny, tied=tied, init=init)
    torch.manual_seed(0)
    model = gpt.build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # biases and gains that are not 0 and 1
    _write(model, config, tmp_path / "hf")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    ids = torch.randint(0, 256, (3, config.context))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_transformers_cannot_express_is_marked(tiny: TrainConfig) -> None:
    assert gpt.config_json(tiny)["architectures"] == ["GPT2LMHeadModel"]
    for change in ({"norm_position": "post"}, {"norm": "rms"}, {"qk_norm": True}):
        marked = gpt.config_json(dataclasses.replace(tiny, **change))
        assert marked["architectures"] == ["QkspecGPT"]
        assert {k: marked[k] for k in change} == change


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_naive_model_in_float64_agrees(tiny: TrainConfig, position: str, norm: str, qk_norm: bool) -> None:
    config = dataclasses.replace(tiny, norm_position=position, norm=norm, qk_norm=qk_norm)
    torch.manual_seed(1)
    model = gpt.build(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    ids = torch.randint(0, 256, (config.context,))
    torch.testing.assert_close(model(ids[None])[0], _naive(model.state_dict(), ids, config), atol=1e-10, rtol=1e-10)


def _naive(w: dict[str, torch.Tensor], ids: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """The model one token, one head and one product at a time, by the tensor names alone."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if config.norm == "rms":
            return x / torch.sqrt((x * x).mean() + 1e-5) * w[name + ".weight"]
        centred = x - x.mean()
        return centred / torch.sqrt((centred * centred).mean() + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def affine(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[name + ".weight"] + w[name + ".bias"]

    def attend(xs: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        d, d_q = config.width, config.width // config.heads
        fused = [affine(x, name + ".c_attn") for x in xs]
        out = []
        for i in range(len(xs)):
            heads = []
            for h in range(config.heads):
                cut = [slice(p * d + h * d_q, p * d + (h + 1) * d_q) for p in range(3)]
                q, ks = fused[i][cut[0]], [fused[j][cut[1]] for j in range(i + 1)]
                if config.qk_norm:
                    q = q / torch.sqrt((q * q).mean() + 1e-6) * w[name + ".q_norm.weight"]
                    ks = [k / torch.sqrt((k * k).mean() + 1e-6) * w[name + ".k_norm.weight"] for k in ks]
                logits = torch.stack([q @ k for k in ks]) / math.sqrt(d_q)
                shares = logits.exp() / logits.exp().sum()
                heads.append(sum(s * fused[j][cut[2]] for j, s in enumerate(shares)))
            out.append(affine(torch.cat(heads), name + ".c_proj"))
        return out

    def feed(x: torch.Tensor, name: str) -> torch.Tensor:
        inner = affine(x, name + ".c_fc")
        return affine(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), name + ".c_proj")

    xs = [w["transformer.wte.weight"][i] + w["transformer.wpe.weight"][t] for t, i in enumerate(ids)]
    for layer in range(config.layers):
        at = f"transformer.h.{layer}"
        if config.norm_position == "pre":
            attended = attend([norm(x, at + ".ln_1") for x in xs], at + ".attn")
            xs = [x + a for x, a in zip(xs, attended, strict=True)]
            xs = [x + feed(norm(x, at + ".ln_2"), at + ".mlp") for x in xs]
        else:
            attended = attend(xs, at + ".attn")
            xs = [norm(x + a, at + ".ln_1") for x, a in zip(xs, attended, strict=True)]
            xs = [norm(x + feed(x, at + ".mlp"), at + ".ln_2") for x in xs]
    if config.norm_position == "pre":
        xs = [norm(x, "transformer.ln_f") for x in xs]
    return torch.stack([x @ w["lm_head.weight"].T for x in xs])


def test_initial_weights_have_the_spread_that_was_asked_for() -> None:
    config = TrainConfig(width=256, heads=4, layers=2)
    torch.manual_seed(0)
    model = gpt.build(config)
    q, k, v = model.transformer.h[0].attn.c_attn.weight.split(256, dim=1)
    for part in (q, k, v):
        assert float(part.detach().std()) == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    torch.manual_seed(0)
    small = gpt.build(dataclasses.replace(config, init="gpt2"))
    assert float(small.transformer.h[0].mlp.c_fc.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(small.transformer.h[0].mlp.c_proj.weight.detach().std()) == pytest.approx(0.01, rel=0.02)


def test_attention_logits_are_those_of_the_forward_pass(tiny: TrainConfig) -> None:
    torch.manual_seed(0)
    model = gpt.build(tiny)
    ids = torch.randint(0, 256, (2, tiny.context))
    inputs: list[torch.Tensor] = []
    parts = gpt.anatomy(model)
    for part in parts:
        part.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(ids)
    for part, x in zip(parts, list(inputs), strict=True):
        _, _, v = part.module.project(x)
        maps = part.module.logits(x).softmax(-1)
        mixed = part.module.c_proj((maps @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, part.module(x), atol=1e-6, rtol=1e-5)


def test_attention_weights_are_the_projection_and_the_norm_that_feeds_it(tiny: TrainConfig) -> None:
    for position, feeding in (("pre", "ln_1"), ("post", "ln_2")):
        config = dataclasses.replace(tiny, norm_position=position, layers=1)
        kept = {n for n in gpt.build(config).state_dict() if gpt.attention_weight(n, config)}
        expected = {f"transformer.h.0.{m}.{p}" for m in ("attn.c_attn", feeding) for p in ("weight", "bias")}
        assert kept == expected
