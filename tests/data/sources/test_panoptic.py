"""COCO's panoptic format: masks of labels from colors, and one line for what is wrong."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import jaxformer as jf
from jaxformer.errors import InputError

SEGMENTS = ((7, 2), (300, 18), (70_000, 2))
"""Number and category of each segment of the image."""


@pytest.fixture
def source(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / "1.jpg")
    numbers = np.zeros((4, 6), int)
    numbers[:, 1], numbers[:, 2], numbers[:, 3:] = (number for number, _ in SEGMENTS)
    colors = np.stack([numbers % 256, numbers // 256 % 256, numbers // 256**2], -1)
    Image.fromarray(colors.astype(np.uint8)).save(tmp_path / "masks" / "1.png")
    return jf.data.CocoPanoptic(*(str(tmp_path / name) for name in ("images", "panoptic.json", "masks")))


def write(source, segments=SEGMENTS, **fields):
    parts = [{"id": number, "category_id": category} for number, category in segments]
    annotation = {"image_id": 5, "file_name": "1.png", "segments_info": parts} | fields
    categories = [{"id": 18, "name": "dog"}, {"id": 2, "name": "sky"}]
    images = [{"id": 5, "file_name": "1.jpg", "width": 6, "height": 4}]
    with open(source.annotations, "w") as file:
        json.dump({"images": images, "categories": categories, "annotations": [annotation]}, file)


def test_colors_become_labels_in_the_order_of_the_categories(source):
    write(source)
    (example,) = source.open()
    assert source.labels == ("sky", "dog") and example["image"].endswith("images/1.jpg")
    np.testing.assert_array_equal(example["mask"], np.tile(np.array([255, 0, 1, 0, 0, 0], np.uint8), (4, 1)))
    task = jf.data.SegmentedImages(jf.data.ImageField(4), labels=source.labels)
    assert task.encode(example, None).values["mask"].labels.shape == (4, 6)


WRONG = {
    "masks/1.png: pixels of segment 300, which its annotation does not list": {"segments": (SEGMENTS[0], SEGMENTS[2])},
    "an annotation of image 6: the file has no such image": {"image_id": 6},
    "segment 7: category_id=9: the file has no such category": {"segments": ((7, 9),)},
    "expected file_name and segments_info; is this a file of boxes?": {"segments_info": None},
    "masks/2.png": {"file_name": "2.png"},
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_one_line_that_names_the_file(source, problem):
    write(source, **WRONG[problem])
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        source.open()[0]
    assert "\n" not in str(caught.value)


def test_a_mask_with_one_number_per_pixel_is_refused(source):
    write(source)
    Image.new("L", (6, 4)).save(f"{source.masks}/1.png")
    with pytest.raises(InputError, match=r"1\.png: a mask of mode L; expected RGB, with a color per segment"):
        source.open()[0]
