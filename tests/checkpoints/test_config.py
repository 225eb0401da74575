"""Config and trainer's step from the files beside the weights."""

import json
from pathlib import Path

import pytest

from qkspec.checkpoints.config import find_step, read_config, read_step
from qkspec.checkpoints.files import LocalFolder
from qkspec.checkpoints.jsonfile import parse_object
from qkspec.errors import CheckpointError


def test_configs_in_order(tmp_path: Path) -> None:
    assert read_config(LocalFolder(tmp_path)) == {}
    (tmp_path / "params.json").write_text('{"dim": 8, "n_heads": 2}')
    assert read_config(LocalFolder(tmp_path)) == {"dim": 8, "n_heads": 2}
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"model_type": "llama"}')
    assert read_config(LocalFolder(tmp_path)) == {"model_type": "llama"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(LocalFolder(tmp_path))


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"global_step": 5}, 5),
        ({"step": 0}, 0),
        ({"global_step": True}, None),
        ({"global_step": "5"}, None),
        ({"epoch": 1.5}, None),
        ([], None),
    ],
)
def test_steps(tmp_path: Path, state: object, step: int | None) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_step(LocalFolder(tmp_path)) == step


def test_a_long_log_is_not_parsed(tmp_path: Path) -> None:
    state = {"epoch": 1.0, "global_step": 123, "log_history": [{"step": n, "loss": 1.0} for n in range(20_000)]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state, indent=2))
    folder = LocalFolder(tmp_path)
    assert (tmp_path / "trainer_state.json").stat().st_size > 1_000_000
    assert read_step(folder) == 123


def test_json_limits() -> None:
    with pytest.raises(CheckpointError, match="lists and objects"):
        parse_object(b"[" * 2_000_000, "f")
    with pytest.raises(CheckpointError, match="where an object was expected"):
        parse_object(b"[]", "f")
    with pytest.raises(CheckpointError, match="no JSON number"):
        parse_object(b'{"a": Infinity}', "f")


def test_steps_are_whole_numbers() -> None:
    assert find_step({"iter_num": 5}) == 5
    assert find_step({"global_step": True, "step": 7}) == 7
    assert find_step({"global_step": -1, "step": 2.0, "iter": "3"}) is None
    assert find_step({"step": 1 << 60}) is None
