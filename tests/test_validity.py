"""What the weights alone predict against the real maps of a trained model on real text: measured, not assumed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qkspec import activations
from qkspec.analysis import Settings, analyze
from qkspec.theorem import Verdict

STEPS, EVERY = 120, 40


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Predicted and measured indices of every head of two short runs, one of which collapses."""
    from safetensors.numpy import save_file
    from transformers import GPT2LMHeadModel

    from qkspec.cli import main

    folder = tmp_path_factory.mktemp("validity")
    source = Path(activations.__file__).read_bytes()[:512]
    text = torch.frombuffer(bytearray(source), dtype=torch.uint8).long().view(8, 64)
    reports = {}
    for optimizer in ("adamw", "adamw2"):
        run = folder / optimizer
        arguments = ["--optimizer", optimizer, "--layers", "2", "--lr", "0.02", "--batch", "8", "--steps", str(STEPS)]
        arguments += ["--save-every", str(EVERY), "--eval-batches", "1", "--seed", "5", "--threads", "1", "-q"]
        assert main(["train", *arguments, "-o", str(run)]) == 0
        recorded = {}
        for path in sorted(run.glob("step-*")):
            model = GPT2LMHeadModel.from_pretrained(path, attn_implementation="eager").eval()
            found = activations.record(model, text)
            recorded |= {f"{path.name}/{name}": value for name, value in found.items()}
        save_file(recorded, folder / f"{optimizer}.safetensors")
        reports[optimizer] = analyze(
            [run], Settings(activations=str(folder / f"{optimizer}.safetensors"), embeddings=True)
        )
    return reports


def both(maps, metric):
    return np.concatenate([report.readings[metric] for report in maps.values()])


def test_every_head_was_measured(maps):
    assert np.isfinite(both(maps, "measured_entropy")).all()
    assert both(maps, "measured_entropy").min() < 0.3 < 0.9 < both(maps, "measured_entropy").max()


@pytest.mark.parametrize("kind", ["predicted", "embedded"])
def test_predicted_entropy_follows_the_measured_one(maps, kind):
    real, said = both(maps, "measured_entropy"), both(maps, f"{kind}_entropy")
    correlation, bias = np.corrcoef(real, said)[0, 1], float(np.mean(said - real))
    assert correlation > 0.75, correlation
    assert abs(bias) < 0.15, bias


def test_embeddings_predict_the_first_layer_closely(maps):
    """Deeper ones they cannot: where a first layer has collapsed, what reaches the second is no embedding any more."""
    first = both(maps, "layer") == 0
    error = np.abs(both(maps, "embedded_entropy") - both(maps, "measured_entropy"))
    isotropic = np.abs(both(maps, "predicted_entropy") - both(maps, "measured_entropy"))
    assert error[first].mean() < 0.04
    assert error[first].max() < 0.2
    assert error[first].mean() < isotropic[first].mean() / 2


def test_heads_with_sparse_maps_are_hardly_ever_called_healthy(maps):
    """By weights alone. In a run that collapses the converse fails: inputs of rank one make any head's map open."""
    from qkspec.analysis import assemble
    from qkspec.readings import Readings

    found = {}
    for name, report in maps.items():
        alone = {n: c for n, c in report.readings.columns.items() if not n.startswith(("measured_", "embedded_"))}
        judged = assemble(
            Readings(alone), report.applicable, report.limits, checkpoints=(), skipped={}, spectra={}
        ).verdicts  # fmt: skip
        found[name] = judged, report.readings.metric("measured_entropy")
    judged, real = found["adamw"]
    assert (real < 0.3).sum() >= 10
    assert (judged[real < 0.3] == Verdict.HEALTHY).mean() <= 0.1
    assert (judged[real < 0.3] == Verdict.MALIGNANT).mean() >= 0.6
    judged, real = found["adamw2"]
    assert (real > 0.5).all()
    assert set(judged) == {Verdict.HEALTHY}


def test_the_run_that_collapses_is_told_from_the_one_that_does_not(maps):
    assert next(iter(maps["adamw"].states.values())).verdict in ("warned", "lost")
    assert next(iter(maps["adamw2"].states.values())).verdict == "sound"


@pytest.fixture(scope="module")
def vits(tmp_path_factory):
    """Two short runs of a ViT, one of which collapses, with maps of the model run on noise images."""
    from qkspec.cli import main
    from qkspec.running import TextRunner

    reports = {}
    for optimizer in ("adamw", "adamw2"):
        run = tmp_path_factory.mktemp("vits") / optimizer
        arguments = [
            "--preset",
            "vit-demo",
            "--optimizer",
            optimizer,
            "--layers",
            "3",
            "--lr",
            "0.02",
            "--steps",
            "160",
        ]
        arguments += ["--save-every", "40", "--eval-batches", "1", "--seed", "5", "--threads", "1", "-q"]
        assert main(["train", *arguments, "-o", str(run)]) == 0
        reports[optimizer] = analyze([run]), analyze([run], Settings(runner=TextRunner("random")))
    return reports


def test_the_same_thresholds_hold_for_a_vit(vits):
    """Its rows have 17 tokens: judged at the 1,024 that an unknown context stands for, they would not."""
    alone, ran = vits["adamw"]
    real = ran.readings.metric("random_entropy")
    assert np.corrcoef(real, alone.readings.metric("predicted_entropy"))[0, 1] > 0.6
    called = alone.verdicts == Verdict.MALIGNANT
    assert called.sum() >= 5
    assert (real[called] < 0.5).mean() >= 0.8, "open maps among heads called malignant"
    assert (alone.verdicts[real < 0.3] == Verdict.HEALTHY).mean() <= 0.15
    sound, _ = vits["adamw2"]
    assert not (sound.verdicts == Verdict.MALIGNANT).any()
    assert next(iter(sound.states.values())).verdict == "sound"
