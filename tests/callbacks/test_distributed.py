import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from qkspec import analyze

WORKER = Path(__file__).with_name("ranks.py")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_told_what_analyze_says_of_the_whole_weights(kind, tmp_path):
    path = os.pathsep.join([str(WORKER.parents[2]), *sys.path[1:]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(WORKER), kind]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)

    report = analyze([tmp_path / "step-000003"])
    for rank in range(2):
        with safe_open(tmp_path / f"told-{rank}.safetensors", framework="numpy") as told:
            for name in report.readings.metrics:
                assert told.get_tensor(name).tobytes() == report.readings.metric(name).tobytes(), name
            words = told.metadata()
        assert words["verdicts"] == " ".join(verdict.name for verdict in report.verdicts)
        assert words["stops"] == str([False, False, kind == "ddp"])
        assert ("'lost'" in words["state"]) == (kind == "ddp")
        assert (tmp_path / f"error-{rank}").read_text()
        if kind == "fsdp":
            assert "fully_shard" in (tmp_path / f"old-{rank}").read_text()
