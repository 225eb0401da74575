"""Named settings: small ones that run in a minute or two on two cores, and those of the paper's table 2 (appendix N).

A paper preset holds what the paper states; where it points to nanoGPT, timm, Swin or FLatten Transformer, their
settings for 1,024 images a step. The paper gives ViT two values each of τ, weight decay and stochastic depth: here the
first is that of ViT-B, the second that of L and g. Its "truncated Xavier" is Xavier uniform here, and validation images
are cut to the whole middle square, not to 224 of 256 pixels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qkspec.errors import UsageError


class Preset(NamedTuple):
    """A name, what it is in one line, and the knobs it sets."""

    name: str
    about: str
    knobs: Mapping[str, Any]


_GPT = {
    "model": "gpt",
    "vocab": 50_304,
    "tied": True,
    "dtype": "bfloat16",
    "init": "xavier",
    "beta1": 0.9,
    "beta2": 0.95,
}
_GPT |= {"weight_decay": 0.1, "clip": 1.0, "tau": 0.01, "context": 1024, "save_every": 1000, "eval_every": 1000}
_VIT = {"model": "vit", "image_size": 224, "patch": 16, "channels": 3, "classes": 1000, "dtype": "bfloat16"}
_VIT |= {"augment": "rand", "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "drop_path": 0.1}
_VIT |= {"init": "xavier", "beta1": 0.9, "beta2": 0.99, "lr": 1e-3, "final_lr": 0.0, "batch": 128, "accumulate": 8}
_VIT |= {"steps": 187_650, "save_every": 5000, "eval_every": 1251}  # 150 epochs of 1,281,167 images, 1,024 a step
_SWIN = _VIT | {"model": "swin", "patch": 4, "stages": "2,2,18,2", "window": 7, "tau": 0.004, "weight_decay": 0.05}
_SWIN |= {"beta2": 0.999, "init": "gpt2", "clip": 5.0, "final_lr": 0.01, "erasing": 0.25, "drop_path": 0.3}
_SWIN |= {"steps": 375_300}  # 300 epochs


def _gpt(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    return _GPT | {"layers": layers, "heads": heads, "width": width} | other


def _vit(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    return _VIT | {"layers": layers, "heads": heads, "width": width} | other


PRESETS: tuple[Preset, ...] = (
    Preset("gpt-demo", "the default: a GPT on Python's own sources, a minute or two on a CPU", {"model": "gpt"}),
    Preset("vit-demo", "a ViT on scikit-learn's digits, a minute on a CPU",
           {"model": "vit", "data": "digits", "layers": 6, "heads": 4, "width": 64, "batch": 32, "weight_decay": 0.05,
            "beta2": 0.99, "tau": 0.004}),
    Preset("gpt2", "124M, 480 sequences a step, 600,000 steps (paper: GPT-S)",
           _gpt(12, 12, 768, lr=6e-4, batch=12, accumulate=40, steps=600_000)),
    Preset("gpt2-medium", "350M (nanoGPT)", _gpt(24, 16, 1024, lr=3e-4, batch=12, accumulate=40, steps=600_000)),
    Preset("gpt2-large", "774M, 100,000 steps (paper: GPT-L)",
           _gpt(36, 20, 1280, lr=2.5e-4, batch=8, accumulate=60, steps=100_000)),
    Preset("vit-s", "ViT-S/16 (timm)", _vit(12, 6, 384, tau=0.004, weight_decay=0.05)),
    Preset("vit-b", "ViT-B/16, 1,024 images a step (paper)", _vit(12, 12, 768, tau=0.004, weight_decay=0.05)),
    Preset("vit-l", "ViT-L/16 (paper)", _vit(24, 16, 1024, tau=0.003, weight_decay=0.1, drop_path=0.5)),
    Preset("vit-g", "ViT-g/14: 40 layers, d 1408, MLP 6144 (paper)",
           _vit(40, 16, 1408, mlp=6144, patch=14, tau=0.003, weight_decay=0.1, drop_path=0.5)),
    Preset("swin-demo", "a Swin on scikit-learn's digits, a minute on a CPU",
           {"model": "swin", "data": "digits", "width": 32, "heads": 2, "patch": 1, "stages": "2,4", "window": 4,
            "batch": 32, "weight_decay": 0.05, "beta2": 0.99, "tau": 0.004}),
    Preset("flatten-demo", "a Flatten-Swin on scikit-learn's digits, a minute or two on a CPU",
           {"model": "flatten-swin", "data": "digits", "width": 32, "heads": 2, "patch": 1, "stages": "2,4",
            "focused": 1, "window": 4, "batch": 32, "weight_decay": 0.05, "beta2": 0.99, "tau": 0.004}),
    Preset("swin-s", "Swin-S (paper)", _SWIN | {"heads": 3, "width": 96}),
    Preset("swin-b", "Swin-B (paper)", _SWIN | {"heads": 4, "width": 128, "drop_path": 0.5}),
    Preset("flatten-swin-s", "Flatten-Swin-S: linear attention in stages 1 and 2 (paper)",
           _SWIN | {"model": "flatten-swin", "focused": 2, "heads": 3, "width": 96}),
)  # fmt: skip


def knobs(name: str) -> Mapping[str, Any]:
    """Return what a preset sets; UsageError when there is none of that name."""
    for preset in PRESETS:
        if preset.name == name:
            return preset.knobs
    raise UsageError(f"--preset {name!r} is not one of {', '.join(p.name for p in PRESETS)}")
