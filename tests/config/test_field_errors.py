"""An error of a field has the path at which the user sets it."""

import pickle

import pytest

from jaxformer import fields
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.span_corruption import UL2
from jaxformer.errors import FieldError, InputError, under


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_an_object_built_alone_assumes_its_usual_path():
    assert message(NextToken, 0) == "data.task.length=0: expected at least 1"
    assert message(ImageField, 0) == "data.task.image.size=0: expected at least 1"
    assert message(Data, TextFiles(), NextToken(), 0) == "data.batch=0: expected at least 1"


@pytest.mark.parametrize(
    "task, path, value, expected",
    [
        (NextToken(), "length", 0, "task.length=0: expected at least 1"),
        (ImageTextPairs(), "image.size", 0, "task.image.size=0: expected at least 1"),
        (ImageTextPairs(), "text.length", 2, "task.text.length=2: expected at least 3"),
        (MultiTask(), "text_to_text.length", 1, "task.text_to_text.length=1: expected at least 2"),
        (UL2(), "denoisers.2.rate", 1.0, "task.denoisers.2.rate=1.0: expected above 0, below 1"),
    ],
)
def test_an_override_has_the_true_path(task, path, value, expected):
    data = Data(TextFiles(), task, 1)
    assert message(fields.replace, data, {f"task.{path}": value}) == expected


def test_json_has_the_true_path():
    value = fields.encode(MultiTask())
    value["text_to_text"]["length"] = 1
    assert message(fields.decode, value, "data.validation_task").startswith(
        "data.validation_task.text_to_text.length=1:"
    )


def test_paths_are_joined_from_the_inside_out():
    with pytest.raises(FieldError, match=r"^data\.task\.image\.size=0: x$"), under("data.task"), under("image"):
        raise FieldError("data.task.picture.size", "=0: x")


def test_an_unknown_path_changes_nothing():
    with pytest.raises(FieldError, match=r"^data\.task\.length=0: x$"), under(""):
        raise FieldError("data.task.length", "=0: x")


def test_an_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(FieldError("data.task.length", "=0: x")))
    assert str(error) == "data.task.length=0: x" and str(error.under("task")) == "task.length=0: x"
