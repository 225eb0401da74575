import json
from base64 import b85decode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkspec import events, losses

# Written by torch.utils.tensorboard (tensorboard 2.20): train/loss = 3/(step + 1) and lr = 0.1 at steps 0, 10 and 300,
# the first file with the old form of a scalar, the second with the new one (a tensor).
OLD = b85decode(
    "NB{r;00000{*p+Y3CQdLHJZTMK^hHWa$#w1E=6`_Zge^_QZ5QCbY*UHZ*pR9VRB?Hb9HTPVRCsccXDZTWpXZMc4cmKUuJ1+WnXu4X>?_BmL2v{9sm"
    "FU00000+1wH`303p~HJZTMK`Ijp5ef=)a$#w1FKlmfa}@vpKtPqJX9yMm00000002*6z9<Qm^Z_-Rz}i773knGe0&H>>&CJX_d<RVIAOHXW00000D"
    "eb9H3BL3JHJZTMK@bWm6ABRu3UqQ|X>KoUZ*y}M>7t81R4j^&7ytkO00000qkl^x3Fq_yHJZTMK@bWm3knGe0&H>>&CJX_y0HmxApigX000000ekH"
    "B2?zB7HJZTMK@hA0DiaD33JP>`VQFqJY;SXO6|zesJe`!`UKs!Y000000E_VmC<!F>0X3Sy+CdPk0xAm%2?_#iauv<Y%snPA)ZG"
)
NEW = b85decode(
    "NB{r;00000{*p+Y3E=$!HJZTMK^hHWa$#w1E=6`_Zge^_QZ5QCbY*UHZ*pR9VRB?Hb9HTPVRCsccXDZTWpXZMc4cmKUuJ1+WnXu4X>?_Bv&FQ!FaQ"
    "7m00000mG#hH38Mo7HJZTMK`JE*BMJ(1a$#w1FKlmfb3zCR0V)Il06;)W3knGe2XkX#Y+-V94l121761SM00000Phq|&2^a(dHJZTMK`ILh2?_#ia"
    "uv<Y%srS@vv@K900000001NzR_qB=1Ohdhz}i6&3MwTEBMJ(1a$#w1FKlmfb3zCR0V)LPqKiIC3knGe2XkX#Y+-V9p)U&W7ytkO00000qkl^x33CJ"
    "jHJZTMK@bWm3knGe0&H>>&CJX_m*62*GXMYp0000045uJg37-T4HJZTMK@hA0DkTad3JP>`VQFqJY;SXOLI?-}Dg?4iBRonA3JD4ab7Ns_VRCbR;t"
    "jqT000000001s@dzjhx&#6>n!wsY5Uc_!3knGe0&H>>&CJX_)j}~Z"
)
POINTS = [point for step in (0, 10, 300) for point in (("train/loss", step, 3 / (step + 1)), ("lr", step, 0.1))]


@pytest.mark.parametrize("data", [OLD, NEW], ids=["old", "new"])
def test_scalars_of_real_event_files(data):
    found = list(events.scalars(data))
    assert [(tag, step) for tag, step, _ in found] == [(tag, step) for tag, step, _ in POINTS]
    np.testing.assert_allclose([v for *_, v in found], [v for *_, v in POINTS], rtol=1e-7)


@given(st.integers(0, len(OLD)))
def test_a_file_that_is_still_being_written_gives_what_is_there(size):
    found = list(events.scalars(OLD[:size]))
    assert found == list(events.scalars(OLD))[: len(found)]


@given(st.binary(max_size=400), st.integers(0, len(NEW) - 1), st.integers(0, 255))
def test_bytes_of_any_kind_raise_nothing_but_value_errors(noise, at, byte):
    for data in (noise, NEW[:at] + bytes([byte]) + NEW[at + 1 :], b"\x10" + bytes(11) + noise):
        try:
            list(events.scalars(data))
        except ValueError as error:
            if "event file" not in str(error):
                raise


@pytest.fixture
def run(tmp_path):
    paths = [tmp_path / f"step-{i}" for i in (0, 1, 2)]
    for path in paths:
        path.mkdir()
    return [str(path) for path in paths]


def test_metrics_of_qkspec_train(run, tmp_path):
    rows = [{"step": 0, "validation": 6.0}, {"step": 1, "loss": 5.5}, {"step": 2, "loss": None, "outcome": "diverged"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    found = losses.find(run)
    np.testing.assert_array_equal(found.steps, [1, 2])
    np.testing.assert_array_equal(found.values, [5.5, np.nan])
    assert found.source.endswith("metrics.jsonl")


@pytest.mark.parametrize("place", [".", "step-2"])
def test_state_of_transformers_trainer(run, tmp_path, place):
    history = [{"step": 10, "loss": 2.0, "epoch": 0.1}, {"step": 10, "eval_loss": 9.0}, {"step": 5, "loss": 3.0}]
    (tmp_path / place / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": history}))
    found = losses.find(run)
    np.testing.assert_array_equal(found.steps, [5, 10])
    np.testing.assert_array_equal(found.values, [3.0, 2.0])


@pytest.mark.parametrize("place", [".", "runs/today", "logs"])
def test_tensorboard_events(run, tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "events.out.tfevents.1.host.2.0").write_bytes(OLD)
    np.testing.assert_array_equal(losses.find(run).steps, [0, 10, 300])


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1, 2]", '{"step": 1, "loss": "low"}\n' * 3, "\xff", "[" * 100_000, '{"step": true, "loss": 1}\n'],
)
def test_a_damaged_file_is_no_loss_and_no_error(run, tmp_path, text):
    for name in ("metrics.jsonl", "trainer_state.json", "x.tfevents.y"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert losses.find(run) is None


def test_no_loss_is_looked_for_beside_a_single_checkpoint_or_across_folders(run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    assert losses.find(run) is not None
    assert losses.find(run[:1]) is None
    assert losses.find([run[0], str(tmp_path.parent / "elsewhere")]) is None
    assert losses.find(["s3://bucket/a", "s3://bucket/b"]) is None
