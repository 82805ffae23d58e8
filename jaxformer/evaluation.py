"""The evaluation loop: one pass over held-out data, every document once."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer import metrics, sharding
from jaxformer.config import Experiment
from jaxformer.data.lanes import empty_batch
from jaxformer.data.loader import Batch, evaluation_batches
from jaxformer.data.tokenizers import Tokenizer

SPLIT = "validation"


class Evaluator:
    """Evaluates parameters on an experiment's held-out data; compiles once, at the first call."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer, mesh: jax.sharding.Mesh):
        self._experiment, self._tokenizer, self._mesh = experiment, tokenizer, mesh
        self._rows = sharding.local_rows(experiment.data.batch, mesh)
        objective, model = experiment.objective, experiment.model
        self._step = jax.jit(lambda params, batch: objective(model, params, batch))

    def __call__(self, params, stopped: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The metrics by name, exact over all held-out documents; None if `stopped` turned true on the way.

        Args:
          params: parameters laid on the mesh.
          stopped: asked after every batch.
        """
        total: dict[str, metrics.Mean] = {}
        with jax.set_mesh(self._mesh):
            for batch in self._batches():
                total = metrics.merge([total, self._step(params, batch)])
                if stopped():
                    return None
        return self._experiment.objective.report(total)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        experiment, limit = self._experiment, self._experiment.evaluation.batches
        data = experiment.data
        local = evaluation_batches(data.validation, data, self._tokenizer, experiment.seed, self._rows)
        empty = empty_batch(len(self._rows), data.task.row)
        for number, batch in enumerate(_until_all_end(local, empty)):
            if number == limit:
                return
            yield sharding.global_batch(batch, self._rows, data.batch, self._mesh)


def _until_all_end(batches: Iterator[Batch], empty: Batch) -> Iterator[Batch]:
    """Every process's batches until the last one has no more: who has ended gives empty ones."""
    if jax.process_count() == 1:
        yield from batches
        return
    while True:
        batch = next(batches, None)
        if not multihost_utils.process_allgather(np.array(batch is not None)).any():
            return
        yield empty if batch is None else batch
