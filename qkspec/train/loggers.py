"""The run's figures to TensorBoard, Weights & Biases and MLflow; metrics.jsonl is always written as well."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from qkspec.errors import UsageError
from qkspec.train.config import TrainConfig
from qkspec.train.loop import Step


class Logger(ABC):
    """Takes a run's numbers; one final class a service. Constructed when the run starts, closed when it ends."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the finite numbers of one step under their names."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and let go."""


class TensorBoard(Logger):
    """Event files in FOLDER/tensorboard."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        writer: Any = import_module("torch.utils.tensorboard")
        self._writer = writer.SummaryWriter(log_dir=str(folder / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.as_dict().items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandB(Logger):
    """A Weights & Biases run in FOLDER/wandb; WANDB_MODE=offline needs no account."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        wandb: Any = import_module("wandb")
        self._run = wandb.init(project="qkspec", name=folder.name, dir=str(folder), config=config.as_dict())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step as one row of the history."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow(Logger):
    """An MLflow run at MLFLOW_TRACKING_URI, or where MLflow keeps its runs by default (which needs all of mlflow)."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._mlflow: Any = import_module("mlflow")
        self._mlflow.set_experiment("qkspec")
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_params(config.as_dict())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


Open = Callable[[Path, TrainConfig], Logger]
LOGGERS: tuple[tuple[str, Open], ...] = (("tensorboard", TensorBoard), ("wandb", WandB), ("mlflow", MLflow))


def check(names: Sequence[str]) -> None:
    """Raise UsageError for a logger that is unknown or whose package is not installed."""
    for name in names:
        if name not in dict(LOGGERS):
            raise UsageError(f"--log {name!r} is not one of {', '.join(dict(LOGGERS))}")
        if find_spec(name) is None:
            raise UsageError(f"--log {name} needs a package: pip install {name}")


def logged(steps: Iterable[Step], names: Sequence[str], folder: Path, config: TrainConfig) -> Iterator[Step]:
    """Pass the steps of a run through, each recorded by every named logger; the loggers open with the first step.

    One that cannot open is a UsageError. One that fails later is left behind with a line on stderr: the run goes on.
    """
    loggers: dict[str, Logger] = {}
    opened = False
    with ExitStack() as stack:
        for step in steps:
            for name in names if not opened else ():
                loggers[name] = _opened(name, folder, config)
                stack.callback(_without_failing, name, loggers[name].close)
            opened = True
            for name in list(loggers):
                if not _without_failing(name, partial(loggers[name].log, step.step, scalars(step))):
                    del loggers[name]
            yield step


def _opened(name: str, folder: Path, config: TrainConfig) -> Logger:
    try:
        return dict(LOGGERS)[name](folder, config)
    except Exception as error:  # whatever a service's own package raises
        reason = _first_line(error)
        raise UsageError(f"--log {name} cannot start ({reason}); mend that, then --resume {folder}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _without_failing(name: str, act: Callable[[], None]) -> bool:
    """Do something with a logger and say whether it went well; if not, tell the user once."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 - a run of days must not end because a server did not answer
        reason = _first_line(error)
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print(f"--log {name} failed ({reason}); the run goes on without it, and metrics.jsonl has every row")
        return False
    return True


def scalars(step: Step) -> dict[str, float]:
    """Return the finite numbers of a step, named as in metrics.jsonl, and those of a probe as probe/MODULE/NAME."""
    found = {name: getattr(step, name) for name in ("loss", "lr", "grad_norm", "bound", "validation", "seconds")}
    for block in (step.probe or {}).get("blocks", ()):
        for name in ("entropy", "rank", "max_logit"):
            found |= _named(f"probe/{block['name']}/{name}", block[name])
        for name, value in block["terms"].items():
            found |= _named(f"probe/{block['name']}/{name}", value)
    for tensor, reading in (step.probe or {}).get("tensors", {}).items():
        plain = tensor.replace("[", ".").replace("]", "")  # MLflow refuses brackets in a name
        found[f"tensors/{plain}/effective_lr"] = reading["effective_lr"]
    return {name: float(v) for name, v in found.items() if v is not None and math.isfinite(v)}


def _named(name: str, value: Any) -> dict[str, Any]:
    """Return a number under its name, or a list as one number a head."""
    return {f"{name}/head{h}": v for h, v in enumerate(value)} if isinstance(value, list) else {name: value}
