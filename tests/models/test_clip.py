"""Two towers: which token is pooled, what a call may leave out, and what does not change a vector."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.errors import InputError
from jaxformer.layers.transformer import Transformer
from jaxformer.models.clip import Clip, ImageTower, TextTower, siglip

STACK = Transformer(16, 2, 2, dropout=0.0, attention_dropout=0.0)
VISION = ImageTower(STACK, image=8, patch=4)
TEXT = TextTower(STACK, vocab=30, max_length=8)
MODEL = Clip(VISION, TEXT, width=12)
SIGMOID = Clip(
    dataclasses.replace(VISION, pooling="attention"),
    dataclasses.replace(TEXT, causal=False, pad_id=1),
    width=None,
    init_bias=-10.0,
)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 8, 8, 3), np.uint8)
TOKENS = RNG.integers(2, 29, (3, 8)).astype(np.int32)
SEGMENTS = (np.arange(8) < np.array([8, 5, 3])[:, None]).astype(np.int32)
PARAMS = noisy_params(MODEL, IMAGES, TOKENS)


def apply(model, params, *inputs, **more):
    return jax.jit(lambda params: model.apply({"params": params}, *inputs, **more))(params)


@pytest.mark.slow
def test_padding_does_not_change_a_text_that_masks_it():
    padded = apply(MODEL, PARAMS, tokens=TOKENS, segments=SEGMENTS).text_vectors
    for row, length in enumerate((8, 5, 3)):
        alone = apply(MODEL, PARAMS, tokens=TOKENS[row : row + 1, :length]).text_vectors[0]
        np.testing.assert_allclose(padded[row], alone, atol=1e-5)


@pytest.mark.slow
def test_poolings_agree_where_the_end_is_the_last_and_highest_token():
    tokens = TOKENS.copy()
    tokens[np.arange(3), SEGMENTS.sum(1) - 1] = 29
    tokens = np.where(SEGMENTS, tokens, 0)
    expected = apply(MODEL, PARAMS, tokens=tokens, segments=SEGMENTS).text_vectors
    for text in ({"pooling": "highest"}, {"pooling": "end", "end_id": 29}):
        model = dataclasses.replace(MODEL, text=dataclasses.replace(TEXT, **text))
        np.testing.assert_allclose(apply(model, PARAMS, tokens=tokens).text_vectors, expected, atol=1e-5)


@pytest.mark.slow
def test_a_text_without_a_mask_sees_its_padding_and_pools_the_last_position():
    params = noisy_params(SIGMOID, IMAGES, TOKENS)
    found = apply(SIGMOID, params, tokens=TOKENS, segments=SEGMENTS).text_vectors
    filled = apply(SIGMOID, params, tokens=np.where(SEGMENTS, TOKENS, 1)).text_vectors
    np.testing.assert_allclose(found, filled, atol=1e-6)
    shorter = apply(SIGMOID, params, tokens=TOKENS[2:, :3]).text_vectors
    assert np.abs(shorter - found[2:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, SIGMOID], ids=["softmax", "sigmoid"])
def test_logits_are_scaled_products_of_unit_vectors(model):
    params = noisy_params(model, IMAGES, TOKENS)
    output = apply(model, params, IMAGES, TOKENS, SEGMENTS)
    images, texts = np.asarray(output.image_vectors), np.asarray(output.text_vectors)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    expected = np.exp(params["log_scale"]) * images @ texts.T + params.get("bias", 0)
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    alone = apply(model, params, IMAGES)
    np.testing.assert_allclose(alone.image_vectors, images, atol=1e-5)
    assert alone.logits is None and alone.text_vectors is None


def test_both_towers_have_parameters_of_their_own_where_they_have_one_stack():
    assert MODEL.vision.transformer == MODEL.text.transformer
    kernels = [PARAMS[tower]["transformer"]["blocks"]["mlp"]["up"]["kernel"] for tower in ("vision", "text")]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_the_sizes_are_those_of_the_papers():
    for model, millions in ((Clip(), 151.3), (siglip(), 203.2)):
        inputs = model.abstract_inputs(length=8)
        shapes = jax.eval_shape(model.init, jax.random.key(0), **inputs)
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TextTower(STACK, pooling="end"), "model.text.end_id=None: expected an id with pooling=end"),
        (lambda: TextTower(STACK, end_id=3), "model.text.end_id=3: expected None with pooling=last"),
        (lambda: TextTower(STACK, pad_id=1), "model.text.pad_id=1: expected None, or causal=False and pooling=last"),
        (lambda: ImageTower(STACK, image=9, patch=4), "model.image=9 is not a multiple of model.patch=4"),
        (lambda: Clip(VISION, TEXT, width=0), "model.width=0: expected at least 1, or None"),
        (lambda: Clip(VISION, TEXT, init_scale=0.0), "model.init_scale=0.0: expected above 0"),
    ],
)
def test_fields_that_cannot_be(make, line):
    with pytest.raises(InputError, match=re.escape(line)):
        make()
