"""One step: micro-batches, the moving average, gradients that are not finite, dropout's keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_mlp import CountingMlp
from small_bert import (
    assert_trees_close,
    assert_trees_identical,
    bert_params,
    first_state,
    lay_out,
    random_examples,
    small_bert,
    small_experiment,
)

from jaxformer.metrics.averages import Loss
from jaxformer.training.loop import loss_and_gradient, train_step
from jaxformer.training.optimizers import AdamW, Schedule

# Four rows that weigh very differently: full, one example, nothing to predict, empty.
ROWS = [random_examples(0, (9, 5, 8)), random_examples(1, (12,)), random_examples(2, (10,)), []]
BATCH = lay_out(ROWS)
for name in ("weights", "next_sentence_weights"):
    BATCH[name][2] = 0
MODEL, DROPPING = small_bert(depth=1), small_bert(depth=1, dropout=0.3)
PARAMS, KEY = bert_params(MODEL), jax.random.key(0)

step = jax.jit(train_step, static_argnums=0)
gradients = jax.jit(loss_and_gradient, static_argnums=0)


def optimizer(**fields):
    # A large epsilon: Adam's first update, g / (|g| + epsilon), must not magnify the rounding errors of tiny gradients.
    return AdamW(**({"schedule": Schedule(1e-2, decay="constant"), "eps": 1e-3} | fields))


@functools.cache
def experiment(model=MODEL, **fields):
    return small_experiment(model, optimizer=optimizer(**fields))


@functools.cache
def gradient_in_parts(parts):
    means, gradient = gradients(experiment(accumulate=parts), PARAMS, BATCH, KEY)
    return {name: {"sum": mean.sum, "weight": mean.weight} for name, mean in means.items()}, gradient


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_gradient_and_means_of_the_whole_batch(parts):
    means, gradient = gradient_in_parts(parts)
    expected_means, expected = gradient_in_parts(1)
    assert_trees_close(gradient, expected, 1e-6)
    assert_trees_close(means, expected_means, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_the_parts_differ_enough_that_a_mean_of_means_would_be_wrong():
    """Without this, the test above would not notice that all rows weigh the same."""
    halves = []
    for half in (slice(0, 4, 2), slice(1, 4, 2)):
        part = {name: array[half] for name, array in BATCH.items()}
        halves.append(gradients(experiment(), PARAMS, part, KEY)[1])
    naive = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), naive, gradient_in_parts(1)[1])
    assert max(jax.tree.leaves(errors)) > 0.01


@pytest.mark.slow
def test_micro_batches_make_the_same_update():
    whole, _ = step(experiment(), first_state(experiment(), PARAMS), BATCH)
    parts, _ = step(experiment(accumulate=4), first_state(experiment(accumulate=4), PARAMS), BATCH)
    assert_trees_close(parts.params, whole.params, 1e-6)
    assert np.abs(whole.params["pooler"]["kernel"] - PARAMS["pooler"]["kernel"]).max() > 1e-3


@pytest.mark.slow
def test_micro_batches_do_not_share_a_dropout_mask():
    """Two equal halves: with one mask for both, their loss would be twice the half's own."""
    batch = {name: np.repeat(array[:1], 2, axis=0) for name, array in BATCH.items()}
    half = {name: array[:1] for name, array in batch.items()}
    both, _ = gradients(experiment(DROPPING, accumulate=2), PARAMS, batch, KEY)
    first, second = (gradients(experiment(DROPPING), PARAMS, half, jax.random.fold_in(KEY, i))[0] for i in (0, 1))
    total, one, other = (float(means["masked_lm_loss"].sum) for means in (both, first, second))
    assert abs(one - other) > 1e-3
    assert total == pytest.approx(one + other, abs=1e-4)


@pytest.mark.slow
def test_the_average_follows_the_parameters_by_its_decay():
    with_average = experiment(ema=0.75)
    state, expected = first_state(with_average, PARAMS), PARAMS
    for _ in range(3):
        state, _ = step(with_average, state, BATCH)
        expected = jax.tree.map(lambda average, new: 0.75 * average + 0.25 * new, expected, state.params)
        assert_trees_close(state.average, expected, 1e-6)
    assert state.best_params is state.average
    assert np.abs(state.average["pooler"]["kernel"] - state.params["pooler"]["kernel"]).max() > 1e-3


def test_without_an_average_the_parameters_are_the_best():
    state, _ = step(experiment(), first_state(experiment(), PARAMS), BATCH)
    assert state.average is None
    assert state.best_params is state.params


@functools.cache
def trained():
    """A state that has moved: no moment is zero, no count is either, and the average lags."""
    state = first_state(experiment(ema=0.9), PARAMS)
    for _ in range(2):
        state, _ = step(experiment(ema=0.9), state, BATCH)
    return state


def without_counts(state):
    return {"params": state.params, "average": state.average, "optimizer": state.optimizer}


BAD_WEIGHTS = BATCH | {"weights": np.where(np.arange(9) == 1, np.inf, BATCH["weights"]).astype(np.float32)}


class TestGradientsThatAreNotFinite:
    @pytest.mark.slow
    def test_a_bad_batch_changes_no_bit_of_parameters_moments_and_average(self):
        before = trained()
        after, means = step(experiment(ema=0.9), before, BAD_WEIGHTS)
        assert not np.isfinite(means["gradient_norm"].value)
        assert_trees_identical(without_counts(after), without_counts(before))

    def test_a_bad_parameter_changes_no_bit_either(self):
        table = PARAMS["embeddings"]["token"].at[BATCH["tokens"][0, 0], 3].set(jnp.inf)
        before = first_state(experiment(), PARAMS | {"embeddings": PARAMS["embeddings"] | {"token": table}})
        after, _ = step(experiment(), before, BATCH)
        assert_trees_identical(without_counts(after), without_counts(before))
        assert int(after.skipped) == 1

    def test_they_are_counted_in_all_and_in_a_row(self):
        state, counts = trained(), []
        for batch in (BAD_WEIGHTS, BAD_WEIGHTS, BATCH, BAD_WEIGHTS):
            state, _ = step(experiment(ema=0.9), state, batch)
            counts.append((int(state.step), int(state.skipped), int(state.skipped_in_a_row)))
        assert counts == [(3, 1, 1), (4, 2, 2), (5, 2, 0), (6, 3, 1)]

    def test_training_continues_as_if_the_bad_batch_had_not_been(self):
        skipped, _ = step(experiment(ema=0.9), trained(), BAD_WEIGHTS)
        resumed, _ = step(experiment(ema=0.9), skipped, BATCH)
        straight, _ = step(experiment(ema=0.9), trained(), BATCH)
        assert_trees_identical(without_counts(resumed), without_counts(straight))


def test_a_batch_without_predictions_is_not_an_error_and_has_no_gradient():
    nothing = BATCH | {name: 0 * BATCH[name] for name in ("weights", "next_sentence_weights")}
    state, means = step(experiment(), first_state(experiment(), PARAMS), nothing)
    assert int(state.skipped) == 0
    assert float(means["gradient_norm"].value) == 0


@pytest.mark.slow
def test_dropout_differs_from_step_to_step_and_from_seed_to_seed():
    still = optimizer(schedule=Schedule(0.0))

    def loss(number, seed=0):
        dropping = small_experiment(DROPPING, optimizer=still, seed=seed)
        state = first_state(dropping, PARAMS).replace(step=jnp.int32(number))
        return float(step(dropping, state, BATCH)[1]["masked_lm_loss"].sum)

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(2), loss(0, seed=1)}) == 4


@pytest.mark.slow
def test_the_gradients_norm_is_that_before_clipping():
    clipped = experiment(clip=1e-3)
    _, means = step(clipped, first_state(clipped, PARAMS), BATCH)
    squares = sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(gradient_in_parts(1)[1]))
    assert float(means["gradient_norm"].value) == pytest.approx(squares**0.5, rel=1e-5)
    assert squares**0.5 > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_auxiliary_means_of_a_model_are_part_of_the_loss(parts):
    model = small_bert(depth=2, mlp=CountingMlp())
    params = bert_params(model)
    means, gradient = gradients(experiment(model, accumulate=parts), params, BATCH, KEY)
    square = means["auxiliary/square"]
    tokens = BATCH["tokens"].size

    def plain(params):
        terms = experiment(model).objective(model, params, BATCH, KEY)
        return sum(
            float(weight) * terms[name].value for name, weight in experiment(model).objective.loss_weights.items()
        )

    def with_square(params):
        return plain(params) + experiment(model).objective(model, params, BATCH, KEY)["auxiliary/square"].value

    # The last block computes some positions only, each in every micro-batch.
    assert square.weight > tokens * 16
    assert_trees_close(gradient, jax.jit(jax.grad(with_square))(params), 1e-6)
    without = jax.jit(jax.grad(plain))(params)
    kernel = gradient["transformer"]["blocks"]["mlp"]["only"]["kernel"]
    assert np.abs(kernel - without["transformer"]["blocks"]["mlp"]["only"]["kernel"]).max() > 1e-4
    metric = Loss.of(experiment(model).objective.loss_weights)
    state = metric.update(means)
    assert metric.compute(state)["loss"] == pytest.approx(float(with_square(params)), rel=1e-5)
