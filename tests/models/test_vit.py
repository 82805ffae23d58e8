import dataclasses
import re

import jax
import numpy as np
import pytest
from small_bert import applied
from small_vit import IMAGES, SCALED, VIT, noisy

from jaxformer.errors import InputError
from jaxformer.layers.patches import interpolate
from jaxformer.models.vit import Vit


@pytest.mark.slow
@pytest.mark.parametrize("model", [VIT, SCALED], ids=["first", "first_and_mean"])
def test_what_is_left_out_where_only_the_pooled_is_wanted_changes_nothing(model):
    params = noisy(model)
    whole, pooled = applied(model, params, IMAGES), applied(model, params, IMAGES, pooled_only=True)
    np.testing.assert_allclose(pooled.logits, whole.logits, atol=1e-5)
    assert whole.hidden.shape == (4, 1 + model.registers + 9, 16)
    assert whole.logits.shape == (4, len(model.labels)) and whole.logits.dtype == np.float32
    assert (pooled.hidden is None) == (model.pooling == "first")


def test_the_pooled_is_the_class_token_and_the_mean_of_the_patches_alone():
    params = noisy(SCALED)
    output = applied(SCALED, params, IMAGES)
    hidden = np.asarray(output.hidden)
    expected = np.concatenate([hidden[:, 0], hidden[:, 3:].mean(1)], axis=-1)
    np.testing.assert_allclose(output.pooled, expected, atol=1e-5)
    mean = dataclasses.replace(VIT, class_token=False, pooling="mean", labels=())
    output = applied(mean, noisy(mean), IMAGES)
    assert output.hidden.shape == (4, 9, 16) and output.logits is None
    np.testing.assert_allclose(output.pooled, np.asarray(output.hidden).mean(1), atol=1e-5)


@pytest.mark.slow
def test_bytes_are_normalised_by_the_models_own_mean_and_deviation():
    model = dataclasses.replace(VIT, mean=(0.3,), std=(0.2,))
    params = noisy(model)
    floats = ((IMAGES / 255 - 0.3) / 0.2).astype(np.float32)
    np.testing.assert_allclose(applied(model, params, IMAGES).logits, applied(model, params, floats).logits, atol=1e-4)


@pytest.mark.slow
def test_another_resolution_has_interpolated_positions():
    params = noisy(VIT)
    large = np.random.default_rng(1).integers(0, 256, (2, 20, 16, 1), np.uint8)
    table = params["embeddings"]["position"]
    grown = np.concatenate([table[:1], interpolate(table[1:], 4, 4)])
    square = dataclasses.replace(VIT, image=16)
    expected = applied(square, params | {"embeddings": params["embeddings"] | {"position": grown}}, large[:, :16])
    np.testing.assert_allclose(applied(VIT, params, large[:, :16]).logits, expected.logits, atol=1e-5)
    assert applied(VIT, params, large).hidden.shape == (2, 21, 16)
    with pytest.raises(ValueError, match="18 × 12 cannot be divided into patches of 4"):
        applied(VIT, params, np.zeros((1, 18, 12, 1), np.uint8))


@pytest.mark.slow
def test_patches_that_change_places_change_the_answer_by_their_positions_alone():
    fixed = dataclasses.replace(VIT, position_embedding="sinusoidal")
    params, turned = noisy(fixed), IMAGES[:, ::-1]
    assert "position" not in params["embeddings"]
    assert np.abs(applied(fixed, params, IMAGES).logits - applied(fixed, params, turned).logits).max() > 1e-3
    blank = noisy(VIT)
    blank["embeddings"]["position"] = np.zeros_like(blank["embeddings"]["position"])
    shifted = np.roll(IMAGES, 4, axis=1)
    np.testing.assert_allclose(applied(VIT, blank, IMAGES).logits, applied(VIT, blank, shifted).logits, atol=1e-4)


@pytest.mark.slow
def test_training_drops_paths_by_the_key_and_evaluation_none():
    params = noisy(SCALED)

    def train(key):
        return np.asarray(applied(SCALED, params, IMAGES, train=True, rngs={"dropout": jax.random.key(key)}).logits)

    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"image": 225}, "model.image=225 is not a multiple of model.patch=16; 224 would be"),
        ({"patch": 0}, "model.patch=0: expected at least 1"),
        ({"labels": ("cat",)}, "model.labels=('cat',): expected at least two names, or none"),
        ({"class_token": False}, "model.pooling=first: expected mean with model.class_token=False"),
        ({"mean": (0.1, 0.2)}, "model.mean=(0.1, 0.2): expected one number, or one for each of 3 channels"),
        ({"std": (0.0,)}, "model.std=(0.0,): expected numbers above 0"),
    ],
)
def test_invalid_vits_are_refused(fields, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        Vit(**fields)
