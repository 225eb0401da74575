import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from qkspec import analyze
from qkspec.measuring import Settings
from qkspec.metrics import EMBEDDED

WORKER = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder where two ranks wrote what their monitors told them; one start of the processes serves all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind in ("ddp", "fsdp"):
        (folder / kind).mkdir()
    path = os.pathsep.join([str(WORKER.parents[2]), *sys.path[1:]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(WORKER)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=180)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_told_what_analyze_says_of_the_whole_weights(kind, told):
    folder = told / kind
    report = analyze([folder / "step-000003"])
    for rank in range(2):
        with safe_open(folder / f"told-{rank}.safetensors", framework="numpy") as file:
            for name in report.readings.metrics:
                assert file.get_tensor(name).tobytes() == report.readings.metric(name).tobytes(), name
            words = file.metadata()
        assert words["verdicts"] == " ".join(verdict.name for verdict in report.verdicts)
        assert words["stops"] == str([False, False, kind == "ddp"])
        assert ("'lost'" in words["state"]) == (kind == "ddp")
        assert (folder / f"error-{rank}").read_text()
        words = "MemoryError: no room"
        assert (folder / f"failed-{rank}").read_text() == (
            f"RuntimeError: rank 0 failed with {words}" if rank else words
        )
        if kind == "fsdp":
            assert "fully_shard" in (folder / f"old-{rank}").read_text()


def test_what_the_settings_read_besides_is_gathered_too(told):
    folder = told / "fsdp"
    report = analyze([folder / "step-000003"], Settings(embeddings=True))
    for rank in range(2):
        with safe_open(folder / f"embedded-{rank}.safetensors", framework="numpy") as file:
            for name in EMBEDDED:
                assert np.isfinite(report.readings.metric(name)).all()
                assert file.get_tensor(name).tobytes() == report.readings.metric(name).tobytes(), name
