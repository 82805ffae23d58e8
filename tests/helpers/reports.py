"""Reports of an objective's metrics, without an evaluation."""

import jax

from jaxformer.metrics.base import Context, DocumentMetric, MetricStates


def report(objective, model, *batches):
    """The metrics of the terms of some batches."""
    states = MetricStates(objective.metrics(model))
    for terms in jax.device_get(batches):
        states.add(terms)
    return states.compute()


def score_documents(objective, model, params, tokenizer, task, documents):
    """The metrics of whole documents, all in one group."""
    context, values = Context(model, params, tokenizer, task), {}
    for metric in objective.metrics(model):
        if isinstance(metric, DocumentMetric):
            metric.check(task)
            values |= metric.compute(metric.score(context, documents, metric.select(context, documents)))
    return values
