"""At which steps a run keeps its weights and draws its attention maps."""

import math

from qkspec.train.config import TrainConfig

_EARLY = (2, 5, 10, 20, 40, 60, 80, 100)  # early warning needs step 0 and a spacing of 20 steps at the start


def kept(step: int, config: TrainConfig) -> bool:
    """Say whether a step's weights are kept for ever: 0, early, 1-2-5 spaced, every ``save_every``, and the last."""
    if step in (0, config.steps) or step in _EARLY or step % config.save_every == 0:
        return True
    power = 10 ** int(math.log10(step))
    return step > max(_EARLY) and step in (power, 2 * power, 5 * power)


def drawn(step: int, config: TrainConfig) -> bool:
    """Say whether a step's attention maps are drawn: every ``maps_every``, or wherever the weights are kept."""
    if not config.maps:
        return False
    return step % config.maps_every == 0 if config.maps_every else kept(step, config)
