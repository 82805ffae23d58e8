"""Contrastive losses against loops over all pairs, and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.losses.contrastive import info_nce, sigmoid_contrastive, softmax_contrastive, unit
from jaxformer.parallel import sharding

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0, 3, (5, 5)).astype(np.float32)
WEIGHTS = np.array([1, 1, 0, 1, 1], np.float32)
REAL = np.flatnonzero(WEIGHTS)


def plain_nce(scores):
    rows = [scores[i, i] - np.log(np.exp(scores[i, REAL]).sum()) for i in REAL]
    return -np.mean(rows), np.mean([scores[i, REAL].argmax() == np.flatnonzero(i == REAL)[0] for i in REAL])


def test_info_nce_compares_the_pairs_that_are_real():
    loss, accuracy = info_nce(SCORES, WEIGHTS)
    np.testing.assert_allclose([loss.value, accuracy.value], plain_nce(SCORES), rtol=1e-6)


def test_the_softmax_loss_is_the_mean_of_both_directions():
    loss, accuracy = softmax_contrastive(SCORES, WEIGHTS)
    expected = (np.array(plain_nce(SCORES)) + plain_nce(SCORES.T)) / 2
    np.testing.assert_allclose([loss.value, accuracy.value], expected, rtol=1e-6)


def test_the_sigmoid_loss_classifies_every_combination():
    loss, _ = sigmoid_contrastive(SCORES, WEIGHTS)
    signs = [[1 if i == j else -1 for j in REAL] for i in REAL]
    scores = SCORES[np.ix_(REAL, REAL)].astype(np.float64)
    np.testing.assert_allclose(loss.value, np.log1p(np.exp(-np.array(signs) * scores)).sum() / len(REAL), rtol=1e-6)


def test_vectors_of_zeros_have_a_finite_gradient():
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.linalg.norm(unit(SCORES), axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("loss", [softmax_contrastive, sigmoid_contrastive])
def test_a_mesh_compares_the_rows_of_all_devices(loss):
    vectors = [unit(jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)) for _ in range(2)]
    weights = jnp.asarray(RNG.random(8) < 0.8, jnp.float32)

    def compute(first, second, weights):
        return jax.value_and_grad(lambda first: loss(5 * first @ second.T, weights)[0].value)(first)

    expected, gradient = jax.jit(compute)(*vectors, weights)
    mesh = sharding.make_mesh(sharding.Mesh(data=2, fsdp=2))
    with jax.set_mesh(mesh):
        laid = [jax.device_put(array, sharding.batch_sharding(mesh)) for array in (*vectors, weights)]
        actual, over_mesh = jax.jit(compute)(*laid)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(over_mesh, gradient, atol=1e-6)
