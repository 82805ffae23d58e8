"""Tasks on images: their labels, and patches that are hidden.

An image of h × w pixels has h entries of [w, n] in a row of the batch, so that one example fills it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxformer.data.sources import files, pictures
from jaxformer.data.tasks.base import Example, Feature, Task
from jaxformer.data.tasks.classification import check_classes, number_of
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.image import Augmentation, Fit, Resample, cutmix, fitted, mixup, pixels
from jaxformer.errors import InputError

LOOKED_AT = 100
"""Examples, spread over a source, that are searched for a second class before all others are; each is decoded."""


EXAMPLE = "example.png"
"""In a run's folder: an image to try `predict` with."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image in memory."""

    picture: Image.Image | None
    """None: it could not be decoded."""
    label: int | None
    """The number of its class, where it has one."""
    size: int
    """Memory, in units of four bytes."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image that a person asks about."""

    path: str
    """The file, or another name of the image."""
    pixels: np.ndarray
    """uint8 [size, size, channels]."""


@dataclasses.dataclass(frozen=True)
class ImageTask(Task):
    """Images alone, as a model that has no labels takes them, and what tasks on images share.

    Rows: `images` uint8 [b, size, size, channels].
    """

    size: int = 224
    """Height and width of the images in a batch."""
    channels: int = 3
    """1 for grey, 3 for colours."""
    image: str = "image"
    """Column with the image: its path, the bytes of a file, or pixels, as `images.read_picture` takes them."""
    augmentation: Augmentation | None = None
    """How images are changed at each visit in training."""
    fit: Fit = "crop"
    """How an image that is not augmented becomes a square: `crop` resizes its shorter side, `stretch` both sides, and
    `none` neither. The middle is cut out then."""
    crop: float = 1.0
    """Share of the resized sides that is seen: they have size / crop pixels. 0.875 is usual for ImageNet."""
    resample: Resample = "bicubic"
    """The filter that images are resized with."""
    strict: bool = False
    """Stop at an image that cannot be decoded, instead of leaving it out and saying so."""

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"task.size {self.size}: must be 1 or more")
        if self.channels not in pictures.MODES:
            raise InputError(f"task.channels {self.channels}: must be 1, for grey, or 3")
        if not 0 < self.crop <= 1:
            raise InputError(f"task.crop {self.crop}: must be above 0, and 1 at most")

    @property
    def reads_text(self) -> bool:
        return False

    @property
    def edge(self) -> int:
        """Length of the resized sides, in pixels, of which the middle `size` are seen."""
        return round(self.size / self.crop)

    @property
    def counted(self) -> tuple[str, int]:
        return "images", 1

    @property
    def need(self) -> str:
        return "image that can be decoded"

    @property
    def evaluated(self) -> Task:
        return dataclasses.replace(self, augmentation=None)

    @property
    def _images(self) -> Feature:
        return Feature(self.size, "uint8", shape=(self.size, self.channels))

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return {"images": self._images}

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        if pack:
            raise InputError("data.pack: an image fills a row; set it to False")

    def asked(self, words: Sequence[pictures.ImageLike]) -> list[Prepared]:
        """Images in files or in memory, prepared as in an evaluation; InputError where one cannot be decoded."""
        found = []
        for number, image in enumerate(words, 1):
            name = pictures.name_of(image, f"image {number}")
            try:
                found.append(Prepared(name, self.prepared(self._read(image, name))))
            except pictures.Undecodable as error:
                raise InputError(str(error)) from error
        return found

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        image = files.value(example, self.image, "task.image")
        if isinstance(image, str | os.PathLike):
            return (str(image),)
        path = folder / EXAMPLE
        try:
            picture = self._read(image, "the example")
        except pictures.Undecodable as error:
            raise InputError(str(error)) from error
        if not path.exists():  # It may be somebody's own.
            picture.save(path)
        return (str(path),)

    def read(self, example: Mapping[str, Any]) -> tuple[Any, int | None]:
        """The image, not decoded yet, and the number of its class."""
        image = files.value(example, self.image, "task.image")
        if isinstance(image, str):
            files.check_text(image, f"column {self.image!r}")
        return image, self._label(example)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> Picture:
        image, label = self.read(example)
        try:
            picture = self._read(image, pictures.name_of(image, "an image of the source"))
        except pictures.Undecodable as error:
            if self.strict:
                raise InputError(f"{error}; without task.strict it would be skipped") from error
            pictures.skip(str(error))
            return Picture(None, None, 1)
        return Picture(picture, label, picture.width * picture.height * self.channels // 4 + 1)

    def prepared(self, picture: Image.Image) -> np.ndarray:
        """The pixels of a picture that is not augmented: uint8 [size, size, channels]."""
        return pixels(fitted(picture, self.size, self.edge, self.fit, self.resample))

    def _read(self, image: pictures.ImageLike, name: str) -> Image.Image:
        picture = pictures.read_picture(image, self.channels, name)
        if self.fit == "none" and min(picture.size) < self.size:
            given = f"{picture.width} × {picture.height} pixels"
            raise pictures.Undecodable(
                f"{name}: {given}: expected {self.size} × {self.size} or more with task.fit=none"
            )
        return picture

    def seen(self, picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """The pixels of a picture at a visit."""
        if self.augmentation is None:
            return self.prepared(picture)
        return self.augmentation(picture, self.size, self.resample, rng)

    def examples(
        self,
        document: Picture,
        tokenizer: Tokenizer | None,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Picture],
    ) -> list[Example]:
        if document.picture is None:
            return []
        return [self._example(self.seen(document.picture, rng), document, rng, draw)]

    def _example(self, image: np.ndarray, document: Picture, rng: np.random.Generator, draw: Callable) -> Example:
        """The arrays of a visit to a document, as which `image` is seen."""
        return {"images": image}

    def _label(self, example: Mapping[str, Any]) -> int | None:
        return None


@dataclasses.dataclass(frozen=True)
class LabelledImages(ImageTask):
    """The class of an image.

    Rows: `images` uint8 [b, size, size, channels]; `labels` int32 and `weights` float32 [b, 2]: of a mixed image both
    labels with their shares, else its label with weight 1 and nothing.
    """

    label: str = "label"
    """Column with the label, its name or its number."""
    labels: tuple[str, ...] = ()
    """Names of the labels in the order of their numbers, those of the model."""
    mixup: float = 0.0
    """With what parameter the beta distribution gives the shares of two images laid over each other; 0: none are."""
    cutmix: float = 0.0
    """The same of two images of which one has a box of the other; with both, each visit draws which of them."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels {_shown(self.labels)}: give the model's names, two or more, each once")
        for field in ("mixup", "cutmix"):
            if getattr(self, field) < 0:
                raise InputError(f"task.{field} {getattr(self, field)}: must be 0 or more")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return {"images": self._images, "labels": Feature(2), "weights": Feature(2, "float32")}

    @property
    def evaluated(self) -> Task:
        return dataclasses.replace(self, augmentation=None, mixup=0.0, cutmix=0.0)

    def check_source(self, documents: Sequence[Mapping[str, Any]], name: str) -> None:
        for label in getattr(documents, "labels", ()):  # The names of all folders.
            self._number(label)
        check_classes(documents, self._label, self.labels, name, LOOKED_AT)

    def _example(self, image: np.ndarray, document: Picture, rng: np.random.Generator, draw: Callable) -> Example:
        labels, share = [document.label, 0], 1.0
        if self.mixup or self.cutmix:
            image, labels[1], share = self._mixed(image, rng, draw)
        weights = np.array([share, 1 - share], np.float32)
        return {"images": image, "labels": np.array(labels, np.int32), "weights": weights}

    def _mixed(self, image, rng, draw) -> tuple[np.ndarray, int, float]:
        """The image with another one in it, that one's label, and the share of the first."""
        other = draw(rng)
        if other.picture is None:
            return image, 0, 1.0
        cuts = self.cutmix and (not self.mixup or rng.random() < 0.5)
        share = rng.beta(*[self.cutmix if cuts else self.mixup] * 2)
        second = self.seen(other.picture, rng)
        if cuts:
            image, share = cutmix(image, second, share, rng)
        else:
            image = mixup(image, second, share)
        return image, other.label, share

    def _label(self, example: Mapping[str, Any]) -> int:
        return self._number(files.value(example, self.label, "task.label"))

    def _number(self, label: Any) -> int:
        try:
            return number_of(label, self.labels)
        except InputError as error:
            raise InputError(f"label {label!r}: not known; task.labels are {_shown(self.labels)}") from error


@dataclasses.dataclass(frozen=True)
class MaskedPatches(ImageTask):
    """Images whose patches are hidden by noise (He et al. 2022).

    Rows: `images` uint8 [b, size, size, channels]; `noise` float32 [b, p], of each patch: those with the least of it
    are seen; `weights` float32 [b, 1], 1 for each image.
    """

    patch: int = 16
    """Height and width of a patch, those of the model."""

    def __post_init__(self):
        super().__post_init__()
        if self.patch < 1 or self.size % self.patch:
            raise InputError(f"task.size {self.size}: must be a multiple of task.patch {self.patch}")

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        patches = (self.size // self.patch) ** 2
        return {"images": self._images, "noise": Feature(patches, "float32"), "weights": Feature(1, "float32")}

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return ()  # A masked autoencoder answers nothing.

    def _example(self, image: np.ndarray, document: Picture, rng: np.random.Generator, draw: Callable) -> Example:
        noise = rng.random(self.row["noise"].capacity, np.float32)
        return {"images": image, "noise": noise, "weights": np.ones(1, np.float32)}


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
