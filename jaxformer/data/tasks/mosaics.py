"""Base class of image tasks whose training images may be mosaics of four images."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Visit
from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.images import ImageTask
from jaxformer.data.transforms import mosaic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mosaics(ImageTask):
    """Base class of tasks of images with boxes or masks, which can be combined. Abstract: use a subclass."""

    mosaic: float = 0.0
    """Probability that a training image consists of parts of four images (Bochkovskiy et al. 2020, YOLOv4).
    With boxes, a mosaic with more than `max_boxes` objects is replaced by its first image.
    """

    def __post_init__(self):
        fields.within("data.task.mosaic", self.mosaic, 0, 1)

    @abc.abstractmethod
    def combined(self, parts: Sequence[Example], rng: np.random.Generator) -> Example:
        """Combines the training examples of four images in one."""

    def for_evaluation(self) -> Self:
        return dataclasses.replace(super().for_evaluation(), mosaic=0.0)

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        if not self.mosaic or visit.rng.random() >= self.mosaic:
            return super()._example(values, visit)
        drawn = [visit.draw(visit.rng).values for _ in range(mosaic.COUNT - 1)]
        # A document that cannot be decoded is replaced by the first one.
        all_values = [values, *(values if one is None else one for one in drawn)]
        return self.combined([super(Mosaics, self)._example(one, visit) for one in all_values], visit.rng)
