"""Base class of pretraining tasks for masked autoencoders, which hide patches of images or of video frames."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class Hidden(FieldTask):
    """Base class of pretraining tasks for masked autoencoders. An example contains pixels, and a random number (noise)
    per patch that determines whether the patch is hidden. Abstract: use a subclass, such as `MaskedPatches`.
    """

    patch: int = 16
    """Height and width of a patch in pixels. Must equal the patch size of the model."""

    pixel_field: ClassVar[str]
    """Name of the dataclass field, such as `image`, that reads the pixels. Its `size` is the height and width of the
    pixels.
    """

    def __post_init__(self):
        fields.at_least("data.task.patch", self.patch, 1)
        if self._size % self.patch:
            problem = f"={self._size}: expected a multiple of patch={self.patch}"
            raise FieldError(f"data.task.{self.pixel_field}.size", problem, owner="data.task")

    @property
    def _size(self) -> int:
        return getattr(self, self.pixel_field).size

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        noise = Feature((self._size // self.patch) ** 2, "float32")
        return self.fields[self.pixel_field].features() | {"noise": noise, "weights": Feature(1, "float32")}

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return ()  # A masked autoencoder has no predictions.

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        noise = visit.rng.random(self.row["noise"].capacity, np.float32)
        return arrays | {"noise": noise, "weights": np.ones(1, np.float32)}
