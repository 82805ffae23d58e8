"""The evaluation loop: one pass over held-out data, every document once."""

import contextlib
from collections.abc import Callable, Generator, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.config import Experiment
from jaxformer.data.pipeline.lanes import empty_batch
from jaxformer.data.pipeline.loader import Batch, evaluation_batches
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics import means as metrics
from jaxformer.parallel import sharding
from jaxformer.progress import phase
from jaxformer.training.state import abstract_params

SPLIT = "validation"


class Evaluator:
    """Evaluates parameters on an experiment's held-out data; compiles once, at the first call."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer | None, mesh: jax.sharding.Mesh):
        self._experiment, self._tokenizer, self._mesh = experiment, tokenizer, mesh
        self._rows = sharding.local_rows(experiment.data.batch, mesh)
        objective, model = experiment.objective, experiment.model
        self._step = jax.jit(lambda params, batch: objective(model, params, batch))

    def check(self) -> None:
        """Raises InputError where the held-out data gives no batch, or has not what the metrics need."""
        with contextlib.closing(self._batches()) as batches:
            self._check_metrics(next(batches))

    def __call__(self, params, stopped: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The metrics by name, exact over all held-out documents; None if `stopped` turned true on the way.

        Args:
          params: parameters laid on the mesh.
          stopped: asked after every batch.
        """
        total: dict[str, metrics.Mean | metrics.Covariance] = {}
        with sharding.use(self._mesh, self._experiment.mesh), phase("evaluating") as show:
            for number, batch in enumerate(self._batches(), 1):
                total = metrics.merge([total, self._step(params, batch)])
                show(f"batch {number:,}")
                if stopped():
                    return None
            show("documents")
            total |= self._document_scores(params)
        return self._experiment.objective.report(total)

    def _document_scores(self, params, none: bool = False) -> dict[str, metrics.Mean]:
        """What the objective makes of whole documents, of which rows are parts, or of `none`; nothing in several
        processes."""
        document_scores = getattr(self._experiment.objective, "document_scores", None)
        if document_scores is None or jax.process_count() > 1:
            return {}
        data = self._experiment.data
        documents = [] if none or data.validation is None else data.validation.open()
        return document_scores(self._experiment.model, params, self._tokenizer, data.task, documents)

    def _check_metrics(self, batch: dict[str, jax.Array]) -> None:
        of_documents = self._document_scores(None, none=True)
        best = self._experiment.checkpoint.best
        if best is None:
            return
        params = abstract_params(self._experiment, self._mesh)
        means = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(self._step, params, batch))
        known = self._experiment.objective.report(means | of_documents)
        if best not in known:
            raise InputError(f"checkpoint.best={best}: no such metric; expected one of {', '.join(sorted(known))}")

    def _batches(self) -> Generator[dict[str, jax.Array], None, None]:
        experiment, limit = self._experiment, self._experiment.evaluation.batches
        data = experiment.data
        if data.validation is None:
            raise InputError("data.validation=None: expected held-out data to evaluate on")
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
