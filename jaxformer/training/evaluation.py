"""Evaluation: one pass over held-out data that reads every document once."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from jaxformer.config import Experiment
from jaxformer.data.pipeline.lanes import empty_batch
from jaxformer.data.pipeline.loader import Batch, evaluation_batches
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.evaluations import NamedEvaluation
from jaxformer.metrics.base import Context, DocumentMetric, MetricStates
from jaxformer.metrics.means import fixed_order
from jaxformer.objectives.base import Objective
from jaxformer.parallel import processes, sharding
from jaxformer.progress import phase
from jaxformer.training.state import abstract_params

GROUP = 32
"""Number of documents in a group, for metrics of whole documents (`DocumentMetric`). The processes divide the groups
among themselves. The size is fixed, so that results do not depend on the number of processes.
"""


class Evaluator:
    """Runs one evaluation of an experiment: computes its metrics on held-out data. Compiles once, at the first call."""

    def __init__(
        self,
        experiment: Experiment,
        tokenizer: Tokenizer | None,
        mesh: jax.sharding.Mesh,
        evaluation: NamedEvaluation | None = None,
    ):
        """Prepares an evaluation. If `evaluation` is None, prepares the evaluation on `data.validation`."""
        self._experiment, self._tokenizer, self._mesh = experiment, tokenizer, mesh
        self._rows = sharding.local_rows(experiment.data.batch, mesh)
        self._data = evaluation.data(experiment.data) if evaluation else experiment.data
        self._limit = evaluation.batches if evaluation else experiment.evaluation.batches
        self._metrics = experiment.objective.all_metrics(experiment.model)
        self._of_documents = [metric for metric in self._metrics if isinstance(metric, DocumentMetric)]

    def check(self) -> None:
        """Raises InputError if the held-out data gives no batch, or does not have the fields that the metrics need."""
        self._experiment.objective.check(self._experiment.model, self._data.task.row)
        for metric in self._of_documents:
            metric.check(self._data.task)
        with contextlib.closing(self._batches()) as batches:
            next(batches)

    def __call__(
        self, params, stopped: Callable[[], bool] = lambda: False, reference: Any = None
    ) -> dict[str, float] | None:
        """Computes the metrics on the held-out data. Returns a dict from metric names to values, or None if `stopped`
        returned True.

        Args:
          params: parameters on the mesh.
          stopped: called after every batch. If it returns True in one process, all abandon the evaluation.
          reference: parameters of the reference model, if the objective needs one.
        """
        objective, model, states = self._experiment.objective, self._experiment.model, MetricStates(self._metrics)
        with sharding.use(self._mesh, self._experiment.mesh), phase("evaluating") as show:
            for number, batch in enumerate(self._batches(stopped), 1):
                if batch is None:
                    return None
                states.add(jax.device_get(_terms(objective, model, params, batch, reference)))
                show(f"batch {number:,}")
            if self._of_documents:
                show("documents")
                if not self._add_documents(states, params, stopped):
                    return None
        return states.compute()

    def _add_documents(self, states: MetricStates, params: Any, stopped: Callable[[], bool]) -> bool:
        """Computes the metrics that need whole documents, and adds the results to `states`. The documents are divided
        among the processes. Returns False if `stopped` returned True in one of them.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        mesh = processes.local_mesh(self._mesh, size)
        local = processes.to_local(params, abstract_params(self._experiment, mesh))
        context = Context(self._experiment.model, local, self._tokenizer, self._data.task)
        documents = [] if self._data.validation is None else self._data.validation.open()
        with sharding.use(mesh, self._experiment.mesh):
            for metric in self._of_documents:
                scored = _score(metric, context, documents, stopped)
                if scored is None:
                    return False
                for state in scored:
                    states.add_state(metric, state)
        return True

    def _batches(
        self, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[dict[str, jax.Array] | None, None, None]:
        """Yields the batches, and None after the batch at which `stopped` returned True in one of the processes."""
        data, seed = self._data, self._experiment.seed
        if data.validation is None:
            raise InputError("data.validation=None: expected held-out data to evaluate on")
        local = evaluation_batches(data.validation, data, self._tokenizer, seed, self._rows)
        empty = empty_batch(len(self._rows), data.task.for_evaluation().row)
        for number, batch in enumerate(_until_all_end(local, empty, stopped)):
            if number == self._limit:
                return
            yield None if batch is None else sharding.global_batch(batch, self._rows, data.batch, self._mesh)


class Evaluations:
    """Runs all evaluations of an experiment."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer | None, mesh: jax.sharding.Mesh):
        self._evaluators = {
            name: Evaluator(experiment, tokenizer, mesh, evaluation)
            for name, evaluation in experiment.all_evaluations.items()
        }

    def check(self) -> None:
        """Checks that the data of every evaluation fits the objective and the metrics. See `Evaluator.check`."""
        for evaluator in self._evaluators.values():
            evaluator.check()

    def __call__(
        self, params, stopped: Callable[[], bool] = lambda: False, reference: Any = None
    ) -> dict[str, dict[str, float]] | None:
        """Runs all evaluations, with the arguments of `Evaluator.__call__`. Returns a dict that maps names of
        evaluations to their metrics, or None if `stopped` returned True.
        """
        results = {}
        for name, evaluate in self._evaluators.items():
            values = evaluate(params, stopped, reference)
            if values is None:
                return None
            results[name] = values
        return results


@functools.partial(jax.jit, static_argnums=(0, 1))
def _terms(
    objective: Objective, model: Any, params: Any, batch: dict[str, jax.Array], reference: Any = None
) -> dict[str, Any]:
    """Computes the values that the objective returns for a batch, keyed by name: the loss, and the statistics from
    which the metrics are computed. The batch is sharded; the values are replicated on all devices.
    """
    with fixed_order():
        terms = objective(model, params, objective.with_reference(model, reference, batch))
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, PartitionSpec()), terms)


def _score(metric: DocumentMetric, context: Context, documents: Any, stopped: Callable[[], bool]) -> list[Any] | None:
    """Computes the state (partial result) of a metric for each group of `GROUP` documents. Each process computes its
    share of the groups. Returns the states of all groups in document order, in every process. Returns None if `stopped`
    returned True in one of the processes.
    """
    indices = list(metric.select(context, documents))
    groups = [indices[start : start + GROUP] for start in range(0, len(indices), GROUP)] or [[]]
    count = jax.process_count()
    mine = groups[jax.process_index() :: count]
    states = processes.gather(
        lambda: [None if stopped() else metric.score(context, documents, group) for group in mine]
    )
    if any(state is None for part in states for state in part):
        return None
    return [states[number % count][number // count] for number in range(len(groups))]


def _until_all_end(batches: Iterator[Batch], empty: Batch, stopped: Callable[[], bool]) -> Iterator[Batch | None]:
    """Yields this process's batches, followed by empty batches until all processes have reached the end of their data.
    So all processes evaluate the same number of batches. If `stopped` returns True in one process after a batch, yields
    None in all of them, and ends.
    """
    first = True
    while True:
        batch = next(batches, None)
        now = np.array([batch is not None, not first and stopped()])
        if jax.process_count() > 1:
            now = multihost_utils.process_allgather(now).any(axis=0)
        more, stops = map(bool, now)
        if not more:
            return
        if stops:
            yield None
            return
        yield empty if batch is None else batch
        first = False
