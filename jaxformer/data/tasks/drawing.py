"""Tasks for models that generate images: images with the text or the class that they are generated from."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.messages import listed
from jaxformer.data.sources import columns
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.errors import FieldError, InputError, shown

SEEDS = 2**31
"""Number of different seeds."""


@dataclasses.dataclass(frozen=True)
class Seeded(FieldTask):
    """Base class of tasks whose examples have a random seed, from which the objective draws noise. So the noise of an
    image depends neither on the other images of the batch nor on the mesh. Abstract: use a subclass.
    """

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return super().row | {"seeds": Feature(1)}

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        example = super()._example(values, visit)
        return example | {"seeds": visit.rng.integers(SEEDS, size=1).astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class ImagesFromText(Seeded, ImageTextPairs):
    """Images to generate from a text.

    Batch rows: `images` uint8 [batch, size, size, channels]; `tokens` int32 [batch, length]; `seeds` int32 [batch, 1],
    a random seed per image; `weights` float32 [batch, 1], 1 for each image. The data pipeline adds `segments` (1 at
    text tokens, 0 at padding) and `position_ids`.
    """

    def read(self, example: Mapping[str, Any]) -> dict[str, Any]:
        found = super().read(example)
        if not found["text"]:
            problem = f"={self.text.column!r}: the text is empty; expected one that describes the image"
            raise FieldError("data.task.text.column", problem, owner="data.task")
        return found

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.first_words(self.read(example)["text"]),)

    def prepare_requests(self, requests: Sequence[Any]) -> list[str]:
        """Checks the arguments of the `predict` command, which are texts.

        Raises:
          InputError: If an argument is not a text, or is empty.
        """
        return [_text(number, one) for number, one in enumerate(requests, 1)]


@dataclasses.dataclass(frozen=True)
class ImagesFromLabels(Seeded, LabelledImages):
    """Images to generate from a class.

    Batch rows: `images` uint8 [batch, size, size, channels]; `labels` int32 and `weights` float32 [batch, 2], whose
    first entries are the class of the image and 1; `seeds` int32 [batch, 1], a random seed per image.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("mixup", "cutmix"):
            if value := getattr(self, name):
                raise FieldError(f"data.task.{name}", f"={value}: expected 0, because an image has one class")

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (self.labels[self._target.index(example, "data.task.label")],)

    def prepare_requests(self, requests: Sequence[Any]) -> list[str]:
        """Checks the arguments of the `predict` command, which are class names.

        Raises:
          InputError: If an argument is not the name of a class.
        """
        found = [_text(number, one) for number, one in enumerate(requests, 1)]
        for name in found:
            if name not in self.labels:
                raise InputError(f"{shown(name)}: no such class; expected one of {listed(self.labels)}")
        return found


def _text(number: int, request: Any) -> str:
    """Returns an argument of the `predict` command without surrounding white space. Raises InputError if it is not a
    text, or is empty. `number` is its number, counted from 1.
    """
    if not isinstance(request, str):
        raise InputError(f"text {number}: {shown(request)}; expected a text to generate an image from")
    if not (text := request.strip()):
        raise InputError(f"text {number}: empty; expected a text to generate an image from")
    return text
