"""Base class of classification tasks of images and clips, with Mixup and CutMix."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.label import LabelField, label_index
from jaxformer.data.tasks.base import Demonstration
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.transforms.image import cutmix, mixup
from jaxformer.errors import FieldError, shown

LOOKED_AT = 100
"""Number of evenly spaced examples to read before the others when checking that a source has at least two different
labels. The number is small because reading an example decodes its image or clip.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(FieldTask):
    """Base class of tasks that classify images or clips. Abstract: use a subclass, such as `LabelledImages`."""

    label: str = "label"
    """Name of the column with the label, which is a name or an index."""
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model."""
    mixup: float = 0.0
    """Parameter α of the Beta(α, α) distribution from which Mixup draws the weights of the two images (Zhang et al.
    2018). 0 disables Mixup.
    """
    cutmix: float = 0.0
    """Parameter α of the Beta(α, α) distribution from which CutMix draws the shares of the image area (Yun et al.
    2019). 0 disables CutMix. If Mixup is also enabled, each training example uses one of the two at random.
    """

    pixel_field: ClassVar[str]
    """Name of the dataclass field that reads the pixels, such as `image`."""
    pixel_array: ClassVar[str]
    """Name of the array of pixels in a batch row, such as `images`."""

    def __post_init__(self):
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            problem = f"={shown(self.labels)}: expected the model's label names, at least two, without duplicates"
            raise FieldError("data.task.labels", problem)
        fields.at_least("data.task.mixup", self.mixup, 0)
        fields.at_least("data.task.cutmix", self.cutmix, 0)

    @abc.abstractmethod
    def view(self, encoded: Any, rng: np.random.Generator) -> np.ndarray:
        """Returns the pixels of an encoded image or clip, resized and randomly augmented, uint8 [..., height, width,
        channels]. They are mixed with the pixels of another one.
        """

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        return {**self._nested, "label": self._target}

    @functools.cached_property
    def _target(self) -> LabelField:
        return LabelField(self.label, self.labels)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return self.fields[self.pixel_field].features() | {"labels": Feature(2), "weights": Feature(2, "float32")}

    def for_evaluation(self) -> Self:
        return dataclasses.replace(super().for_evaluation(), mixup=0.0, cutmix=0.0)

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        for label in getattr(documents, "labels", ()):  # Folders of classes have them without decoding a file.
            label_index(label, self.labels)
        self._target.check_source(documents, name, LOOKED_AT, "data.task.label")

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        label = self.labels[self._target.index(example, "data.task.label")]
        return Demonstration(self.requests(example, folder), label)

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays, name = self.transformed(values, visit), self.pixel_array
        image, labels, share = arrays[name], [int(arrays["labels"][0]), 0], 1.0
        if self.mixup or self.cutmix:
            image, labels[1], share = self._mixed(image, visit)
        weights = np.array([share, 1 - share], np.float32)
        return arrays | {name: image, "labels": np.array(labels, np.int32), "weights": weights}

    def _mixed(self, image: np.ndarray, visit: Visit[FieldValues]) -> tuple[np.ndarray, int, float]:
        """Mixes the pixels of a training example with those of another, randomly drawn document, by Mixup or CutMix.

        Returns the mixed pixels, the label of the other document, and the share of `image` in the mixture. If the other
        document cannot be decoded, returns `image` itself, 0 and 1.0.
        """
        other = visit.draw(visit.rng)
        if other.values is None:
            return image, 0, 1.0
        cuts = self.cutmix and (not self.mixup or visit.rng.random() < 0.5)
        parameter = self.cutmix if cuts else self.mixup
        share = visit.rng.beta(parameter, parameter)
        second = self.view(other.values[self.pixel_field], visit.rng)
        if cuts:
            image, share = cutmix(image, second, share, visit.rng)
        else:
            image = mixup(image, second, share)
        return image, int(other.values["label"][0]), share
