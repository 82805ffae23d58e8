"""The contrastive objective of images and texts: its loss in parts and on a mesh, and what an evaluation gets."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_bert import assert_trees_close, small_bert
from small_clip import SIGMOID, SOFTMAX, TASK, TOKENIZER, small_run

from jaxformer.errors import InputError
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.parallel import sharding
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.optimizers import AdamW, Schedule

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(3, 8, 8)
SEGMENTS = (np.arange(8) < LENGTHS[:, None]).astype(np.int32)
BATCH = {
    "images": RNG.integers(0, 256, (8, 8, 8, 3), np.uint8),
    "tokens": np.where(SEGMENTS, RNG.integers(5, TOKENIZER.vocab_size, (8, 8)), 0).astype(np.int32),
    "segments": SEGMENTS,
    "weights": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32)[:, None],
}
MODELS = {"softmax": SOFTMAX, "sigmoid": SIGMOID}


def in_parts(model, parts, tmp_path):
    run = small_run(model, tmp_path)
    optimizer = AdamW(Schedule(1e-3), accumulate=parts)
    experiment = dataclasses.replace(run.experiment, optimizer=optimizer)
    return jax.jit(loss_and_gradient, static_argnums=0)(experiment, run.params, BATCH, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("loss", MODELS)
def test_micro_batches_have_the_loss_and_gradient_of_the_whole_batch(loss, tmp_path):
    (expected, whole), (means, gradient) = (in_parts(MODELS[loss], parts, tmp_path) for parts in (1, 4))
    np.testing.assert_allclose(means["loss"].value, expected["loss"].value, rtol=1e-5)
    assert_trees_close(gradient, whole, 1e-4)
    assert float(abs(gradient["log_scale"])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loss", MODELS)
def test_a_mesh_has_the_loss_and_gradient_of_one_device(loss, tmp_path):
    run = small_run(MODELS[loss], tmp_path)

    def compute(params, batch):
        objective = run.objective
        return jax.value_and_grad(lambda params: objective(run.model, params, batch, jax.random.key(0))["loss"].value)(
            params
        )

    expected, gradient = jax.jit(compute)(run.params, BATCH)
    mesh = sharding.make_mesh(sharding.Mesh(data=2, fsdp=2))
    with jax.set_mesh(mesh):
        laid = {name: jax.device_put(array, sharding.batch_sharding(mesh)) for name, array in BATCH.items()}
        actual, over_mesh = jax.jit(compute)(jax.device_get(run.params), laid)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_trees_close(over_mesh, gradient, 1e-4)


@pytest.mark.slow
def test_the_loss_caps_the_scale(tmp_path):
    run = small_run(SOFTMAX, tmp_path)
    large, capped = (
        dataclasses.replace(run.objective, max_scale=cap)(run.model, run.params | {"log_scale": scale}, BATCH)
        for cap, scale in ((7.0, np.log(7.0)), (7.0, np.log(90.0)))
    )
    np.testing.assert_allclose(large["loss"].value, capped["loss"].value, rtol=1e-6)


def test_an_evaluation_has_the_vectors_and_a_training_step_means_alone(tmp_path):
    run = small_run(SOFTMAX, tmp_path)
    terms = run.objective(run.model, run.params, BATCH)
    names = [name for metric in run.objective.metrics(run.model) for name in metric.names]
    assert {"loss", "accuracy", "image_to_text_1", "text_to_image_5", "chance_1"} <= set(names)
    np.testing.assert_array_equal(terms["text_keys"] == -1, SEGMENTS == 0)
    assert set(run.objective(run.model, run.params, BATCH, jax.random.key(0))) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("objective", "model", "line"),
    [
        (ImageTextContrastive("sigmoid"), SOFTMAX, "objective.loss=sigmoid: needs a bias of the scores"),
        (
            ImageTextContrastive(),
            small_bert(),
            "needs a Clip or another model of images and texts",
        ),
    ],
)
def test_models_that_it_cannot_train(objective, model, line):
    with pytest.raises(InputError, match=re.escape(line)):
        objective.check(model, TASK.row)


def test_rows_without_images_are_refused():
    with pytest.raises(InputError, match="the task's rows have no images; use ImageTextPairs"):
        ImageTextContrastive().check(SOFTMAX, {"tokens": 1, "weights": 1})
