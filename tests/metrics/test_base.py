"""The contract of metrics."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.metrics.averages import Average, BitsPerToken, LargestShare, Loss, Perplexity
from jaxformer.metrics.base import Metric, MetricStates, directions
from jaxformer.metrics.means import Mean, fixed_order, total


@dataclasses.dataclass(frozen=True)
class Largest(Metric[float]):
    """The largest value of all batches, under any names."""

    names: tuple[str, ...] = ("largest",)
    computed: tuple[str, ...] = ("largest",)

    def update(self, terms):
        return float(terms["values"].max()) if "values" in terms else None

    def merge(self, state, other):
        return max(state, other)

    def compute(self, state):
        return dict.fromkeys(self.computed, state)


def test_states_of_batches_are_merged_metric_by_metric():
    states = MetricStates((Loss((("a", 1.0), ("b", 0.5))), Average("a"), Largest()))
    states.add({"a": Mean(np.float32(2), np.float32(1)), "b": Mean(np.float32(8), np.float32(2))})
    states.add({"a": Mean(np.float32(0), np.float32(3)), "b": Mean(np.float32(0), np.float32(0)), "values": np.ones(2)})
    assert states.compute() == {"loss": 0.5 + 0.5 * 4, "a": 0.5, "largest": 1.0}


def test_metrics_without_data_are_left_out():
    states = MetricStates((Average("a"), Largest()))
    states.add({"a": Mean(np.float32(1), np.float32(2))})
    assert states.compute() == {"a": 0.5}


def test_metrics_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="another metric is called a too"):
        MetricStates((Average("a"), Perplexity("a", "b")))


def test_numbers_that_a_metric_has_not_declared_are_refused():
    states = MetricStates((Largest(computed=("other",)),))
    states.add({"values": np.ones(1)})
    with pytest.raises(ValueError, match=r"computed \['other'\]; it declares \['largest'\]"):
        states.compute()


def test_every_metric_declares_which_value_is_best():
    metrics = (
        Loss(),
        Average("accuracy", True),
        Perplexity("perplexity", "x"),
        BitsPerToken("x"),
        LargestShare("s", "x"),
    )
    assert directions(metrics) == {
        "loss": False,
        "accuracy": True,
        "perplexity": False,
        "bits_per_token": False,
        "s": True,
    }


def test_sums_in_fixed_order_without_a_mesh_are_plain_sums():
    with fixed_order():
        assert float(total(jnp.arange(5.0))) == 10
