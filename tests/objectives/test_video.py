"""Objectives of clips: losses against their formulas, and views that are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import applied
from small_video import CLIPS, FACTORISED, VIDEO_AUTOENCODER, VIDEO_VIT, apply, noisy

from jaxformer.data.fields.clip import ClipField
from jaxformer.data.tasks.clips import LabelledClips, MaskedTubes
from jaxformer.data.tasks.images import MaskedPatches
from jaxformer.errors import InputError
from jaxformer.layers.tubelets import tubelets
from jaxformer.objectives.video_classification import VideoClassification
from jaxformer.objectives.video_masked_autoencoding import VideoMaskedAutoencoding

NOISE = np.random.default_rng(1).random((3, 4)).astype(np.float32)
LABELS = {"labels": np.array([[0, 0], [2, 0], [1, 0]]), "weights": np.float32([[1, 0], [1, 0], [0, 0]])}


def test_views_of_a_video_are_averaged():
    model, params = VIDEO_VIT, noisy(VIDEO_VIT)
    second = CLIPS[::-1]
    batch = {"clips": np.concatenate([CLIPS, second], 1), **LABELS}
    terms = jax.jit(lambda params: VideoClassification()(model, params, batch))(params)
    shares = sum(jax.nn.softmax(apply(model, params, clips).logits) for clips in (CLIPS, second)) / 2
    expected = -np.log(shares[np.arange(2), LABELS["labels"][:2, 0]]).mean()
    np.testing.assert_allclose(terms["loss"].value, expected, rtol=1e-5)
    assert float(terms["accuracy"].value) == np.mean(shares[:2].argmax(-1) == LABELS["labels"][:2, 0])


def test_a_factorised_encoder_sees_the_order_of_moments_and_only_pools_what_it_needs():
    params = noisy(FACTORISED)
    whole, short, turned = (
        apply(FACTORISED, params, clips, pooled_only=pooled_only).logits
        for clips, pooled_only in ((CLIPS, False), (CLIPS, True), (np.roll(CLIPS, 2, 1), False))
    )
    np.testing.assert_allclose(whole, short, atol=1e-5)
    assert np.abs(whole - turned).max() > 1e-3


def test_the_loss_is_the_error_of_masked_tubes_alone():
    model, params = VIDEO_AUTOENCODER, noisy(VIDEO_AUTOENCODER)
    weights = np.float32([[1], [0], [1]])
    batch = {"clips": CLIPS, "noise": NOISE, "weights": weights}

    def both(params):
        output = applied(model, params, CLIPS, NOISE)
        return VideoMaskedAutoencoding(normalised=True)(model, params, batch)["loss"], output

    loss, output = jax.jit(both)(params)
    masked = np.asarray(output.masked).reshape(3, 2, 4)
    assert (masked[:, 0] == masked[:, 1]).all() and (
        masked.sum(-1) == 2
    ).all()  # Tubes: the same places of all moments.
    assert (masked[:, 0] == (NOISE.argsort(1).argsort(1) >= 2)).all()
    every = np.asarray(tubelets(jnp.asarray(CLIPS), 2, 4)).reshape(3, 8, 32) / 255
    expected = []
    for row in (0, 2):
        hidden = every[row][np.flatnonzero(output.masked[row])]
        hidden = (hidden - hidden.mean(-1, keepdims=True)) / (hidden.std(-1, ddof=1, keepdims=True) + 1e-6)
        expected.append(np.square(output.pixels[row] - hidden).mean())
    np.testing.assert_allclose(loss.value, np.mean(expected), rtol=1e-4)
    changed = np.where(np.asarray(output.masked)[:, :, None] > 0, 255 - (every * 255).astype(np.uint8), every * 255)
    # Hidden tubes do not affect what is predicted.
    clips = changed.reshape(3, 2, 2, 2, 2, 4, 4, 1).transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(3, 4, 8, 8, 1)
    again = apply(model, params, clips.round().astype(np.uint8), NOISE)
    np.testing.assert_allclose(again.pixels, output.pixels, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "model", "task", "line"),
    [
        (VideoClassification(), dataclasses.replace(VIDEO_VIT, labels=()), None, "needs a VideoVit with labels"),
        (
            VideoClassification(),
            VIDEO_VIT,
            LabelledClips(ClipField(8, 1, frames=6), labels=VIDEO_VIT.labels),
            "data.task.clip.frames=6 differs from model.frames=4",
        ),
        (
            VideoMaskedAutoencoding(),
            VIDEO_AUTOENCODER,
            MaskedTubes(ClipField(8, 1, frames=4), patch=2),
            "data.task: 16 places in a frame; expected the 4 of model.patch=4",
        ),
        (
            VideoMaskedAutoencoding(),
            VIDEO_AUTOENCODER,
            MaskedPatches(),
            "the task's rows have no clips; use MaskedTubes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(objective, model, task, line):
    with pytest.raises(InputError, match=line):
        objective.check(model, {} if task is None else task.row)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"frames": 5}, "model.frames=5 is not a multiple of model.tubelet=2; 4 would be"),
        ({"pooling": "max"}, "model.pooling=max: expected first or mean"),
        ({"temporal": dataclasses.replace(VIDEO_VIT.transformer, width=8)}, "model.temporal.width=8: expected model"),
    ],
)
def test_impossible_models_are_refused(fields, line):
    with pytest.raises(InputError, match=line):
        dataclasses.replace(VIDEO_VIT, **fields)
