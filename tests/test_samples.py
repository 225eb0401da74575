"""Golden results of sample_ckpts/, and the same numbers from torch and a full SVD of the product."""

import csv
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from qkspec.analysis import analyze
from qkspec.readings import plain

SAMPLES = Path(__file__).parent.parent / "sample_ckpts"
GOLDEN = Path(__file__).parent / "golden_samples.csv"
NUMBERS = ("sigma1", "sec_4", "effective_rank", "freezing_ratio", "trace", "predicted_entropy")
KEYS = ("run", "checkpoint", "module", "head")


@pytest.fixture(scope="module")
def report():
    return analyze([SAMPLES / "adamw-no-warmup", SAMPLES / "adamw2"])


def rows(report):
    """The cells that GOLDEN holds. Written by: python -c "import test_samples as t; t.write()" in tests/."""
    for i in range(len(report.readings)):
        row = report.readings.at(i)
        yield {**{k: str(row[k]) for k in KEYS}, **{n: row[n] for n in NUMBERS}, "verdict": report.verdicts[i].value}


def write():
    """Write GOLDEN anew; look at what changed before committing it."""
    found = list(rows(analyze([SAMPLES / "adamw-no-warmup", SAMPLES / "adamw2"])))
    with GOLDEN.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()} for row in found)


def test_golden_results(report):
    with GOLDEN.open(encoding="utf-8") as file:
        golden = list(csv.DictReader(file))
    found = list(rows(report))
    assert len(found) == len(golden) == 2 * 13 * 8
    for ours, theirs in zip(found, golden, strict=True):
        where = [ours[k] for k in KEYS]
        assert where == [theirs[k] for k in KEYS]
        assert ours["verdict"] == theirs["verdict"], where
        for name in NUMBERS:
            rtol = 1e-3 if name.startswith("predicted") else 1e-5
            assert ours[name] == pytest.approx(float(theirs[name]), rel=rtol, abs=1e-9), (where, name)


def test_the_story_that_the_samples_tell(report):
    crashed, tamed = report.states["adamw-no-warmup"], report.states["adamw2"]
    assert crashed.verdict == "lost"
    assert crashed.malignant >= 6
    assert crashed.turned is not None
    assert tamed.verdict == "sound"
    assert tamed.malignant == 0
    assert tamed.turned is None


@pytest.mark.parametrize("checkpoint", ["step-000000", "step-000600"])
@pytest.mark.parametrize("run", ["adamw-no-warmup", "adamw2"])
def test_every_head_against_torch_and_a_full_svd(report, run, checkpoint):
    """Cut by hand as GPT-2 does: c_attn is (inputs, outputs), thirds of q, k, v, each of 2 heads of 64."""
    tensors = load_file(SAMPLES / run / checkpoint / "model.safetensors")
    r = report.readings
    for i in np.flatnonzero((r["run"] == run) & (r["checkpoint"] == checkpoint)):
        layer, head = r["layer"][i], r["head"][i]
        weight = tensors[f"transformer.h.{layer}.attn.c_attn.weight"].double().numpy()
        gain = tensors[f"transformer.h.{layer}.ln_1.weight"].double().numpy()
        q, k = (weight[:, part * 128 + head * 64 : part * 128 + (head + 1) * 64] for part in (0, 1))
        m = q @ k.T
        sigma = np.linalg.svd(m, compute_uv=False)
        assert plain(r["sigma1"][i]) == pytest.approx(sigma[0], rel=1e-9)
        assert plain(r["sec_4"][i]) == pytest.approx(np.sum(sigma[:4] ** 2) / np.sum(sigma**2), rel=1e-9)
        assert plain(r["trace"][i]) == pytest.approx(np.trace(m), rel=1e-7, abs=1e-9)
        std = np.linalg.norm(gain[:, None] * m * gain) / 8
        assert plain(r["logit_std"][i]) == pytest.approx(std, rel=1e-5)
        assert plain(r["freezing_ratio"][i]) == pytest.approx(std / np.sqrt(2 * np.log(64)), rel=1e-5)
        eigenvalues = np.linalg.eigvals(k.T @ q)
        assert plain(r["positive_fraction"][i]) == pytest.approx(np.mean(eigenvalues.real > 0), abs=1 / 64 + 1e-9)


def test_every_source_is_identified(report):
    """Size and digest in the provenance are those of the files; equal content elsewhere has the same digest."""
    for facts in report.checkpoints:
        files = list((SAMPLES / facts.run / facts.name).glob("*.safetensors"))
        assert facts.size == sum(file.stat().st_size for file in files)
        assert facts.found == facts.heads == 8
    digests = [facts.digest for facts in report.checkpoints]
    assert len(set(digests)) == len(digests)


def test_a_copy_elsewhere_has_the_same_digest(report, tmp_path):
    import shutil

    copy = shutil.copytree(SAMPLES / "adamw2" / "step-000020", tmp_path / "elsewhere")
    first = next(f for f in report.checkpoints if (f.run, f.name) == ("adamw2", "step-000020"))
    assert analyze([copy]).checkpoints[0].digest == first.digest
