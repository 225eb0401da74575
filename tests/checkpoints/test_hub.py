"""A hub cache as huggingface_hub lays it out: blobs, links, refs; several revisions are one sequence."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from qkspec.checkpoints.sequence import find_runs


def cache(root: Path, revisions: dict[str, str], *, without: tuple[str, ...] = ()) -> Path:
    folder = root / "models--EleutherAI--pythia-70m"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "config").write_text('{"model_type": "gpt_neox"}')
    for name, commit in revisions.items():
        ref = folder / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
        snapshot = folder / "snapshots" / commit
        if snapshot.exists():
            continue
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").symlink_to("../../blobs/config")
        if name not in without:
            save_file({"w": torch.ones(2)}, folder / "blobs" / commit)
            (snapshot / "model.safetensors").symlink_to(f"../../blobs/{commit}")
    return folder


def test_revisions_are_one_sequence(tmp_path: Path) -> None:
    folder = cache(
        tmp_path,
        {"main": "a" * 40, "step1000": "b" * 40, "step64": "c" * 40, "step143000": "a" * 40, "pr/1": "d" * 40},
        without=("pr/1",),
    )
    (run,) = find_runs([str(folder)])
    assert run.name == "EleutherAI/pythia-70m"
    assert [(s.name, s.step) for s in run.sources] == [("step64", 64), ("step1000", 1000), ("step143000", 143000)]
    assert list(run.ignored.values()) == ["the cache holds no weights of revision pr/1"]
    assert run.sources[0].open().config == {"model_type": "gpt_neox"}
    (chosen,) = find_runs([str(folder)], revisions="step1*")
    assert [s.name for s in chosen.sources] == ["step1000", "step143000"]


def test_a_cache_without_refs_and_the_whole_cache(tmp_path: Path) -> None:
    folder = cache(tmp_path / "hub", {"main": "e" * 40})
    assert [s.name for s in find_runs([str(tmp_path / "hub")])[0].sources] == ["main"]
    (folder / "refs" / "main").unlink()
    assert [s.name for s in find_runs([str(folder)])[0].sources] == ["e" * 12]
    assert [s.name for s in find_runs([str(folder / "snapshots" / ("e" * 40))])[0].sources] == ["e" * 40]
