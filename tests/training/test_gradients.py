"""Micro-batches of an objective that compares the examples of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import assert_trees_close, bert_params, small_bert, small_experiment

from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.optimizers import AdamW, Schedule

MODEL, DROPPING = (small_bert(depth=1, dropout=rate) for rate in (0.0, 0.3))
PARAMS, KEY = bert_params(MODEL), jax.random.key(0)
OBJECTIVE = SentenceEmbedding(temperature=0.3)
RNG = np.random.default_rng(0)


def text():
    tokens = RNG.integers(5, 96, (8, 6)).astype(np.int32)
    segments = (np.arange(6) < RNG.integers(2, 7, 8)[:, None]).astype(np.int32)
    return tokens, segments, np.tile(np.arange(6, dtype=np.int32), (8, 1))


SIDES = (("inputs", "input_segments", "input_position_ids"), ("tokens", "segments", "position_ids"))
BATCH = {name: array for names in SIDES for name, array in zip(names, text(), strict=True)}
BATCH["weights"] = np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32)[:, None]


def in_parts(parts, model=MODEL):
    optimizer = AdamW(Schedule(1e-2), accumulate=parts)
    experiment = small_experiment(model, optimizer=optimizer, objective=OBJECTIVE)
    return jax.jit(loss_and_gradient, static_argnums=0)(experiment, PARAMS, BATCH, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_compared_with_the_whole_batch(parts):
    (expected, whole), (means, gradient) = in_parts(1), in_parts(parts)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(means[name].value, expected[name].value, rtol=1e-5)
    assert_trees_close(gradient, whole, 1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 0.01


@pytest.mark.slow
def test_both_passes_drop_the_same():
    """The gradient is that of the loss of the vectors; each micro-batch has a key of its own."""

    def loss(params):
        parts = []
        for number in range(2):
            micro = {name: array[number::2] for name, array in BATCH.items()}
            parts.append(OBJECTIVE.vectors(DROPPING, params, micro, jax.random.fold_in(KEY, number)))
        merged = jax.tree.map(lambda *arrays: jnp.stack(arrays, 1).reshape(8, *arrays[0].shape[1:]), *parts)
        return OBJECTIVE.compare(DROPPING, params, merged, BATCH)["loss"].value

    expected, gradient = jax.jit(jax.value_and_grad(loss))(PARAMS)
    means, actual = in_parts(2, DROPPING)
    np.testing.assert_allclose(means["loss"].value, expected, rtol=1e-5)
    assert_trees_close(actual, gradient, 1e-5)
