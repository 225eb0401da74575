"""A run on disk: a folder with run.json, metrics.jsonl and a checkpoint sequence, resumable at any moment."""

import dataclasses
import json
import math
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import qkspec
from qkspec.errors import InputError, OutputError, UsageError
from qkspec.train import forensics, maps, save
from qkspec.train.alarm import MEMORY, Alarm, Ring
from qkspec.train.config import TrainConfig, from_dict
from qkspec.train.lab import Lab, build
from qkspec.train.loop import Step, train
from qkspec.train.models import registry
from qkspec.train.schedule import kept
from qkspec.train.world import current

RUN, METRICS, PROBES = "run.json", "metrics.jsonl", "probes.jsonl"


@dataclass
class Stop:
    """Whether a signal asked the run to end after the step it is in; ``code`` is the process's exit status then."""

    signals: list[int] = field(default_factory=list)

    @property
    def code(self) -> int | None:
        """130 after SIGINT, 143 after SIGTERM, None while nothing came."""
        return 128 + self.signals[0] if self.signals else None

    def agree(self, lab: Lab) -> bool:
        """Say whether to stop after this step: as soon as a signal reached any process of the run, all are told so.

        A signal that comes later, to this process alone, is for the next step: the others would wait for it for ever.
        """
        asked = lab.world.any(self.code or 0, lab.device)
        if asked and not self.signals:
            self.signals.append(asked - 128)
        return bool(asked)


def run(config: TrainConfig, folder: Path, stop: Stop) -> Iterator[Step]:
    """Train into a new folder, yielding each step once it stands in metrics.jsonl.

    UsageError when the folder already holds something, OutputError when it cannot be written.
    """
    if not current().leads:
        yield from _follow(build(config), stop)
        return
    _refuse_used(folder)  # before the data is read; and again once nobody else can start here
    lab = build(config)
    with _writing(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _refuse_used(folder)
        with _writing(folder, "choose another --out"):
            save.write_json(folder / RUN, record(lab))
        yield from _write(lab, folder, stop)


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and any(not p.name.startswith(f".{RUN}.partial-") for p in folder.iterdir()):
        raise UsageError(f"{folder}: already holds files; use --resume to go on with that run, or another --out")


@contextmanager
def _writing(path: Path, advice: str = "make room and --resume") -> Iterator[None]:
    """Turn what the disk says while a file of the run is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error


def resume(folder: Path, stop: Stop, changes: dict[str, Any] | None = None) -> Iterator[Step]:
    """Go on with the run in a folder from its newest checkpoint; the weights end as if it had never stopped.

    Args:
        folder: what ``run`` wrote.
        stop: see Stop.
        changes: knobs to change (more steps, another device); anything else changes the run's course, and may.
    """
    lab = build(recorded(folder, changes or {}))
    if not lab.world.leads:
        lab.world.wait()
        _restore(lab, folder)
        yield from _follow(lab, stop)
        return
    with locked(folder):
        save.tidy(folder)
        _check_data(lab, folder)
        lab.world.wait()  # nobody may read before the folder is tidy
        _restore(lab, folder)
        with _writing(folder):
            for name in (METRICS, PROBES):
                _truncate(folder / name, lab.step or -1)  # step 0 is yielded again
            maps.forget(folder, lab.step)
            save.forget(folder, lab.step)
            save.write_json(folder / RUN, record(lab))
        yield from _write(lab, folder, stop)


def recorded(folder: Path, changes: dict[str, Any]) -> TrainConfig:
    """Return the config that a run's folder records, with changes.

    Raises:
        InputError: there is no run.
        UsageError: a change is of another model, or of no value that its knob takes.
    """
    try:
        values = json.loads((folder / RUN).read_text(encoding="utf-8"))["train_config"]
        before = from_dict(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no run to resume (no readable {RUN}); start one without --resume") from error
    if changes.get("model", before.model) != before.model:
        raise UsageError(f"--model {changes['model']}: {folder} trains a {before.model}; leave --model out to resume")
    return from_dict(values | changes)


def record(lab: Lab) -> dict[str, Any]:
    """Return what run.json says: the settings, the data's digest, versions and the machine's arithmetic."""
    return {
        "schema": 1,
        "qkspec": qkspec.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": str(lab.device),
        "threads": torch.get_num_threads(),
        "data": {"name": lab.data.name, "size": lab.data.size, "sha256": lab.data.digest},
        "parameters": sum(weight.numel() for weight in lab.model.parameters()),
        "train_config": lab.config.as_dict(),
    }


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a request to stop after the current step; a second one ends it at once."""
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signals.append(number)
        if len(stop.signals) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another qkspec train is writing there; wait for it or choose another --out"
            ) from error
        yield
    finally:
        os.close(handle)


def _restore(lab: Lab, folder: Path) -> None:
    if save.restore(lab, folder) is None and save.checkpoints(folder):
        raise InputError(f"{folder}: keeps no state to resume from (--full-states 0); start the run again")
    lab.world.wait()  # nobody may publish before everybody has read


def _examined(lab: Lab, step: Step) -> forensics.Evidence | None:
    """Return what ``examine`` finds; None where it takes more memory than there is, or a solver gives up."""
    try:
        return forensics.examine(lab, step)
    except RuntimeError:  # a run of days is worth more than the evidence of a spike
        if lab.config.fsdp and lab.world.size > 1:
            raise  # the other processes wait for this one's part
        return None


def _follow(lab: Lab, stop: Stop) -> Iterator[Step]:
    """Yield the steps of a process that does not write."""
    for step in train(lab):
        if lab.world.any(0, lab.device) or step.outcome != "ok":
            _examined(lab, step)
        ending = stop.agree(lab)
        if step.outcome != "ok" or ending or kept(lab.step, lab.config):
            save.take_part(lab)
        yield step
        if ending:
            return


def _write(lab: Lab, folder: Path, stop: Stop) -> Iterator[Step]:
    """Yield the steps of a lab, each recorded, with checkpoints where due, at the end, and when asked to stop."""
    ring, alarm = Ring(lab.config.ring), _alarm(folder)
    with _rows(folder / METRICS) as metrics:
        for plain in train(lab):
            step = dataclasses.replace(plain, alarm=alarm.why(plain))
            ring.hold(lab, step)
            _append(metrics, row(step))
            _show(lab, folder, step)
            crashed = step.outcome != "ok"
            alarming = lab.world.any(int(step.alarm is not None), lab.device)
            evidence = _examined(lab, step) if alarming else None
            ending = stop.agree(lab)
            if crashed or ending or kept(lab.step, lab.config):
                with _writing(folder / METRICS):
                    os.fsync(metrics.fileno())  # every row before the checkpoint that relies on it
                save.publish(lab, folder, step)
            if alarming:
                for past, tensors in ring.past():
                    save.publish_past(lab, folder, past, tensors)
            if evidence is not None:
                with _writing(folder / forensics.name_of(step.step)):
                    forensics.keep(evidence, folder)
            yield step
            if ending:
                break
    if lab.shown:
        with _writing(folder / maps.FOLDER):
            maps.animate(folder)


def _alarm(folder: Path) -> Alarm:
    """Return the alarm as the rows so far leave it."""
    rows = list(save.lines(folder / METRICS))
    fired = [r["step"] for r in rows if "alarm" in r]
    return Alarm([r["loss"] for r in rows if r.get("loss") is not None], max(fired, default=-MEMORY) + MEMORY)


def _show(lab: Lab, folder: Path, step: Step) -> None:
    """Write what a step saw inside the model, where it looked."""
    if step.probe is not None:
        _add_probe(folder, step)
    if step.maps is not None:
        causal = registry.kind(lab.config.model).data == "tokens"
        loss = "" if step.loss is None else f", loss {step.loss:.3f}"
        page = maps.still(step.maps, lab.shown, f"step {step.step}{loss}", causal=causal)
        with _writing(folder / maps.FOLDER):
            maps.save(page, folder / maps.FOLDER / f"step-{step.step:06d}.png")


def _add_probe(folder: Path, step: Step) -> None:
    with _rows(folder / PROBES) as probes:
        _append(probes, {"step": step.step} | dict(step.probe or {}))


def _rows(path: Path) -> FileIO:
    """Open a file of rows to add to; without a buffer, which would try again, and fail again, when it is closed."""
    with _writing(path):
        return FileIO(path, "a")


def _append(rows: FileIO, values: dict[str, Any]) -> None:
    left = json.dumps(values, allow_nan=False).encode() + b"\n"
    with _writing(Path(str(rows.name))):
        while left:  # a disk that fills up takes a part
            left = left[rows.write(left) :]


def row(step: Step) -> dict[str, Any]:
    """Return a line of metrics.jsonl: what was measured; a number that is not finite is null and named in outcome."""
    values = {name: value for name, value in vars(step).items() if value is not None and name not in ("probe", "maps")}
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = float(f"{value:.7g}") if math.isfinite(value) else None
    return values


def _truncate(path: Path, step: int) -> None:
    """Keep the rows up to a step, in one rename."""
    if not path.exists():
        return
    rows = [r for r in save.lines(path) if r["step"] <= step and r.get("outcome", "ok") == "ok"]
    save.write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def _check_data(lab: Lab, folder: Path) -> None:
    with suppress(KeyError, TypeError):
        before = json.loads((folder / RUN).read_text(encoding="utf-8"))["data"]["sha256"]
        if before != lab.data.digest:
            raise InputError(f"{lab.data.name}: not the data that {folder} was trained on; restore it to resume")
