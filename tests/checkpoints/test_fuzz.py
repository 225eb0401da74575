"""Every reader against damage: truncation at every byte, flipped bytes, edited headers, indexes, configs and pickles.

For each input there are two good outcomes: it is read, or it is refused with our own error in one line. Anything else
(another exception, a warning, a hang) is a fault. The number of examples grows with QKSPEC_FUZZ (1 in CI).
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from qkspec.checkpoints import pickles
from qkspec.checkpoints.sequence import find_runs
from qkspec.errors import InputError

SCALE = int(os.environ.get("QKSPEC_FUZZ", "1"))
FUZZ = settings(
    max_examples=200 * SCALE,
    deadline=None,
    derandomize=SCALE == 1,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
STATE = {
    "model": {"h.0.attn.q": torch.ones(4, 3), "h.0.attn.k": torch.ones(4, 3).t()},
    "iter_num": 3,
    "model_args": {"n_head": 2},
}

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def outcome(path: Path) -> bool:
    """Open and read everything; say whether it was refused. An exception that is not ours fails the test."""
    try:
        for run in find_runs([str(path)]):
            for source in run.sources:
                store = source.open().store
                try:
                    for name in store.names():
                        store.shape(name)
                        store.read(name)
                finally:
                    store.close()
    except InputError as error:
        text = str(error).replace(str(path), "")
        assert "\n" not in text
        assert "Traceback" not in text
        return True
    return False


def seed_files(folder: Path) -> dict[str, bytes]:
    """Return one small good file of each container, by name."""
    torch.save(STATE, folder / "zip.pt")
    torch.save(STATE, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {
        "zip.pt": (folder / "zip.pt").read_bytes(),
        "old.pt": (folder / "old.pt").read_bytes(),
        "one.safetensors": save({"h.0.attn.q": torch.ones(4, 3), "h.0.attn.k": torch.ones(2).bfloat16()}),
    }


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "one.safetensors"])
def test_truncation_at_every_byte(name: str, tmp_path: Path) -> None:
    data = seed_files(tmp_path)[name]
    path, start, refused = tmp_path / name, time.monotonic(), 0
    for end in range(len(data)):
        path.write_bytes(data[:end])
        refused += outcome(path)
    assert refused == len(data)
    path.write_bytes(data)
    assert not outcome(path)
    print(f"{name}: {len(data)} truncations in {time.monotonic() - start:.1f} s")


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "one.safetensors"])
def test_random_damage(name: str, tmp_path: Path) -> None:
    data, path, chance = seed_files(tmp_path)[name], tmp_path / name, random.Random(0)
    for _ in range(700 * SCALE):
        bad = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(bad))
            kind = chance.randrange(4)
            if kind == 0:
                bad[at] = chance.randrange(256)
            elif kind == 1:
                bad[at] ^= 1 << chance.randrange(8)
            elif kind == 2:
                del bad[at : at + chance.randrange(1, 20)]
            else:
                bad[at:at] = chance.randbytes(chance.randrange(1, 9))
            if not bad:
                break
        path.write_bytes(bad)
        outcome(path)


@pytest.mark.parametrize("sparse", [0, 1 << 20], ids=["as a large one", "as a small one"])
def test_damage_to_distributed_metadata(tmp_path: Path, sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_SPARSE", sparse)
    folder = tmp_path / "d"
    with pytest.warns(UserWarning, match="."):
        dcp.save({"model": STATE["model"]}, checkpoint_id=folder, no_dist=True)
    data, chance = (folder / ".metadata").read_bytes(), random.Random(sparse)
    for end in range(sparse % 3, len(data), 2):
        (folder / ".metadata").write_bytes(data[:end])
        assert outcome(folder)
    for _ in range(350 * SCALE):
        bad = bytearray(data)
        for _ in range(chance.choice((1, 2, 5))):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        (folder / ".metadata").write_bytes(bad)
        outcome(folder)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F64", "F8_E4M3", "I8", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 99), min_size=2, max_size=2) | JSON,
        "more": JSON,
    },
)


@FUZZ
@given(
    header=st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), ENTRY | JSON, max_size=4),
    size=st.integers(0, 99),
    pad=st.integers(0, 3),
)
def test_safetensors_headers(tmp_path: Path, header: dict[str, Any], size: int, pad: int) -> None:
    raw = json.dumps(header).encode() + b" " * pad
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
    outcome(tmp_path / "x.safetensors")


@FUZZ
@given(
    index=st.fixed_dictionaries(
        {
            "weight_map": JSON
            | st.dictionaries(
                st.sampled_from(["h.0.attn.q", "x"]), st.sampled_from(["part.safetensors", "../x"]) | JSON
            )
        }
    )
    | JSON
)
def test_indexes(tmp_path: Path, index: Any) -> None:
    (tmp_path / "part.safetensors").write_bytes(save({"h.0.attn.q": torch.ones(2, 2)}))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    outcome(tmp_path)


@FUZZ
@given(config=JSON | st.binary(max_size=40), state=JSON | st.fixed_dictionaries({"global_step": JSON}))
def test_configs_and_trainer_states(tmp_path: Path, config: Any, state: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(save({"h.0.attn.q": torch.ones(2, 2)}))
    (tmp_path / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    refused = outcome(tmp_path)
    if isinstance(config, dict):
        assert not refused or "NaN" in json.dumps(config) or "Infinity" in json.dumps(config)


@FUZZ
@given(
    config=st.dictionaries(
        st.sampled_from(["quantization_config", "n_head"]),
        JSON | st.fixed_dictionaries({"weight_block_size": JSON | st.lists(st.integers(-1, 9))}),
    ),
    shape=st.lists(st.integers(0, 5), max_size=3),
)
def test_scales(tmp_path: Path, config: dict[str, Any], shape: list[int]) -> None:
    weights = {"q.weight": torch.ones(3, 4).to(torch.float8_e4m3fn), "q.weight_scale": torch.ones(shape)}
    (tmp_path / "model.safetensors").write_bytes(save(weights))
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome(tmp_path)


@FUZZ
@given(
    value=st.recursive(
        SCALARS | st.just(torch.ones(2)),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "state_dict", "optimizer", "ema", "step", "config", "args", "a.b", 3]),
                inner,
                max_size=4,
            )
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    )
)
def test_what_torch_saves(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.pt")
    outcome(tmp_path / "x.pt")
