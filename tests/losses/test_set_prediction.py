"""Matching predictions with objects, and the losses of the matches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxformer.losses.boxes import corners, generalized_iou
from jaxformer.losses.set_prediction import Costs, Targets, assign, set_losses

ASSIGN = jax.jit(assign)
LOSSES = jax.jit(set_losses, static_argnums=(3, 4))


def test_the_assignment_is_that_of_scipy_and_padding_has_no_effect():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(20, 9, 6)).astype(np.float32)
    counts = rng.integers(0, 7, 20)
    weights = (np.arange(6) < counts[:, None]).astype(np.float32)
    found = np.asarray(ASSIGN(costs, weights))
    for cost, count, row in zip(costs, counts, found, strict=True):
        predictions, objects = scipy.optimize.linear_sum_assignment(cost[:, :count])
        assert row[objects].tolist() == predictions.tolist()
        assert row.min() >= 0 and row.max() < 9


@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_the_best_of_all(seed):
    cost = np.random.default_rng(seed).normal(size=(1, 5, 3)).astype(np.float32)
    found = np.asarray(ASSIGN(cost, np.ones((1, 3), np.float32)))[0]
    best = min(itertools.permutations(range(5), 3), key=lambda order: cost[0, order, range(3)].sum())
    assert tuple(found) == best


def test_costs_that_are_not_finite_are_avoided():
    cost = np.zeros((1, 4, 2), np.float32)
    cost[0, 0], cost[0, 1] = np.nan, np.inf
    assert set(np.asarray(ASSIGN(cost, np.ones((1, 2), np.float32)))[0]) == {2, 3}
    assert len(set(np.asarray(ASSIGN(np.full_like(cost, np.nan), np.ones((1, 2), np.float32)))[0])) == 2
    with pytest.raises(ValueError, match="2 predictions for 4 objects"):
        assign(jnp.zeros((1, 2, 4)), jnp.ones((1, 4)))


def test_generalized_iou_of_known_boxes():
    box = jnp.array([0.0, 0.0, 2.0, 2.0])
    others = jnp.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 4, 4], [0, 0, 1, 1], [1, 1, 1, 1]], jnp.float32)
    np.testing.assert_allclose(generalized_iou(box, others), [1, 1 / 3, -0.5, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(corners(jnp.array([1.0, 2.0, 2.0, 1.0])), [0, 1.5, 2, 2.5])
    assert float(generalized_iou(jnp.zeros(4), jnp.zeros(4))) == 0


def predictions(images, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, 5, 4)).astype(np.float32), rng.uniform(0.2, 0.5, (images, 5, 4)).astype(np.float32)


def test_losses_of_predictions_by_hand():
    boxes = np.array([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]], np.float32)
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]], np.float32))
    targets = Targets(
        np.array([[[0.5, 0.5, 0.2, 0.4], [0, 0, 0, 0]]], np.float32),
        np.array([[0, 0]], np.int32),
        np.array([[1, 0]], np.float32),
        np.ones(1, np.float32),
    )
    found = LOSSES(logits, boxes, targets, Costs(), 0.1)
    np.testing.assert_allclose(found["class_loss"].value, -(np.log(0.7) + 0.1 * np.log(0.8)) / 1.1, rtol=1e-5)
    np.testing.assert_allclose(found["l1_loss"].value, 0.2, rtol=1e-5)
    np.testing.assert_allclose(found["giou_loss"].value, 0.5, rtol=1e-5)


def test_losses_of_two_batches_add_up_to_those_of_both_and_padding_has_none():
    logits, boxes = predictions(4)
    rng = np.random.default_rng(1)
    weights = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], np.float32)
    targets = Targets(
        rng.uniform(0.2, 0.5, (4, 3, 4)).astype(np.float32),
        rng.integers(0, 3, (4, 3)).astype(np.int32),
        weights,
        np.array([1, 1, 0, 1], np.float32),
    )
    targets = targets.replace(weights=weights * targets.images[:, None])
    whole = LOSSES(logits, boxes, targets, Costs(), 0.1)
    parts = [
        LOSSES(logits[rows], boxes[rows], jax.tree.map(lambda array, rows=rows: array[rows], targets), Costs(), 0.1)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name, mean in whole.items():
        np.testing.assert_allclose(mean.sum, sum(part[name].sum for part in parts), rtol=1e-5)
        np.testing.assert_allclose(mean.weight, sum(part[name].weight for part in parts), rtol=1e-5)
    assert float(whole["l1_loss"].weight) == 5
    np.testing.assert_allclose(whole["class_loss"].weight, 5 + 0.1 * 10, rtol=1e-5)
    changed = logits + 10 * np.eye(4)[2][:, None, None]
    np.testing.assert_array_equal(
        LOSSES(changed, boxes, targets, Costs(), 0.1)["class_loss"].sum, whole["class_loss"].sum
    )


def test_images_without_objects_have_a_loss_and_a_finite_gradient():
    logits, boxes = predictions(2)
    empty = Targets(
        np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), np.ones(2)
    )

    def loss(logits, boxes):
        return sum(mean.value for mean in set_losses(logits, boxes, empty, Costs(), 0.1).values())

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(logits, boxes)
    assert all(np.isfinite(gradient).all() for gradient in gradients) and np.abs(gradients[0]).max() > 0
