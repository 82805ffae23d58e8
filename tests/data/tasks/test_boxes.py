"""Boxes as data: they follow their image, are padded, and must be inside of it."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.examples import Visit
from jaxformer.data.fields.boxes import BoxField
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline import loader
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.boxes import LabelledBoxes
from jaxformer.data.transforms.image import size_within
from jaxformer.data.transforms.scale_jitter import ScaleJitter
from jaxformer.errors import InputError

LABELS = ("cat", "dog")
TASK = LabelledBoxes(ImageField(32, fit="pad"), labels=LABELS, max_boxes=3)


def example(boxes=(), labels=(), width=40, height=20, **others):
    """A black picture whose first box is white, and its objects."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if len(boxes):
        left, upper, right, lower = map(int, boxes[0])
        pixels[upper:lower, left:right] = 255
    return {"image": pixels, "objects": {"bbox": list(boxes), "label": list(labels), **others}}


def arrays(task, example, seed=0):
    visit = Visit(None, np.random.default_rng(seed), lambda rng: None)
    return task.examples(task.encode(example, None), visit)[0]


def light(found):
    """The box around the light pixels of an image, as fractions of the part that is not padding."""
    height, width = found["pixel_mask"].any(1).sum(), found["pixel_mask"].any(0).sum()
    lit = found["images"][..., 0] > 127
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    low = np.array([columns[0] / width, rows[0] / height])
    high = np.array([(columns[-1] + 1) / width, (rows[-1] + 1) / height])
    return np.concatenate([(low + high) / 2, high - low])


def test_a_picture_is_padded_and_its_boxes_are_fractions_of_the_picture():
    found = arrays(TASK, example([(10, 5, 30, 15), (0, 0, 40, 20)], ["dog", 0]))
    assert found["images"].shape == (32, 32, 3) and found["pixel_mask"].shape == (32, 32)
    assert found["pixel_mask"].sum() == 32 * 16 and found["pixel_mask"][:16].all()
    assert not found["images"][16:].any()
    np.testing.assert_allclose(found["boxes"], [(0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1, 1)])
    np.testing.assert_allclose(light(found), found["boxes"][0], atol=0.03)
    assert found["labels"].tolist() == [1, 0] and found["box_weights"].tolist() == [1, 1]
    assert found["areas"].tolist() == [200, 800] and found["image_size"].tolist() == [20, 40]


def test_fractions_of_tfds_are_the_same_boxes():
    task = LabelledBoxes(ImageField(32, fit="pad"), labels=LABELS, max_boxes=3, box_format="fractions")
    found = arrays(
        task, example([(10, 5, 30, 15)], [1]) | {"objects": {"bbox": [(0.25, 0.25, 0.75, 0.75)], "label": [1]}}
    )
    np.testing.assert_allclose(found["boxes"], arrays(TASK, example([(10, 5, 30, 15)], [1]))["boxes"], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_crops_scales_and_flips(seed):
    jitter = ScaleJitter(shortest=(40, 60), crop=1.0, share=0.7)
    task = LabelledBoxes(ImageField(96, fit="pad", augmentation=jitter), labels=LABELS)
    found = arrays(task, example([(30, 30, 60, 50)], [1], width=100, height=80), seed)
    assert 40 <= min(found["pixel_mask"].any(0).sum(), found["pixel_mask"].any(1).sum()) <= 96
    np.testing.assert_allclose(light(found), found["boxes"][0], atol=0.04)


def test_a_box_outside_a_crop_is_left_out_and_its_area_is_that_of_the_source():
    jitter = ScaleJitter(shortest=(64, 64), crop=1.0, share=0.2)
    task = LabelledBoxes(ImageField(64, fit="pad", augmentation=jitter), labels=LABELS)
    given = example([(0, 0, 4, 4), (0, 0, 100, 80)], [1, 0], width=100, height=80, area=[7, 9])
    counts = {len(arrays(task, given, seed)["labels"]) for seed in range(20)}
    assert counts == {1, 2}
    for seed in range(20):
        found = arrays(task, given, seed)
        assert found["areas"].tolist() == ([7, 9] if len(found["labels"]) == 2 else [9])


def test_crowds_are_marked_and_are_not_targets():
    found = arrays(TASK, example([(0, 0, 4, 4), (0, 0, 9, 9)], [1, 1], is_crowd=[False, True]))
    assert found["box_weights"].tolist() == [1, 0] and found["crowd"].tolist() == [0, 1]


def test_batches_of_pictures_of_different_sizes_and_without_objects(tmp_path):
    lines = []
    for number, (width, height) in enumerate([(40, 20), (20, 40), (24, 24)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        boxes = "[[1, 2, 11, 12]]" if number else "[]"
        labels = '["dog"]' if number else "[]"
        lines.append(f'{{"image": "{tmp_path}/{number}.png", "objects": {{"bbox": {boxes}, "label": {labels}}}}}')
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = Data(JsonLines((f"{tmp_path}/train.jsonl",)), TASK, batch=3, open_documents=1)
    batch = next(loader.evaluation_batches(data.train, data, None, 0, range(3)))
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [32 * 16, 32 * 16, 32 * 32]
    assert batch["box_weights"].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]] and batch["weights"].all()
    np.testing.assert_allclose(batch["boxes"][1, 0], (0.3, 0.175, 0.5, 0.25), atol=1e-6)
    loader.check_documents(data)
    (tmp_path / "train.jsonl").write_text("\n".join(lines).replace("11, 12", "11, 92"))
    with pytest.raises(InputError, match=r"train\.jsonl: line 2: box 1: .* 1, 2, 11, 92; .* 20 × 40 pixels"):
        next(loader.evaluation_batches(data.train, data, None, 0, range(3)))


WRONG = {
    "box 1: left, upper, right and lower edge are 50, 0, 60, 9; .* 40 × 20": ([(50, 0, 60, 9)], [1]),
    "box 1: .* are 9, 0, 3, 9; expected them in order": ([(9, 0, 3, 9)], [1]),
    r"box 1: \[1, 2, 3\]; expected four finite numbers": ([[1, 2, 3]], [1]),
    "label 'cow': unknown; expected one of cat, dog": ([(0, 0, 9, 9)], ["cow"]),
    "1 boxes and 2 labels": ([(0, 0, 9, 9)], [1, 1]),
    r"data.task.max_boxes=3: an image has 4 objects; expected at least 4": ([(0, 0, 9, 9)] * 4, [1] * 4),
}


@pytest.mark.parametrize("problem", WRONG)
def test_boxes_that_are_not_valid_are_an_error_in_a_line(problem):
    with pytest.raises(InputError) as caught:
        boxes, labels = WRONG[problem]
        TASK.encode(example() | {"objects": {"bbox": boxes, "label": labels}}, None)
    assert re.search(problem, str(caught.value)) and "\n" not in str(caught.value)


def test_sizes_in_the_source_are_compared_with_the_picture():
    given = example([(0, 0, 9, 9)], [1]) | {"width": 20, "height": 40}
    with pytest.raises(InputError, match="width and height are 20 × 40; the image has 40 × 20 pixels"):
        TASK.encode(given, None)
    with pytest.raises(InputError, match=r"box 1: .* inside the image of 20 × 40"):
        TASK.read(example([(0, 0, 30, 9)], [1]) | {"width": 20, "height": 40})


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: LabelledBoxes(ImageField(32), labels=LABELS), "data.task.image.fit=crop: expected pad or stretch"),
        (lambda: LabelledBoxes(labels=("cat", "cat")), r"data.task.labels=.*without duplicates"),
        (lambda: LabelledBoxes(labels=LABELS, max_boxes=0), "data.task.max_boxes=0: expected at least 1"),
        (lambda: ImageField(8, fit="pad", shortest=9), "image.shortest=9: expected None, or with fit=pad from 1 to"),
        (
            lambda: ImageField(8, augmentation=ScaleJitter()),
            "image.fit=crop: expected pad with augmentation=ScaleJitter",
        ),
        (lambda: ScaleJitter(shortest=(9, 3)), "shortest=.*two lengths in order"),
        (lambda: ScaleJitter(among=("melt",)), "among=.*no operation 'melt'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, problem):
    with pytest.raises(InputError, match=problem):
        make()


def test_sizes_keep_the_aspect_ratio_within_both_limits():
    assert size_within(640, 480, 800, 1333) == (1066, 800)
    assert size_within(480, 640, 800, 1333) == (800, 1066)
    assert size_within(1000, 200, 800, 1333) == (1333, 267) or size_within(1000, 200, 800, 1333)[0] == 1333
    assert size_within(32, 32, 32, 32) == (32, 32)


def test_a_field_without_a_picture_before_it_is_a_programming_error():
    field = BoxField(labels=LABELS)
    with pytest.raises(ValueError, match="image field before"):
        field.transform(
            field.read(example([(0, 0, 9, 9)], [1])), Visit(None, np.random.default_rng(0), lambda rng: None)
        )


@pytest.mark.parametrize("seed", range(4))
def test_boxes_of_a_mosaic_enclose_what_is_visible_of_each_image(seed):
    task = dataclasses.replace(TASK, mosaic=1.0, max_boxes=4)
    encoded = [
        task.encode(
            example([(width // 4, height // 4, 3 * width // 4, 3 * height // 4)], [number % 2], width, height), None
        )
        for number, (width, height) in enumerate(((40, 20), (20, 40), (30, 30), (40, 40)))
    ]
    others = iter(encoded[1:])
    visit = Visit(None, np.random.default_rng(seed), lambda rng: next(others))
    (found,) = task.examples(encoded[0], visit)
    assert found["images"].shape == (32, 32, 3) and found["pixel_mask"].all() and len(found["boxes"]) >= 2
    lit = found["images"][..., 0] > 127
    covered = np.zeros_like(lit)
    for x, y, width, height in found["boxes"] * 32:
        rows, columns = (slice(round(at - side / 2), round(at + side / 2)) for at, side in ((y, height), (x, width)))
        assert lit[rows, columns].mean() > 0.7 and set(found["labels"]) <= {0, 1}
        covered[rows, columns] = True
    # What is lit outside the boxes is at most an edge of one, or a sliver of an object that is left out.
    assert (lit & ~covered).sum() < 0.4 * lit.sum()
    assert len(found["labels"]) == len(found["box_weights"]) == len(found["areas"]) == len(found["boxes"])
    assert task.for_evaluation().mosaic == 0


def test_a_mosaic_with_too_many_objects_is_left_out():
    task = dataclasses.replace(TASK, mosaic=1.0, max_boxes=1)
    encoded = task.encode(example([(10, 5, 30, 15)], [1]), None)
    visits = [Visit(None, np.random.default_rng(seed), lambda rng: encoded) for seed in range(5)]
    found = {len(task.examples(encoded, visit)[0]["boxes"]) for visit in visits}
    assert found == {1}
    with pytest.raises(InputError, match=r"data.task.mosaic=2"):
        dataclasses.replace(TASK, mosaic=2.0)
