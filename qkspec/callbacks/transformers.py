"""Measure a model inside Hugging Face's Trainer."""

from collections.abc import Collection
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qkspec.callbacks.judgement import Judgement, check_stop
from qkspec.callbacks.torch import EARLY, Monitor
from qkspec.measuring import Settings

__all__ = ["SpectrumCallback"]


class SpectrumCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Measures at the start and at the end of every due step; numbers go where the trainer's own go.

    A trainer tells a callback nothing of itself, so the callback is made with it and added to it.

    Args:
        trainer: whose ``log`` takes the numbers, with the step.
        config: None takes the model's own.
        every, early, settings: as of ``qkspec.callbacks.torch.Monitor``.
        stop_on: the run verdict ("warned", "lost" or "broken") from which the trainer is told to stop; None is never.

    Raises:
        LayoutError, UsageError: when training begins, as of ``Monitor``.

    Example:
        >>> trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
        >>> callback = SpectrumCallback(trainer, every=100, stop_on="lost")
        >>> trainer.add_callback(callback)
        >>> trainer.train()
        >>> print(callback.last.message)
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        config: Any = None,
        every: int = 100,
        early: Collection[int] = EARLY,
        stop_on: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_stop(stop_on)
        self._trainer = trainer
        self._monitor: Monitor | None = None
        self._options: dict[str, Any] = {
            "config": config,
            "every": every,
            "early": early,
            "stop_on": stop_on,
            "settings": settings,
        }

    @property
    def last(self) -> Judgement | None:
        """The last judgement, None before the first."""
        return self._monitor.last if self._monitor else None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's interface
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Measure the weights that training starts from."""
        monitor = self._monitor = Monitor(kwargs["model"], **self._options)
        return self._report(monitor.measure(state.global_step), control)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's interface
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002 - the trainer's interface
    ) -> TrainerControl:
        """Measure after an optimizer's step, if it is due."""
        return self._report(self._monitor(state.global_step) if self._monitor else None, control)

    def _report(self, judgement: Judgement | None, control: TrainerControl) -> TrainerControl:
        if judgement is None:
            return control
        pending = control.should_log
        self._trainer.log(dict(judgement.scalars))
        control.should_log = pending  # log() took the loss's turn of this step for done
        control.should_training_stop = control.should_training_stop or judgement.stop
        return control
