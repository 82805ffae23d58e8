"""Semantic segmentation: masks that follow images, windows, mIoU against scikit-learn, and a Segmenter that learns."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score
from small_bert import noisy_params
from small_segmentation import LABELS, LINEAR, MASKED, WITH_STEM

import jaxformer as jf
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import train_batches
from jaxformer.data.tasks.segmentation import SegmentedImages
from jaxformer.data.transforms.image import Augmentation
from jaxformer.errors import InputError
from jaxformer.metrics.segmentation import MeanIou, confusion
from jaxformer.objectives.semantic_segmentation import SemanticSegmentation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures that are red and green, with their masks. A border of each mask has no label."""
    home, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(6):
        width, height = rng.integers(20, 40, 2)
        mask = np.full((height, width), 1, np.uint8)
        mask[:, : rng.integers(5, width - 5)] = 0
        colors = np.array([(250, 0, 0), (0, 250, 0)], np.uint8)
        mask_with_border = mask.copy()
        mask_with_border[:2] = 255
        for part, array in (("images", colors[mask]), ("masks", mask_with_border)):
            (home / part / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(home / part / "a" / f"{number}.png")
    return home


def data(folder, task=None, **fields):
    source = jf.data.MaskFolders(str(folder / "images"), str(folder / "masks"))
    return jf.data.Data(source, task or SegmentedImages(ImageField(16), labels=LABELS), batch=2, **fields)


def test_masks_follow_the_images(folder):
    augmentation = Augmentation(operations=1, among=("rotate", "shear_x", "translate_y"))
    task = SegmentedImages(ImageField(16, augmentation=augmentation), labels=LABELS)
    with train_batches(data(folder, task), None, 0, range(2)) as batches:
        for _ in range(8):
            batch, _ = next(batches)
            clear = np.abs(batch["images"][..., 0].astype(int) - batch["images"][..., 1]) > 200
            known = clear & (batch["mask"] != 255)
            assert known.sum() > 50
            wrong = (batch["images"][..., 1] > 125)[known] != batch["mask"][known]
            assert wrong.mean() < 0.05  # Pixels at the edge between two colors.


def test_mean_iou_is_scikit_learns_and_merges_exactly():
    rng = np.random.default_rng(0)
    targets, guesses = rng.integers(0, 4, (3, 50, 40)), rng.integers(0, 4, (3, 50, 40))
    targets[0, :10] = 255
    metric = MeanIou(("a", "b", "c", "d", "e"), lambda context, pair: pair)
    documents = list(zip(targets, guesses, strict=True))
    parts = [metric.score(None, documents, [index]) for index in range(3)]
    whole = metric.compute(metric.score(None, documents, range(3)))
    assert metric.compute(metric.merge(metric.merge(parts[0], parts[1]), parts[2])) == whole
    known = targets != 255
    expected = jaccard_score(targets[known], guesses[known], average=None, labels=range(4))
    np.testing.assert_allclose([whole[f"iou/{name}"] for name in "abcd"], expected)
    np.testing.assert_allclose(whole["mean_iou"], expected.mean())
    assert "iou/e" not in whole and whole["pixel_accuracy"] == (targets == guesses)[known].mean()
    assert confusion(np.array([[0, 255]]), np.array([[1, 1]]), 2).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("model", [LINEAR, MASKED, WITH_STEM], ids=["linear", "mask transformer", "stem"])
def test_the_loss_ignores_pixels_without_a_label(model):
    params = noisy_params(model, np.zeros((1, 16, 16, 3), np.uint8))
    rng = np.random.default_rng(0)
    images, mask = rng.integers(0, 256, (2, 16, 16, 3), np.uint8), rng.integers(0, 2, (2, 16, 16), np.uint8)
    mask[0, 4:] = 255

    def both(params):
        batch = {"images": images, "mask": mask, "weights": np.ones((2, 1), np.float32)}
        return SemanticSegmentation()(model, params, batch), model.apply({"params": params}, images).logits

    terms, logits = jax.jit(both)(params)
    assert logits.shape == (2, 4, 4, 2)
    wide = np.stack([np.asarray(jax.image.resize(part, (16, 16, 2), "linear")) for part in logits])
    losses = -np.asarray(jax.nn.log_softmax(wide))
    known = mask != 255
    chosen = np.take_along_axis(losses, np.where(known, mask, 0)[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(terms["loss"].value, chosen[known].mean(), rtol=1e-5)


@pytest.mark.slow
def test_a_segmenter_learns_and_segments_pictures_of_any_size(folder, tmp_path):
    pairs = data(folder)
    experiment = jf.Experiment(
        model=MASKED,
        objective=SemanticSegmentation(),
        data=jf.data.Data(pairs.train, pairs.task, batch=8, validation=pairs.train),
        tokenizer=None,
        optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=3e-3, warmup=5)),
        steps=60,
        evaluation=jf.Evaluation(every=60),
        checkpoint=jf.Checkpoint(every=60, best="mean_iou"),
    )
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    values = run.evaluate()
    assert values["mean_iou"] > 0.8 and values["iou/red"] > 0.8
    answer = run.predict(str(folder / "images" / "a" / "0.png"))
    with Image.open(folder / "masks" / "a" / "0.png") as mask:
        assert answer.mask.shape == np.asarray(mask).shape
    answers = run.predict([str(folder / "images" / "a" / f"{number}.png") for number in range(2)])
    type(answers[0]).save_all(answers, tmp_path / "answers")
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == [
        "1_0.png",
        "1_0_mask.png",
        "2_1.png",
        "2_1_mask.png",
        "answers.json",
    ]


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        (np.zeros((4, 4), np.uint8), "a mask of the source: a mask of 4 × 4 pixels; its image has 6 × 5"),
        (np.full((5, 6), 2, np.uint8), "a mask of the source: pixels of value 2; expected labels up to 1, or 255"),
        (np.zeros((5, 6, 3), np.uint8), "a mask of shape (5, 6, 3) and type uint8; expected integers [height, width]"),
        ("missing.png", "missing.png: cannot be decoded"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, line):
    task = SegmentedImages(ImageField(16), labels=LABELS)
    with pytest.raises(InputError, match=re.escape(line)):
        task.encode({"image": np.zeros((5, 6, 3), np.uint8), "mask": mask}, None)


def test_an_image_without_a_mask_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"images/a/0.png: has no mask; expected .*0.png \(6 images have none\)"):
        (tmp_path / "masks").mkdir()
        jf.data.MaskFolders(str(folder / "images"), str(tmp_path / "masks")).open()
    objects = SegmentedImages(ImageField(16), labels=("background", *LABELS), objects="objects")
    example = {"image": np.zeros((1, 3, 3), np.uint8), "mask": np.array([[0, 2, 1]]), "objects": {"label": [0, 1]}}
    assert objects.encode(example, None).values["mask"].labels.tolist() == [[0, 2, 1]]
    zero = SegmentedImages(ImageField(16), labels=LABELS, zero_is_unlabelled=True)
    encoded = zero.encode({"image": np.zeros((1, 3, 3), np.uint8), "mask": np.array([[0, 1, 2]])}, None)
    assert encoded.values["mask"].labels.tolist() == [[255, 0, 1]]


def test_a_stem_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"model.stem.patch=4 and model.stem.width=16: expected 8 and 16"):
        dataclasses.replace(WITH_STEM, patch=8)
