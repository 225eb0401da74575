"""Measure a model inside Lightning's Trainer."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from qkspec.callbacks import live
from qkspec.callbacks.judgement import Judgement, check_stop
from qkspec.callbacks.torch import EARLY, Monitor
from qkspec.measuring import Settings

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:  # the same library under its older name
    from pytorch_lightning.callbacks import Callback  # type: ignore[assignment, unused-ignore]

__all__ = ["SpectrumCallback"]


class SpectrumCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Measures at the start and at the end of every due step; numbers go to the trainer's loggers and metrics.

    Each measurement reaches every logger at its own step, whatever ``log_every_n_steps``; ``log_dict`` makes the
    latest one a metric that other callbacks can watch (``ModelCheckpoint(monitor="qkspec/max_sigma1")``).

    Args:
        config: None takes that of the network in the module, else the module's hyperparameters, which are what a
            checkpoint of Lightning keeps.
        every, early, settings: as of ``qkspec.callbacks.torch.Monitor``.
        stop_on: the run verdict ("warned", "lost" or "broken") from which the trainer is told to stop; None is never.

    Raises:
        LayoutError, UsageError: when training begins, as of ``Monitor``.

    Example:
        >>> callback = SpectrumCallback(every=100, stop_on="lost")
        >>> trainer = Trainer(max_steps=1000, callbacks=[callback])
        >>> trainer.fit(module, loader)
        >>> print(callback.last.message)
        >>> print(trainer.callback_metrics["qkspec/max_sigma1"])
    """

    def __init__(
        self,
        *,
        config: Any = None,
        every: int = 100,
        early: Collection[int] = EARLY,
        stop_on: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_stop(stop_on)
        self._config = config
        self._monitor: Monitor | None = None
        self._options: dict[str, Any] = {"every": every, "early": early, "stop_on": stop_on, "settings": settings}

    @property
    def last(self) -> Judgement | None:
        """The last judgement, None before the first."""
        return self._monitor.last if self._monitor else None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measure the weights that training starts from."""
        inner = live.network(pl_module)
        config = self._config or live.config_of(inner) or dict(pl_module.hparams)
        monitor = self._monitor = Monitor(inner, config=config, **self._options)
        self._report(monitor.measure(trainer.global_step), trainer)

    def on_train_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        *args: Any,  # noqa: ARG002 - outputs and batch
    ) -> None:
        """Measure after an optimizer's step, if it is due; batches that only accumulate gradients are none."""
        judgement = self._monitor(trainer.global_step) if self._monitor else None
        if judgement is not None:
            pl_module.log_dict(dict(judgement.scalars), logger=False)
            self._report(judgement, trainer)

    def _report(self, judgement: Judgement, trainer: "Trainer") -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(judgement.scalars), step=judgement.step)
        trainer.should_stop = trainer.should_stop or judgement.stop
