"""Image tasks: images without labels, labeled images, and images with hidden patches."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxformer.data.fields.image import ImageField, Picture, Prepared
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.composed import FieldTask
from jaxformer.data.tasks.hidden import Hidden
from jaxformer.data.tasks.labelled import Labelled


@dataclasses.dataclass(frozen=True)
class ImageTask(FieldTask):
    """Task of images without labels, and base class of the other image tasks.

    Batch rows: `images` uint8 [batch, size, size, channels]; `weights` float32 [batch, 1], 1 for each image.
    """

    image: ImageField = ImageField()
    """How images are read, resized and augmented."""

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[Prepared]:
        """Decodes, resizes and crops images without augmentation, as in evaluation. Images can be file paths or in
        memory.

        Raises InputError if an image cannot be decoded.
        """
        return self.image.prepare(requests)


@dataclasses.dataclass(frozen=True)
class LabelledImages(Labelled, ImageTask):
    """Image classification: an image and its label.

    Batch rows: `images` uint8 [batch, size, size, channels]; `labels` int32 and `weights` float32 [batch, 2]. An image
    that Mixup or CutMix has made from two images has the labels of both, and the weights are their shares. Otherwise
    the first label has weight 1 and the second weight 0.
    """

    pixel_field: ClassVar[str] = "image"
    pixel_array: ClassVar[str] = "images"

    def view(self, encoded: Picture, rng: np.random.Generator) -> np.ndarray:
        return self.image.view(encoded.picture, rng)[0]


@dataclasses.dataclass(frozen=True)
class MaskedPatches(Hidden, ImageTask):
    """Images with a random number (noise) per patch. A masked autoencoder hides the patches with the highest numbers
    (He et al. 2022).

    Batch rows: `images` uint8 [batch, size, size, channels]; `noise` float32 [batch, patches], one value per patch (the
    model sees the patches with the lowest values); `weights` float32 [batch, 1], 1 for each image.
    """

    pixel_field: ClassVar[str] = "image"
