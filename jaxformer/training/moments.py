"""Determines when to evaluate, to save and to end a training."""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.config import Experiment


def due(step: int, every: int, steps: int) -> bool:
    """Returns whether to do something after this step that is done every `every` steps, and after the last step, which
    is `steps`.
    """
    return step > 0 and (step % every == 0 or step == steps)


class SaveClock:
    """Determines when to save a checkpoint by the time since the last one (`checkpoint.minutes`)."""

    def __init__(self, minutes: float | None):
        """Starts to measure the time. If `minutes` is None, no checkpoint is ever due."""
        self._minutes, self._since = minutes, time.monotonic()

    def due(self, logged: bool) -> bool:
        """Returns whether a checkpoint is due. The answer is the same in every process.

        Args:
          logged: whether this step is logged. If there are several processes, a checkpoint is only due at such steps,
            because the processes wait for each other to compare their answers.
        """
        if self._minutes is None or (jax.process_count() > 1 and not logged):
            return False
        over = time.monotonic() - self._since >= 60 * self._minutes
        return over if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(over)))

    def restart(self) -> None:
        """Restarts to measure the time, because a checkpoint has been saved."""
        self._since = time.monotonic()


def out_of_patience(experiment: Experiment, history: Sequence[Mapping[str, float]]) -> bool:
    """Returns whether to end the run early, because the best evaluation was at least `evaluation.patience` evaluations
    ago. Always False if this setting is None.
    """
    patience, best = experiment.evaluation.patience, experiment.best_metric
    if patience is None or best is None:
        return False
    values = [rank for results in history if (rank := best.rank(results)) is not None]
    return bool(values) and len(values) - 1 - values.index(max(values)) >= patience
