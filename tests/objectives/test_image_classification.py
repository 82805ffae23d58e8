import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reports import report
from small_bert import applied
from small_vit import AUTOENCODER, IMAGES, VIT, noisy

from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.images import LabelledImages, MaskedPatches, Prepared
from jaxformer.errors import InputError
from jaxformer.layers.patches import patchify
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.objectives.masked_autoencoding import MaskedAutoencoding, normalised

PARAMS = noisy(VIT)
BATCH = {
    "images": IMAGES,
    "labels": np.array([[2, 0], [0, 1], [1, 2], [0, 0]], np.int32),
    "weights": np.array([[1, 0], [0.3, 0.7], [0.6, 0.4], [0, 0]], np.float32),  # The last row has no image.
}
TASK = LabelledImages(ImageField(12, 1), labels=VIT.labels)
OBJECTIVE = ImageClassification(label_smoothing=0.2)


@pytest.fixture(scope="module")
def logits():
    return np.array(jax.jit(VIT.apply)({"params": PARAMS}, IMAGES).logits)


@pytest.mark.slow
def test_the_loss_is_pytorchs_with_soft_targets_and_label_smoothing(logits):
    targets = np.zeros((3, 3), np.float32)
    for row in range(3):
        np.add.at(targets[row], BATCH["labels"][row], BATCH["weights"][row])
    for key, smoothing in ((jax.random.key(0), 0.2), (None, 0.0)):
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
        expected = criterion(torch.from_numpy(logits[:3]), torch.from_numpy(targets))
        mean = OBJECTIVE(VIT, PARAMS, BATCH, key)["loss"]
        np.testing.assert_allclose(mean.value, expected, rtol=1e-5)
        np.testing.assert_allclose(mean.weight, 3, rtol=1e-6)


@pytest.mark.slow
def test_accuracies_and_the_scores_of_each_label_count_the_larger_part_of_a_mixed_image(logits):
    right = logits[:3].argmax(1) == [2, 1, 1]
    values = report(OBJECTIVE, VIT, OBJECTIVE(VIT, PARAMS, BATCH))
    np.testing.assert_allclose(values["accuracy"], right.mean(), rtol=1e-6)
    assert values["recall/two"] == right[0] and np.isclose(values["recall/one"], right[1:].mean())
    assert "recall/two" not in report(OBJECTIVE, VIT, OBJECTIVE(VIT, PARAMS, BATCH, jax.random.key(0)))
    many = dataclasses.replace(VIT, labels=tuple("abcdefgh"))
    params = noisy(many)
    above = np.asarray(applied(many, params, IMAGES).logits).argsort(1)[:, -5:]
    one = BATCH | {"labels": np.array([[7, 0], [3, 0], [5, 0], [1, 0]]), "weights": np.tile([[1.0, 0.0]], (4, 1))}
    expected = np.mean([label in row for label, row in zip((7, 3, 5, 1), above, strict=True)])
    np.testing.assert_allclose(OBJECTIVE(many, params, one)["top_5_accuracy"].value, expected)


@pytest.mark.slow
def test_a_prediction_is_each_label_with_its_probability_the_likeliest_first(logits):
    prepared = [Prepared(f"{number}.png", image) for number, image in enumerate(IMAGES)]
    answers = OBJECTIVE.predictor(VIT, PARAMS, None).predict(prepared)
    assert [answer.path for answer in answers] == ["0.png", "1.png", "2.png", "3.png"]
    expected = np.asarray(jax.nn.softmax(logits))
    for answer, row in zip(answers, expected, strict=True):
        assert {label for label, _ in answer.labels} == {"zero", "one", "two"}
        np.testing.assert_allclose([share for _, share in answer.labels], sorted(row, reverse=True), rtol=1e-5)
        assert answer.labels[0][0] == VIT.labels[row.argmax()]
    assert re.fullmatch(r"0\.png(\n +\d+\.\d%  \w+){3}", str(answers[0]))
    assert len(OBJECTIVE.predictor(VIT, PARAMS, None).demonstrate(BATCH)) == 3  # None of the row without an image.


def test_vectors_have_length_one_and_cosines_to_the_others():
    bare = dataclasses.replace(VIT, labels=())
    params = {name: value for name, value in PARAMS.items() if name != "head"}
    answers = (
        ImageEmbedding()
        .predictor(bare, params, None)
        .predict([Prepared(str(n), image) for n, image in enumerate(IMAGES)])
    )
    np.testing.assert_allclose([np.linalg.norm(answer.vector) for answer in answers], 1, rtol=1e-5)
    assert [name for name, _ in answers[1].cosines] == ["0", "2", "3"]
    np.testing.assert_allclose(answers[1].cosines[0][1], answers[0].vector @ answers[1].vector, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_the_masked_autoencoders_loss_counts_hidden_patches_of_real_images_alone(plain):
    params, noise = noisy(AUTOENCODER), np.random.default_rng(0).random((4, 9)).astype(np.float32)
    batch = {"images": IMAGES, "noise": noise, "weights": np.array([[1], [1], [1], [0]], np.float32)}
    loss = MaskedAutoencoding(not plain)(AUTOENCODER, params, batch)["loss"]
    output = AUTOENCODER.apply({"params": params}, IMAGES, noise)
    targets = (np.asarray(patchify(IMAGES, 4)).reshape(4, 9, 16) / 255 - 0.5) / 0.5
    if not plain:
        targets = (targets - targets.mean(-1, keepdims=True)) / np.sqrt(targets.var(-1, ddof=1, keepdims=True) + 1e-6)
    hidden = noise[:3].argsort(1).argsort(1) >= 3
    errors = np.square(np.asarray(output.pixels) - targets).mean(-1)[:3][hidden]
    np.testing.assert_allclose(loss.value, errors.mean(), rtol=1e-4)
    assert loss.weight == hidden.sum() == 18


def test_a_patch_of_one_colour_is_normalised_without_a_division_by_zero():
    assert np.isfinite(normalised(jnp.ones((1, 2, 16)))).all()


@pytest.mark.parametrize(
    ("objective", "model", "task", "line"),
    [
        (OBJECTIVE, dataclasses.replace(VIT, labels=()), TASK, "needs a Vit with labels; the model is a Vit without"),
        (OBJECTIVE, AUTOENCODER, TASK, "needs a Vit with labels; the model is a MaskedAutoencoder"),
        (OBJECTIVE, VIT, MaskedPatches(ImageField(12, 1), patch=4), "rows have no labels; use LabelledImages"),
        (
            OBJECTIVE,
            VIT,
            dataclasses.replace(TASK, image=ImageField(13, 1)),
            "data.task.image.size=13 is not a multiple of model.patch=4; 12",
        ),
        (
            OBJECTIVE,
            VIT,
            dataclasses.replace(TASK, image=ImageField(12, 3)),
            "data.task.image.channels=3 differs from model.channels=1",
        ),
        (MaskedAutoencoding(), VIT, TASK, "needs a MaskedAutoencoder; the model is a Vit"),
        (MaskedAutoencoding(), AUTOENCODER, TASK, "rows have no noise; use MaskedPatches"),
        (
            MaskedAutoencoding(),
            AUTOENCODER,
            MaskedPatches(ImageField(16, 1), patch=4),
            "size 16 and 16 patches; expected model.image=12 and the 9 patches of model.patch=4",
        ),
        (ImageEmbedding(), VIT, TASK, "predicts only; expected one that trains: ImageClassification"),
    ],
)
def test_what_does_not_go_together(objective, model, task, line):
    with pytest.raises(InputError, match=re.escape(line)):
        objective.check(model, task.row)
