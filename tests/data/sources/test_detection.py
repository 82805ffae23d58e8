"""COCO files and Pascal VOC folders."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline import loader
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.detection import CocoDetection, VocDetection
from jaxformer.data.tasks.boxes import LabelledBoxes
from jaxformer.errors import InputError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
IMAGES = [
    {"id": 9, "file_name": "nine.png", "width": 40, "height": 20},
    {"id": 4, "file_name": "four.png", "width": 10, "height": 30},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 9, "category_id": 18, "bbox": [10, 5, 20, 10.5], "area": 150.5, "iscrowd": 0},
    {"id": 2, "image_id": 9, "category_id": 17, "bbox": [0, 0, 40, 20], "area": 700, "iscrowd": 1},
]
VOC = """<annotation><filename>{name}.png</filename><size><width>40</width><height>20</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{right}</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def coco(folder, **changes):
    """A source of two pictures, one of them without objects."""
    for image in IMAGES:
        Image.new("RGB", (image["width"], image["height"])).save(folder / image["file_name"])
    content = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES} | changes
    (folder / "boxes.json").write_text(json.dumps(content))
    return CocoDetection(str(folder), str(folder / "boxes.json"))


def voc(folder, right=40):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("1", "2"):
        Image.new("RGB", (40, 20)).save(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(VOC.format(name=name, right=right))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("2\n")
    return str(folder)


def test_coco_examples_are_in_the_order_of_their_ids_with_boxes_as_corners(tmp_path):
    source = coco(tmp_path)
    examples = source.open()
    assert source.labels == ("cat", "dog") and len(examples) == 2
    assert examples[0] == {
        "image": f"{tmp_path}/four.png",
        "width": 10,
        "height": 30,
        "objects": {"bbox": [], "label": [], "is_crowd": [], "area": []},
    }
    assert examples[1]["objects"] == {
        "bbox": [[10, 5, 30, 15.5], [0, 0, 40, 20]],
        "label": ["dog", "cat"],
        "is_crowd": [False, True],
        "area": [150.5, 700],
    }


def test_coco_batches(tmp_path):
    task = LabelledBoxes(ImageField(20, fit="pad"), labels=("cat", "dog"), max_boxes=2)
    data = Data(coco(tmp_path), task, batch=2)
    loader.check_documents(data)
    batch = next(loader.evaluation_batches(data.train, data, None, 0, range(2)))
    assert batch["box_weights"].tolist() == [[0, 0], [1, 0]] and batch["crowd"].tolist() == [[0, 0], [0, 1]]
    np.testing.assert_allclose(batch["boxes"][1, 0], (0.5, 10.25 / 20, 0.5, 10.5 / 20), atol=1e-6)


WRONG = {
    r"boxes.json: annotation 7: image_id=5: the file has no such image": {
        "annotations": [{**ANNOTATIONS[0], "image_id": 5, "id": 7}]
    },
    r"boxes.json: annotation 1: category_id=3: the file has no such category": {
        "annotations": [{**ANNOTATIONS[0], "category_id": 3}]
    },
    r"boxes.json: annotation 1: bbox=\[1, 2\]: expected left and upper edge, width and height": {
        "annotations": [{**ANNOTATIONS[0], "bbox": [1, 2]}]
    },
    r"boxes.json: has no list 'categories'; expected a COCO file with images, annotations, categories": {
        "categories": None
    },
    r"boxes.json: images\[0\] has no 'width'; expected id, file_name, width, height": {
        "images": [{"id": 9, "file_name": "nine.png", "height": 20}]
    },
    r"boxes.json: no images": {"images": [], "annotations": []},
}


@pytest.mark.parametrize("problem", WRONG)
def test_coco_files_that_are_not_valid_are_an_error_in_a_line(problem, tmp_path):
    source = coco(tmp_path, **WRONG[problem])
    with pytest.raises(InputError) as caught:
        source.open()
    assert re.search(problem, str(caught.value)) and "\n" not in str(caught.value)


def test_boxes_outside_their_picture_are_found_before_training(tmp_path):
    source = coco(tmp_path, annotations=[{**ANNOTATIONS[0], "bbox": [10, 5, 50, 10]}])
    task = LabelledBoxes(ImageField(20, fit="pad"), labels=("cat", "dog"), max_boxes=2)
    with pytest.raises(InputError, match=r"boxes.json: image .*nine.png: box 1: .* 10, 5, 60, 15; .* 40 × 20 pixels$"):
        loader.check_documents(Data(source, task, batch=2))
    few = LabelledBoxes(ImageField(20, fit="pad"), labels=("cat",), max_boxes=2)
    with pytest.raises(InputError, match=r"boxes.json: image .*nine.png: label 'dog': unknown; expected one of cat"):
        loader.check_documents(Data(coco(tmp_path), few, batch=2))


def test_a_missing_picture_is_named(tmp_path):
    source = coco(tmp_path)
    (tmp_path / "nine.png").unlink()
    task = LabelledBoxes(ImageField(20, fit="pad"), labels=("cat", "dog"), max_boxes=2)
    with pytest.raises(InputError, match=r"boxes.json: image .*nine.png: no such file"):
        loader.check_documents(Data(source, task, batch=2))


def test_voc_boxes_count_pixels_from_one(tmp_path):
    source = VocDetection(voc(tmp_path), split="train")
    assert source.open()[0] == {
        "image": f"{tmp_path}/JPEGImages/2.png",
        "width": 40,
        "height": 20,
        "objects": {"bbox": [[10, 5, 30, 15]], "label": ["dog"]},
    }
    every = VocDetection(str(tmp_path), difficult=True).open()
    assert len(every) == 2 and every[0]["objects"]["bbox"][1] == [0, 0, 40, 20]


def test_voc_files_that_are_not_valid_are_an_error_in_a_line(tmp_path):
    with pytest.raises(InputError, match=r"1.xml: object 2: <bndbox><xmax> is 'wide'; expected a number"):
        VocDetection(voc(tmp_path, right="wide"), difficult=True).open()
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"1.xml: not valid XML"):
        VocDetection(str(tmp_path)).open()
    with pytest.raises(InputError, match=r"none: no images; expected XML files in Annotations"):
        VocDetection(str(tmp_path / "none")).open()
