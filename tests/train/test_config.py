import dataclasses
import json
import math

import pytest

from qkspec.errors import UsageError
from qkspec.train.config import TrainConfig, from_dict


def test_plain_data_comes_back_as_the_same_config() -> None:
    config = TrainConfig(lr=0.02, norm="rms", qk_norm=True)
    assert from_dict(config.as_dict()) == config


def test_infinity_survives_strict_json() -> None:
    config = TrainConfig(tau=math.inf, clip=math.inf)
    assert from_dict(json.loads(json.dumps(config.as_dict(), allow_nan=False))) == config
    with pytest.raises(UsageError, match="--lr inf is outside"):
        from_dict({"lr": "inf"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers", 0), ("lr", float("nan")), ("tau", 0.0), ("norm", "batch"), ("heads", 3), ("warmup", 601), ("seed", -1)],
)
def test_a_value_outside_its_range_names_the_option(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        from_dict({name: value})


@pytest.mark.parametrize(("name", "value"), [("layers", 1.5), ("layers", True), ("qk_norm", 1), ("data", 3)])
def test_a_value_of_the_wrong_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match="must be"):
        from_dict({name: value})


def test_an_unknown_knob_is_refused() -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        from_dict({"learning_rate": 0.1})


def test_an_integer_is_a_number() -> None:
    assert from_dict({"lr": 1}).lr == 1


def test_nothing_changes_after_construction() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
