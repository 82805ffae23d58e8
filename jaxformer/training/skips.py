"""Detects skipped steps, whose gradients were not finite, and ends a run that skips too many steps in a row."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.errors import InputError
from jaxformer.metrics.means import Mean
from jaxformer.parallel import processes

MOST_SKIPPED = 10
"""Number of consecutive steps with a non-finite gradient after which a run stops."""
WITHIN = 2
"""Number of later steps that are started before the gradient norm of a step is examined. At that time the host waits
for the step anyway (see `Meter.add`), so that this costs no time.
"""


@dataclasses.dataclass(frozen=True)
class Skip:
    """A step whose gradient was not finite."""

    step: int
    """Number of the step, counted from 1."""
    values: dict[str, float]
    """Gradient norm and losses of the step."""
    lanes: np.ndarray
    """State of the data pipeline before the batch of the step, int32 [batch, S], with S integers per batch row."""

    def line(self) -> dict[str, Any]:
        """Returns the JSON object that is written to `skipped.jsonl` for the step."""
        return {"step": self.step, **self.values, "lanes": self.lanes.tolist()}


class Skips:
    """Detects the skipped steps of a run.

    The gradient norm of a step is read `WITHIN` steps later, while the device computes those steps. All processes read
    it at the same time, so that they detect the same skipped steps.
    """

    def __init__(self, in_a_row: int, rows: Sequence[int], losses: Iterable[str]):
        """Creates the detector.

        Args:
          in_a_row: number of consecutive skipped steps at the end of earlier training, from which counting continues.
          rows: indices of this process's rows in the global batch.
          losses: names of the losses to log for a skipped step, in addition to the gradient norm.
        """
        self._in_a_row, self._rows, self._names = in_a_row, rows, ("gradient_norm", *losses)
        self._waiting: collections.deque[tuple[int, dict[str, Mean], np.ndarray]] = collections.deque()

    def add(self, step: int, means: dict[str, Mean], lanes: np.ndarray) -> Iterator[Skip]:
        """Adds a step, which the device may still be computing. Examines the step that was added `WITHIN` steps
        earlier, and yields it if it was skipped.

        Args:
          step: number of the step, counted from 1.
          means: losses and metrics of the step, as weighted means.
          lanes: state of the data pipeline for this process's rows before the step.

        Raises:
          InputError: If `MOST_SKIPPED` consecutive steps were skipped, after the last of them has been yielded.
        """
        self._waiting.append((step, {name: means[name] for name in self._names if name in means}, lanes))
        yield from self._looked_at(WITHIN)

    def rest(self) -> Iterator[Skip]:
        """Examines all added steps that have not been examined yet, and yields those that were skipped. Waits until the
        device has computed them. Raises InputError under the same condition as `add`.
        """
        yield from self._looked_at(0)

    def _looked_at(self, left: int) -> Iterator[Skip]:
        while len(self._waiting) > left:
            step, means, lanes = self._waiting.popleft()
            if math.isfinite(float(np.asarray(means["gradient_norm"].sum))):
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            values = {name: float(mean.value) for name, mean in jax.device_get(means).items()}
            yield Skip(step, values, self._all_lanes(lanes))
            if self._in_a_row >= MOST_SKIPPED:
                raise InputError(
                    f"step {step}: the last {self._in_a_row} gradients were not finite and were skipped: lower "
                    "optimizer.schedule.peak or optimizer.clip"
                )

    def _all_lanes(self, lanes: np.ndarray) -> np.ndarray:
        parts = processes.gather(lambda: dict(zip(map(int, self._rows), lanes.tolist(), strict=True)))
        whole = {row: state for part in parts for row, state in part.items()}
        return np.array([whole[row] for row in sorted(whole)], np.int32)
