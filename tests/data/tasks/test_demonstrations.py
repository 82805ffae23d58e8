"""Demonstrations: requests in full length, and the answers in the data."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import jaxformer as jf
from jaxformer.data.tasks.base import Demonstration

LABELS = ("bad", "good")
LONG = " ".join(["word"] * 60)


@pytest.mark.parametrize(
    "task, example, requests, reference",
    [
        (jf.data.Classify(labels=LABELS), {"text": LONG, "label": 1}, (LONG,), "good"),
        (
            jf.data.Classify(text="a", pair="b", labels=LABELS, kind="multi_label"),
            {"a": "x", "b": "y", "label": ["good", "bad"]},
            ("x\ty",),
            "bad, good",
        ),
        (jf.data.Classify(labels=("stars",), kind="regression"), {"text": "x", "label": 2.5}, ("x",), "2.5"),
        (
            jf.data.TextToText(inputs="en", targets="de", prefix="translate: "),
            {"en": LONG, "de": "Wort"},
            (f"translate: {LONG}",),
            "Wort",
        ),
        (
            jf.data.TagTokens(labels=("NOUN", "VERB")),
            {"words": ["dogs", "bark"], "tags": [0, "VERB"]},
            ("dogs bark",),
            "dogs/NOUN bark/VERB",
        ),
        (
            jf.data.AnswerSpans(),
            {"question": "Who?", "context": "It is me.", "answers": {"text": ["me"], "answer_start": [6]}},
            ("Who?\tIt is me.",),
            "me",
        ),
        (
            jf.data.MaskedSentencePairs(),
            {"text": "One two three four."},
            ("One two [MASK] four.",),
            "One two three four.",
        ),
        (jf.data.NextToken(), {"text": LONG}, ("word word word word word",), " ".join(["word"] * 40)),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "",
)
def test_a_demonstration_has_the_request_and_the_answer(task, example, requests, reference, tmp_path):
    assert task.demonstration(example, tmp_path) == Demonstration(requests, reference)


def test_a_picture_in_memory_becomes_a_file(tmp_path):
    task = jf.data.LabelledImages(labels=LABELS)
    found = task.demonstration({"image": np.full((8, 6, 3), 9, np.uint8), "label": "bad"}, tmp_path)
    assert found.reference == "bad" and Image.open(found.requests[0]).size == (6, 8)


def test_boxes_are_named_by_their_labels(tmp_path):
    task = jf.data.LabelledBoxes(labels=("cat", "dog"))
    objects = {"bbox": [[0, 0, 2, 2], [1, 1, 3, 3]], "label": [1, 0]}
    found = task.demonstration({"image": np.zeros((8, 8, 3), np.uint8), "objects": objects}, tmp_path)
    assert found.reference == "cat, dog"
