"""Measure a model inside any torch training loop.

The example below is a whole script but for the loop's own lines:

    >>> monitor = Monitor(model, every=100, stop_on="lost")
    >>> for step in range(1, steps + 1):
    ...     train_one_step(model)
    ...     judgement = monitor(step)
    ...     if judgement and judgement.stop: break
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import distributed, nn

from qkspec.analysis import judge
from qkspec.callbacks import live
from qkspec.callbacks.judgement import EARLY, RUN, Judgement, check_stop, follow
from qkspec.callbacks.ranks import Leading, follow_rank_0
from qkspec.checkpoints.store import Checkpoint
from qkspec.engine import blas_on_one_thread
from qkspec.errors import LayoutError, UsageError
from qkspec.measuring import Settings, measure, plan_for

__all__ = ["EARLY", "Judgement", "Monitor"]


class Monitor:
    """Measures every head of a model while it trains, as ``analyze`` would the checkpoint saved at that step.

    Training is not touched: no gradient, no random number, no module's mode. One attention module's weights at a time
    are copied to the CPU, and of the past only the last step's readings are kept.

    With torch.distributed, call it on every rank at the same steps: rank 0 measures, every rank is given the same
    judgement, and a DTensor (FSDP2) is gathered when it is read, one tensor at a time. The others wait meanwhile, so
    the process group's timeout has to allow for one measurement.

    Args:
        model: plain, compiled, in DistributedDataParallel, or sharded by ``fully_shard``.
        config: for head counts and context length: a mapping (a config.json's content), a transformers config, a
            dataclass or a namespace; None takes ``model.config`` where there is one.
        every: steps between measurements; step 0 is one where the monitor is called with it.
        early: steps measured besides; the first ones tell most.
        stop_on: the run verdict ("warned", "lost" or "broken") from which ``Judgement.stop`` is true; None is never.
            Share of heads and thresholds behind the words are in ``settings.limits`` and ``qkspec.trajectory``.
        settings: what to measure and the limits of the verdicts, as for ``analyze``.

    Raises:
        LayoutError: the queries and keys of this model cannot be told apart with certainty.
        UsageError: an option is wrong, or the weights are sharded in a way that cannot be read.

    Example:
        >>> monitor = Monitor(model, config={"model_type": "gpt2", "n_head": 4}, every=50)
        >>> judgement = monitor(0)
        >>> print(judgement.message)  # step 0: sound: 0% of heads concentrated and large, …
        >>> judgement.readings.metric("sigma1").max(), judgement.verdicts[0].value
        >>> writer = judgement.scalars  # {"qkspec/max_sigma1": …} for any logger
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        config: Any = None,
        every: int = 100,
        early: Collection[int] = EARLY,
        stop_on: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"every is {every!r}: give a whole number of steps, 1 or more")
        check_stop(stop_on)
        self.every, self.early, self.stop_on = every, frozenset(early), stop_on
        self.last: Judgement | None = None
        self._model, self._settings = model, settings or Settings()
        self._config = live.config_of(model) if config is None else live.as_plain(config)
        live.check_whole(model)
        try:
            plan_for(self._checkpoint(0), self._settings)
        except LayoutError as error:
            raise LayoutError(f"{error} (in Python: Monitor(config=..., settings=Settings(num_heads=...)))") from error

    def __call__(self, step: int) -> Judgement | None:
        """Measure the model if the step is due and was not the last one measured.

        Args:
            step: updates done, as the checkpoint saved now would call it.

        Returns:
            The judgement, or None when the step is not due.
        """
        if not self.due(step) or (self.last is not None and self.last.step == step):
            return None
        return self.measure(step)

    def due(self, step: int) -> bool:
        """Say whether a step is one that is measured."""
        return step % self.every == 0 or step in self.early

    @torch.no_grad()
    def measure(self, step: int) -> Judgement:
        """Measure the model now, whatever the step.

        Raises:
            InputError: there is no head that could be read.
        """
        checkpoint = self._checkpoint(step)
        if not (distributed.is_available() and distributed.is_initialized()):
            self.last = self._judge(checkpoint, step)
        elif distributed.get_rank() == 0:
            self.last = self._lead(checkpoint, step)
        else:
            self.last = follow_rank_0(checkpoint.store)
        return self.last

    def _checkpoint(self, step: int) -> Checkpoint:
        return live.checkpoint_of(self._model, self._config, step)

    def _judge(self, checkpoint: Checkpoint, step: int) -> Judgement:
        with blas_on_one_thread():
            report = judge([measure(checkpoint, self._settings, run=RUN)], self._settings)
        return follow(report, self.last, step=step, stop_on=self.stop_on)

    def _lead(self, checkpoint: Checkpoint, step: int) -> Judgement:
        """Judge while the other ranks wait for what is read, and for the judgement or the error."""
        store = Leading(self._model.state_dict(), checkpoint.path)
        try:
            judgement = self._judge(replace(checkpoint, store=store), step)
        except Exception as error:
            store.tell(error)
            raise
        store.tell(judgement)
        return judgement
