"""Image tasks: plain images, labeled images, and images with hidden patches."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.image import ImageField, Picture, Prepared
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tasks.labelled import Labelled
from jaxformer.errors import FieldError


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
class LabelledImages(Labelled, ImageTask):
    """Image classification: an image and its label.

    Rows: `images` uint8 [batch, size, size, channels]; `labels` int32 and `weights` float32 [batch, 2]. If an image is
    a mixture of two images, it has the labels of both, and the weights are their shares. Otherwise the first label has
    weight 1 and the second weight 0.
    """

    mixes: ClassVar[tuple[str, str]] = ("image", "images")

    def view(self, encoded: Picture, rng: np.random.Generator) -> np.ndarray:
        return self.image.view(encoded.picture, rng)[0]


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
