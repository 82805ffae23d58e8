"""Notices skipped steps while the device works on the next ones, and ends a run that skips too many in a row."""

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
"""Number of steps after which a step is looked at. The host waits for it anyway, so looking costs no time."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """A step whose gradient was not finite."""

    step: int
    """Number of the step, counted from 1."""
    values: dict[str, float]
    """Gradient norm and losses of the step."""
    lanes: np.ndarray
    """int32 [batch, S]: states of all lanes before the batch of the step."""

    def line(self) -> dict[str, Any]:
        """Returns the JSON object for `skipped.jsonl`."""
        return {"step": self.step, **self.values, "lanes": self.lanes.tolist()}


class Skips:
    """Finds the skipped steps of a run.

    Every step is looked at `WITHIN` steps later, in all processes at the same step, so that they agree.
    """

    def __init__(self, in_a_row: int, rows: Sequence[int], losses: Iterable[str]):
        """Starts to watch.

        Args:
          in_a_row: number of consecutive steps before the first one that were skipped.
          rows: indices of this process's rows in the global batch.
          losses: names of the means to log in addition to the gradient norm.
        """
        self._in_a_row, self._rows, self._names = in_a_row, rows, ("gradient_norm", *losses)
        self._waiting: collections.deque[tuple[int, dict[str, Mean], np.ndarray]] = collections.deque()

    def add(self, step: int, means: dict[str, Mean], lanes: np.ndarray) -> Iterator[Skip]:
        """Adds a step that may still run, with the states of this process's lanes before it. Yields older skips.

        Raises:
          InputError: If `MOST_SKIPPED` consecutive steps were skipped, after the last of them has been yielded.
        """
        self._waiting.append((step, {name: means[name] for name in self._names if name in means}, lanes))
        yield from self._looked_at(WITHIN)

    def rest(self) -> Iterator[Skip]:
        """Waits for all steps so far and yields their skips. Raises InputError like `add`."""
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
