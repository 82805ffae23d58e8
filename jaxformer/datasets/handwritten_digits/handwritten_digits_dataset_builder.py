"""Handwritten digits data set: 5,000 grayscale images of 20 × 20 pixels, 500 per digit."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxformer.datasets.debian_packages import package_file

_DESCRIPTION = """
5,000 handwritten digits, white on black, 20 × 20 pixels, from the image `digits.png` of the OpenCV samples in the
Debian package opencv-doc. The package (96 MB) is downloaded with apt and unpacked, but not installed.

Every fifth image of each digit is held out: 4,000 images are for training and 1,000 for validation, 400 and 100 per
digit. Nearest-neighbor classification with the training images has an accuracy of 96.5% on the validation images.

OpenCV is under the Apache License 2.0, until version 4.5 under the BSD 3-clause licence.
"""

_SHEET, _SIZE, _EACH, _EVERY = "usr/share/doc/opencv-doc/examples/data/digits.png", 20, 500, 5


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the handwritten digits data set. The module's `_DESCRIPTION` describes its content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(_SIZE, _SIZE, 1))
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=10)}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(os.path.abspath(str(dl_manager.download_dir)), "handwritten_digits")
        os.makedirs(folder, exist_ok=True)
        images = digits(package_file("opencv-doc", _SHEET, folder))
        held_out = np.arange(len(images)) % _EVERY == _EVERY - 1
        return {
            "train": self._generate_examples(images, ~held_out),
            "validation": self._generate_examples(images, held_out),
        }

    def _generate_examples(self, images: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[int, dict]]:
        for number in np.flatnonzero(chosen):
            # A Pillow image, because TFDS would encode an array with TensorFlow.
            yield int(number), {"image": Image.fromarray(images[number]), "label": int(number // _EACH)}


def digits(sheet: str) -> np.ndarray:
    """Divides an image that contains 5,000 handwritten digits in a grid into images of single digits, uint8 [5000, 20,
    20].

    They are ordered by digit: 500 zeros, 500 ones and so on. `sheet` is the path of the image.
    """
    with Image.open(sheet) as file:
        pixels = np.asarray(file.convert("L"))
    rows, columns = (length // _SIZE for length in pixels.shape)
    cells = pixels.reshape(rows, _SIZE, columns, _SIZE).swapaxes(1, 2)
    return np.ascontiguousarray(cells.reshape(-1, _SIZE, _SIZE))
