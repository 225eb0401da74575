"""What holds for every reader: nothing outside is opened, sent or changed, and a live folder is survived."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from qkspec.checkpoints.sequence import open_checkpoint
from qkspec.errors import CheckpointError

WATCHED = """
import json, os, sys
import qkspec.checkpoints.sequence as sequence, qkspec.checkpoints.dcp  # what waits for its first use is here now
import encodings.ascii, encodings.latin_1, encodings.utf_8_sig
seen = {"open": [], "other": []}
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        seen["open"].append((os.fsdecode(args[0]), args[2]))
    elif event.split(".")[0] in ("socket", "subprocess", "ctypes", "os") and event not in ("os.scandir", "os.listdir"):
        seen["other"].append(event)
    elif event in ("import", "exec", "compile", "pickle.find_class", "marshal.loads"):
        seen["other"].append(f"{event} {args[0]}")
sys.addaudithook(hook)
for run in sequence.find_runs([sys.argv[1]]):
    for source in run.sources:
        try:
            source.fingerprint(), source.digest()
            store = source.open().store
            [store.read(name) for name in store.names() if "q" in name]
            store.close()
        except sequence.InputError:
            pass
print(json.dumps(seen))
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_else_is_opened_imported_run_or_sent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in range(1, 4):
        (run / f"step-{step}").mkdir(parents=True)
    save_file({"q": torch.ones(2, 2)}, run / "step-1" / "model.safetensors")
    torch.save({"model": {"q": torch.ones(2, 2)}}, run / "step-2" / "pytorch_model.bin")
    save_file({"q": torch.ones(2, 2)}, tmp_path / "secret.safetensors")
    places = {"a": "../../secret.safetensors", "q": "/etc/passwd"}
    (run / "step-3" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    dcp.save({"q": torch.ones(4, 4)}, checkpoint_id=run / "step-4", no_dist=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCHED, run], capture_output=True, text=True, check=True
    )
    seen = json.loads(result.stdout)
    assert seen["other"] == []
    outside = [path for path, _ in seen["open"] if not Path(path).resolve().is_relative_to(run)]
    assert outside == []
    assert len(seen["open"]) > 8
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


WRITER = """
import sys, time
from pathlib import Path
path, good = Path(sys.argv[1]), [Path(name).read_bytes() for name in sys.argv[2:]]
end, turn = time.monotonic() + 4, 0
while time.monotonic() < end:
    data = good[turn % len(good)]
    with path.open("wb") as file:
        for at in range(0, len(data), 40_000):
            file.write(data[at:at + 40_000])
            file.flush()
    turn += 1
    time.sleep(0.002)
"""


@pytest.mark.parametrize("name", ["ckpt.pt", "model.safetensors"])
def test_a_file_that_is_overwritten_all_the_time(name: str, tmp_path: Path) -> None:
    """What is read is one of the saved states, or an error: never a mixture, a signal or a traceback."""
    for value in (1.0, 2.0):
        state = {"q": torch.full((300, 300), value), "k": torch.full((300, 100 * int(value)), value)}
        target = tmp_path / f"good{value}"
        save_file(state, target) if name.endswith("safetensors") else torch.save(state, target)
    path = tmp_path / name
    path.write_bytes((tmp_path / "good1.0").read_bytes())
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, tmp_path / "good1.0", tmp_path / "good2.0"])
    read = refused = 0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            store = open_checkpoint(path).store
            values = {float(value) for tensor in ("q", "k") for value in np.unique(store.read(tensor))}
            store.close()
        except CheckpointError as error:
            refused += 1
            assert name in str(error)  # noqa: PT017 - both outcomes are good
        else:
            read += 1
            assert values in ({1.0}, {2.0})
    writer.wait(30)
    print(f"{name}: {read} read, {refused} refused")
    assert refused + read > 20
    assert open_checkpoint(path).store.read("q").shape == (300, 300)
