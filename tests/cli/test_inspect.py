"""``qkspec inspect``: headers alone, and a draft for names that nobody knows."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from qkspec.cli import main


@pytest.fixture
def strange(tmp_path):
    """A model whose names no row of the table knows, with a config that counts its heads."""
    rng = np.random.default_rng(0)
    tensors = {
        f"trunk.cell.{i}.mixer.{name}.weight": rng.standard_normal((16, 24)).astype(np.float32)
        for i in range(3)
        for name in ("w_q", "w_k", "w_v")
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange", "num_heads": 4}))
    return tmp_path


def test_sample_run(sample, capsys):
    assert main(["inspect", str(sample)]) == 0
    out = capsys.readouterr().out
    assert "family gpt2" in out
    assert "8 heads" in out


def test_json(sample, capsys):
    assert main(["inspect", "--json", str(sample)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["step"] for c in found["runs"][0]["checkpoints"]][:3] == [0, 2, 5]
    assert {c["heads"] for c in found["runs"][0]["checkpoints"]} == {8}


def test_unknown_names_get_a_draft_that_can_be_passed_back(strange, tmp_path, capsys):
    assert main(["inspect", str(strange)]) == 3
    out, err = capsys.readouterr()
    assert "no known layout" in err
    assert err.count("\n") == 1
    drafted = tmp_path / "strange.toml"
    drafted.write_text(out)
    assert main(["inspect", str(strange), "--layout", str(drafted)]) == 0
    assert "12 heads" in capsys.readouterr().out
    assert main(["analyze", str(strange), "--layout", str(drafted), "--format", "csv"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 1 + 12


def test_names_that_are_matched_alone_are_measured_and_drafted(strange, tmp_path, capsys):
    rng = np.random.default_rng(0)
    matrices = {
        f"trunk.{i}.{name}.weight": rng.standard_normal((16, 24)) for i in range(2) for name in ("to_q", "to_k")
    }
    save_file(matrices, strange / "model.safetensors")
    assert main(["inspect", str(strange)]) == 0
    out = capsys.readouterr().out
    assert "model_type 'strange' is not in the table" in out
    assert "--layout" in out
    assert main(["inspect", "--json", str(strange)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"][0]["checkpoints"]
    assert (entry["family"], entry["heads"]) == ("unlisted", 8)
    drafted = tmp_path / "strange.toml"
    drafted.write_text(entry["draft"])
    assert main(["inspect", str(strange), "--layout", str(drafted)]) == 0
    assert "family custom" in capsys.readouterr().out


def test_reads_headers_only(sample):
    """Not one byte of tensor data: the same answer when all of it is a hole in the file."""
    code = (
        "import sys; from qkspec.checkpoints.sequence import open_checkpoint; from qkspec.layouts.find import plan;"
        "c = open_checkpoint(sys.argv[1]); plan(c); print(c.store.bytes_read)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sample / "step-000600")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8192


def test_headers_of_safetensors_are_read_without_numpy_and_without_other_readers(sample):
    code = (
        "import sys; from qkspec.cli import main; main(['inspect', sys.argv[1]]); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sample)], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "qkspec.layouts.find" in loaded
    assert not loaded & {"numpy", "pickletools", "qkspec.checkpoints.torchfile", "qkspec.checkpoints.dcp"}
