"""Image tasks: plain images, labeled images, and images with hidden patches."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.image import ImageField, Picture, Prepared
from jaxformer.data.fields.label import LabelField, label_index
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.transforms.image import cutmix, mixup
from jaxformer.errors import FieldError, shown

LOOKED_AT = 100
"""Number of evenly spaced examples to read first when checking that a source has examples of at least two classes.
Small, because each image is decoded.
"""


@dataclasses.dataclass(frozen=True)
class ImageTask(FieldTask):
    """Images without labels. Base class of image tasks.

    Rows: `images` uint8 [batch, size, size, channels]; `weights` float32 [batch, 1], 1 for each image.
    """

    image: ImageField = ImageField()
    """How images are read, resized and augmented."""

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[Prepared]:
        """Decodes, resizes and crops images without augmentation, as for evaluation. Images are files or in memory.

        Raises InputError if an image cannot be decoded.
        """
        return self.image.prepare(requests)


@dataclasses.dataclass(frozen=True)
class LabelledImages(ImageTask):
    """Image classification: an image and its label.

    Rows: `images` uint8 [batch, size, size, channels]; `labels` int32 and `weights` float32 [batch, 2]. If an image is
    a mixture of two images, it has the labels of both, and the weights are their shares. Otherwise the first label has
    weight 1 and the second weight 0.
    """

    label: str = "label"
    """Name of the column with the label, which is a name or an index."""
    labels: tuple[str, ...] = ()
    """Label names in index order. Must equal the labels of the model."""
    mixup: float = 0.0
    """Parameter α of the Beta(α, α) distribution that mixing weights are drawn from in Mixup (Zhang et al. 2018). 0
    disables Mixup.
    """
    cutmix: float = 0.0
    """Parameter α of the Beta(α, α) distribution that area shares are drawn from in CutMix (Yun et al. 2019). 0
    disables CutMix. If Mixup is also enabled, each training example uses one of the two at random.
    """

    def __post_init__(self):
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            problem = f"={shown(self.labels)}: expected the model's label names, at least two, without duplicates"
            raise FieldError("data.task.labels", problem)
        fields.at_least("data.task.mixup", self.mixup, 0)
        fields.at_least("data.task.cutmix", self.cutmix, 0)

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        return {"image": self.image, "label": self._target}

    @functools.cached_property
    def _target(self) -> LabelField:
        return LabelField(self.label, self.labels)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return self.image.features() | {"labels": Feature(2), "weights": Feature(2, "float32")}

    def for_evaluation(self) -> "LabelledImages":
        return dataclasses.replace(super().for_evaluation(), mixup=0.0, cutmix=0.0)

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        for label in getattr(documents, "labels", ()):  # `ImageFolders` has them without decoding an image.
            label_index(label, self.labels)
        self._target.check_source(documents, name, LOOKED_AT, "data.task.label")

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        image, labels, share = arrays["images"], [int(arrays["labels"][0]), 0], 1.0
        if self.mixup or self.cutmix:
            image, labels[1], share = self._mixed(image, visit)
        weights = np.array([share, 1 - share], np.float32)
        return arrays | {"images": image, "labels": np.array(labels, np.int32), "weights": weights}

    def _mixed(self, image: np.ndarray, visit: Visit[FieldValues]) -> tuple[np.ndarray, int, float]:
        """Mixes the image with a random other image, by Mixup or CutMix.

        Returns the mixed image, the label of the other image, and the share of `image`.
        """
        other = visit.draw(visit.rng)
        if other.values is None:
            return image, 0, 1.0
        cuts = self.cutmix and (not self.mixup or visit.rng.random() < 0.5)
        parameter = self.cutmix if cuts else self.mixup
        share = visit.rng.beta(parameter, parameter)
        picture: Picture = other.values["image"]
        second, _ = self.image.view(picture.picture, visit.rng)
        if cuts:
            image, share = cutmix(image, second, share, visit.rng)
        else:
            image = mixup(image, second, share)
        return image, int(other.values["label"][0]), share


@dataclasses.dataclass(frozen=True)
class MaskedPatches(ImageTask):
    """Images with a random number (noise) per patch. A masked autoencoder hides the patches with the highest numbers
    (He et al. 2022).

    Rows: `images` uint8 [batch, size, size, channels]; `noise` float32 [batch, patches], one value per patch, where the
    model sees the patches with the lowest values; `weights` float32 [batch, 1], 1 for each image.
    """

    patch: int = 16
    """Height and width of a patch in pixels. Must equal the patch size of the model."""

    def __post_init__(self):
        fields.at_least("data.task.patch", self.patch, 1)
        if self.image.size % self.patch:
            problem = f"={self.image.size}: expected a multiple of patch={self.patch}"
            raise FieldError("data.task.image.size", problem, owner="data.task")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        patches = (self.image.size // self.patch) ** 2
        return self.image.features() | {"noise": Feature(patches, "float32"), "weights": Feature(1, "float32")}

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return ()  # A masked autoencoder has no predictions.

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        noise = visit.rng.random(self.row["noise"].capacity, np.float32)
        return arrays | {"noise": noise, "weights": np.ones(1, np.float32)}
