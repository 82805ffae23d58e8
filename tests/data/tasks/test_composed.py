"""Tasks composed of fields: a task of one's own, and images with texts."""

import dataclasses
import functools

import numpy as np
import pytest
import small_classifier
from PIL import Image

import jaxformer as jf
from jaxformer.data.examples import Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.image import ImageField
from jaxformer.data.fields.label import LabelField
from jaxformer.data.fields.text import TextField, TokenField
from jaxformer.data.pipeline.loader import Data, check_documents, evaluation_batches, train_batches
from jaxformer.data.sources.sources import JsonLines, Source
from jaxformer.data.tasks.composed import FieldTask
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.data.transforms.geometry import points_after
from jaxformer.data.transforms.image import Augmentation
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class RatedTexts(FieldTask):
    """A task defined outside of the library, with the rows of `Classification`."""

    review: TextField = TextField(length=12)
    rating: LabelField = LabelField(labels=small_classifier.LABELS)

    @functools.cached_property
    def row(self):
        features = super().row
        one = Feature(1)
        return {
            "tokens": features["tokens"],
            "token_types": features["tokens"],
            "cls_positions": dataclasses.replace(one, offset=True),
            "targets": one,
            "weights": features["weights"],
        }

    def _example(self, values, visit):
        arrays = super()._example(values, visit)
        types, first = np.zeros_like(arrays["tokens"]), np.zeros(1, np.int32)
        return arrays | {"token_types": types, "cls_positions": first, "targets": arrays["labels"]}


@dataclasses.dataclass(frozen=True)
class PointField(Field[np.ndarray]):
    """A field defined outside of the library: a point (x, y) in the image before it."""

    column: str = "point"

    def features(self):
        return {"points": Feature(1, "float32", shape=(2,))}

    def read(self, example, path):
        return example[self.column]

    def encode(self, value, tokenizer):
        return np.array([value], np.float32)

    def transform(self, encoded, visit, geometry):
        return {"points": points_after(encoded, geometry)}, geometry


@dataclasses.dataclass(frozen=True)
class Pointing(FieldTask):
    image: ImageField = ImageField(16, 1, augmentation=Augmentation(scale=(0.5, 1.0)))
    point: PointField = PointField()


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """Examples of a test."""

    def open(self):
        return self.examples()

    @staticmethod
    def examples():
        rng = np.random.default_rng(0)
        return [
            {"image": rng.integers(0, 256, (20, 24, 3), np.uint8), "text": f"w{n} w{n + 1}", "codes": [n, n + 1]}
            for n in range(8)
        ]


@pytest.mark.slow
def test_a_task_of_ones_own_trains_and_resumes(tmp_path):
    small_classifier.write_reviews(tmp_path)
    experiment = small_classifier.review_experiment(tmp_path)
    data = dataclasses.replace(experiment.data, task=RatedTexts())
    whole = jf.fit(dataclasses.replace(experiment, data=data), tmp_path / "whole")
    half = dataclasses.replace(experiment, data=data, steps=4)
    jf.fit(half, tmp_path / "parts")
    resumed = jf.fit(dataclasses.replace(experiment, data=data), tmp_path / "parts")
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    assert len(one.splitlines()) >= 6 and len(other.splitlines()) >= 6
    for a, b in zip(flat(whole.params), flat(resumed.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def flat(params):
    import jax

    return map(np.asarray, jax.tree.leaves(params))


def test_its_batches_equal_those_of_classify(tmp_path, tokenizer):
    small_classifier.write_reviews(tmp_path)
    data = small_classifier.review_experiment(tmp_path).data
    for task in (data.task, RatedTexts()):
        with train_batches(dataclasses.replace(data, task=task), tokenizer, 0, range(8)) as batches:
            batch, _ = next(batches)
        if task is data.task:
            expected = batch
    assert batch.keys() == expected.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], expected[key])


def test_image_text_pairs_have_one_example_a_row(tokenizer):
    task = ImageTextPairs(ImageField(8), TextField(length=6))
    assert task.reads_text and task.unit == ("images", 1)
    data = Data(InMemory(), task, 4)
    with train_batches(data, tokenizer, 0, range(4)) as batches:
        batch, _ = next(batches)
    assert batch["images"].shape == (4, 8, 8, 3) and batch["images"].dtype == np.uint8
    assert batch["tokens"].shape == batch["position_ids"].shape == (4, 6)
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 1, 1, 0, 0]] * 4)
    np.testing.assert_array_equal(batch["weights"], np.ones((4, 1)))
    whole = list(evaluation_batches(InMemory(), dataclasses.replace(data, batch=3), tokenizer, 0, range(3)))
    assert sum(batch["weights"].sum() for batch in whole) == 8
    first = whole[0]
    np.testing.assert_array_equal(
        first["images"][0], task.prepare_requests([InMemory.examples()[0]["image"]])[0].pixels
    )
    assert tokenizer.decode(first["tokens"][0][1:3]) == "w0 w1"


def test_only_training_augments_a_field(tokenizer):
    task = ImageTextPairs(ImageField(8, augmentation=Augmentation()))
    assert task.for_evaluation() == ImageTextPairs(ImageField(8))


def test_an_example_without_text_or_image_is_left_out(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.data.sources.pictures._skipped", {})
    task = ImageTextPairs(ImageField(8), TextField(length=6))
    image = np.zeros((8, 8, 3), np.uint8)
    for example in ({"image": image, "text": " "}, {"image": b"no image", "text": "w1"}):
        assert task.examples(task.encode(example, tokenizer), Visit(tokenizer, None, None)) == []


@dataclasses.dataclass(frozen=True)
class Codes(FieldTask):
    codes: TokenField = TokenField("codes", length=4, vocab=9)


def test_tokens_of_a_column_need_no_tokenizer():
    assert not Codes().reads_text
    batch = next(evaluation_batches(InMemory(), Data(InMemory(), Codes(), 2), None, 0, range(2)))
    np.testing.assert_array_equal(batch["tokens"], [[0, 1, 0, 0], [1, 2, 0, 0]])
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 0, 0]] * 2)


def test_a_point_follows_the_image_before_it():
    picture = np.zeros((40, 40), np.uint8)
    picture[18:22, 24:28] = 255
    task = Pointing()
    document = task.encode({"image": picture, "point": (26, 20)}, None)
    for seed in range(10):
        [example] = task.examples(document, Visit(None, np.random.default_rng(seed), None))
        x, y = example["points"][0]
        if 2 < x < 14 and 2 < y < 14:
            assert example["images"][int(y), int(x), 0] > 100


@pytest.mark.parametrize(
    "task, example, message",
    [
        (ImageTextPairs(), {"image": "a.png"}, "data.task.text.column='text': no such column; the columns are 'image'"),
        (Codes(), {"codes": [9]}, "data.task.codes.column='codes': the column holds 9; expected integers from 0 to 8"),
        (Codes(), {"codes": 5}, "data.task.codes.column='codes': the column holds 5; expected a list"),
        (RatedTexts(), {"text": "w1", "label": "x"}, "label 'x': unknown; expected one of bad, good"),
    ],
)
def test_an_error_has_the_path_of_the_field(task, example, message, tmp_path):
    import json

    (tmp_path / "a.jsonl").write_text(json.dumps(example))
    with pytest.raises(InputError) as caught:
        check_documents(Data(JsonLines((str(tmp_path / "a.jsonl"),)), task, 1))
    assert str(caught.value).startswith(f"{tmp_path}/a.jsonl: line 1: {message}")


def test_rows_of_fields_are_not_packed(tokenizer):
    with pytest.raises(InputError, match=r"data.pack=True: a row of ImageTextPairs holds one example"):
        train_batches(Data(InMemory(), ImageTextPairs(), 2, pack=True), tokenizer, 0, range(2))


def test_requests_have_a_word_for_each_field(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = ImageTextPairs().requests({"image": str(tmp_path / "a.png"), "text": "w1"}, tmp_path)
    assert found == (str(tmp_path / "a.png"), "w1")
