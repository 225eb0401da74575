import pytest
import torch

from qkspec.errors import UsageError
from qkspec.train.config import TrainConfig, from_dict
from qkspec.train.models import registry
from qkspec.train.presets import PRESETS, knobs

MILLIONS = {"gpt2": 124, "gpt2-medium": 354, "gpt2-large": 774, "vit-s": 22, "vit-b": 87, "vit-l": 304, "vit-g": 1012}
MILLIONS |= {"swin-s": 49.6, "swin-b": 87.8, "flatten-swin-s": 51}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_a_preset_is_a_config_of_the_size_it_names(preset) -> None:
    config = from_dict(TrainConfig().as_dict() | dict(preset.knobs))
    with torch.device("meta"):
        model = registry.module(config.model).build(config)
    if preset.name in MILLIONS:
        assert sum(w.numel() for w in model.parameters()) / 1e6 == pytest.approx(MILLIONS[preset.name], rel=0.02)


def test_every_published_size_is_there() -> None:
    assert set(MILLIONS) <= {p.name for p in PRESETS}
    with pytest.raises(UsageError, match="gpt2-large"):
        knobs("gpt3")
