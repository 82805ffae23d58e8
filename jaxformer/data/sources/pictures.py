"""Decoding of images from files, bytes or arrays, and a source of folders of images."""

import dataclasses
import io
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from jaxformer import storage
from jaxformer.data.messages import placed
from jaxformer.data.sources.file_bytes import check_regular
from jaxformer.data.sources.sources import Source
from jaxformer.errors import InputError
from jaxformer.limits import PIXELS

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name extensions of images, in lower case."""
MODES = {1: "L", 3: "RGB"}
"""Maps the number of channels to the Pillow mode: L for grayscale, RGB for color."""
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
"""Maps Pillow modes in which colors are premultiplied by alpha to the corresponding modes in which they are not."""
DEEP = 65_535
"""Maximum value of a 16-bit pixel, which is white."""
BACKGROUND = "white"
"""Background color for transparent pixels."""

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image
"""Path of an image file, its content as bytes, an array of pixels, or a Pillow image."""


class Undecodable(Exception):
    """Raised if an image cannot be read. The message names the image and the reason."""


def name_of(image: ImageLike, otherwise: str) -> str:
    """Returns the path of an image for error messages, or `otherwise` if it does not have one."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise


def read_picture(image: ImageLike, channels: int, name: str = "") -> Image.Image:
    """Reads an image as an image viewer shows it, with 8 bits per channel.

    Every image is read by this function. It rotates the image by its EXIF orientation, scales 16-bit and floating-point
    pixels to 8 bits, and places transparent pixels on a white background. It ignores color profiles and reads only the
    first frame of an animation.

    Args:
      image: path of an image file, its content as bytes, Pillow image, or an array [height, width] or [height, width,
        channels] with 1 channel (grayscale), 2 (grayscale and alpha), 3 (RGB) or 4 (RGBA). Arrays are uint8, uint16 (0
        to 65,535), floats (0 to 1), bool, or other integers (0 to 255). Pillow mode I contains 0 to 65,535, and mode F
        contains 0 to 1.
      channels: number of channels of the result, 1 for grayscale or 3 for color.
      name: name of an image without a path, for error messages.

    Raises:
      Undecodable: If `image` is not an image, or the range of its pixels is unknown.
    """
    name = name_of(image, name)
    if isinstance(image, str | os.PathLike) and storage.is_remote(image):
        image = _object(os.fspath(image))  # An InputError: an object that is out of reach is not skipped.
    try:
        picture = _seen(_in_8_bits(_upright(_opened(image))))
        # Pillow can convert some modes only to RGB.
        return picture if picture.mode == MODES[channels] else picture.convert("RGB").convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Undecodable(f"{name}: cannot be decoded: {reason.replace(f' {name!r}', ' it')}") from error


def is_single(value: Any) -> bool:
    """Returns whether a value is a single input (a text, path, Pillow image, bytes or pixel array), not a collection of
    inputs.
    """
    pixels = isinstance(value, np.ndarray) and 1 < value.ndim < 4
    return pixels or isinstance(value, str | os.PathLike | bytes | Image.Image)


def as_list(value: Any) -> list[Any]:
    """Returns a list of inputs, which are texts or images. A single text or image becomes a list of length 1.

    Raises:
      InputError: If an item is a number or None.
    """
    several = not is_single(value) and isinstance(value, Iterable)
    inputs = list(value) if several else [value]
    if wrong := [one for one in inputs if one is None or isinstance(one, int | float)]:
        raise InputError(f"{wrong[0]!r}: expected a text or an image, or several in a list")
    return inputs


def images_in(value: Any) -> list[Any]:
    """Returns the sorted image paths in a folder if `value` is the path of a folder. Otherwise returns `[value]`.

    Raises:
      InputError: If the folder contains no image.
    """
    if not isinstance(value, str | os.PathLike):
        return [value]
    if storage.is_remote(value) and not os.fspath(value).lower().endswith(ENDINGS):
        folder = os.fspath(value).rstrip("/")
        names = [name for name in storage.objects_below(folder) if "/" not in name and name.lower().endswith(ENDINGS)]
        return [f"{folder}/{name}" for name in names] or [value]
    if not os.path.isdir(value):
        return [value]
    found = [entry.path for entry in os.scandir(value) if entry.name.lower().endswith(ENDINGS) and entry.is_file()]
    if not found:
        raise InputError(f"{os.fspath(value)}: this folder has no image; expected files such as cat.png")
    return sorted(found)


def _object(name: str) -> bytes:
    try:
        return storage.read_bytes(name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such object; give the path of an image") from error


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        return image
    return open_encoded(image)


def open_encoded(image: str | os.PathLike | bytes) -> Image.Image:
    """Opens an image file, or the content of one, and reads its header. Raises ValueError if it has more pixels than
    `limits.PIXELS`, and OSError if it is not an image or not a regular file.
    """
    if not isinstance(image, bytes):
        check_regular(os.fspath(image))
    picture = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    if problem := PIXELS.problem(math.prod(picture.size)):
        raise ValueError(problem)
    return picture


def _of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (2, 3, 4))):
        raise ValueError(f"an array of shape {array.shape}: expected [height, width] or [height, width, 1, 2, 3 or 4]")
    return Image.fromarray(_bytes_of(array))


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Converts an array of pixels to uint8, 0 to 255: bool and floats (0 to 1) are multiplied by 255, uint16 is divided
    by 257. Raises ValueError if their range is unknown.
    """
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return array
    if array.dtype.newbyteorder("=") == np.uint16:
        return _scaled(array.astype(np.float32), DEEP)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype}: expected numbers")
    most = 1 if array.dtype.kind == "f" else 255
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= most):  # Also false if a value is NaN.
        kind = "floating-point pixels" if most == 1 else f"pixels of {array.dtype}"
        raise ValueError(f"{kind} range from {low:g} to {high:g}: expected 0 to {most}")
    return _scaled(array, most)


def _scaled(array: np.ndarray, white: int) -> np.ndarray:
    return np.round(array * (255 / white)).astype(np.uint8)


def _upright(picture: Image.Image) -> Image.Image:
    """Rotates and flips a picture as its EXIF orientation says. Returns it unchanged if it has none."""
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, EOFError):
        return picture  # Viewers ignore damaged EXIF data.
    return ImageOps.exif_transpose(picture) if orientation in range(2, 9) else picture


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Converts a picture with 16 or 32 bits per pixel to 8 bits per pixel. Returns other pictures unchanged."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    array = np.asarray(picture)
    if picture.mode == "I":  # Pillow reads 16 bits as this mode in some formats.
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > DEEP:
            raise ValueError(f"32-bit pixels range from {low} to {high}: expected 0 to {DEEP}")
    values = array if picture.mode == "F" else array.astype(np.uint16)
    grey = Image.fromarray(_bytes_of(values))
    if (hidden := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(_bytes_of(values != hidden)))
    return grey


def _seen(picture: Image.Image) -> Image.Image:
    """Places a picture with transparent pixels on the background color. Returns other pictures unchanged."""
    if not picture.has_transparency_data:
        return picture
    if picture.mode in PREMULTIPLIED:
        picture = picture.convert(PREMULTIPLIED[picture.mode])
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)


@dataclasses.dataclass(frozen=True)
class ImageFolders(Source):
    """Source of labeled images, with one folder of images per class. The folder name is the class name. An example has
    the columns `image` (a path) and `label` (the class name).
    """

    path: str
    """Path of the folder that contains the class folders. Files may also be in subfolders of the class folders."""

    endings: ClassVar[tuple[str, ...]] = ENDINGS
    """File name extensions of the files to read, in lower case. Other files are ignored."""
    column: ClassVar[str] = "image"
    """Name of the column with the paths of the files."""
    example: ClassVar[str] = "cat/1.png"
    """Path of an example file relative to `path`, for error messages."""

    def open(self) -> Sequence[dict[str, Any]]:
        found = self._objects() if storage.is_remote(self.path) else self._files()
        if not found:
            problem = f"holds no {self.column} in a folder of its class; expected names such as {self.example}"
            raise InputError(f"{self.path}: {problem}")
        return _LabelledFiles(found, self.column)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in alphabetical order, which are the names of the class folders."""
        if storage.is_remote(self.path):
            return tuple(dict.fromkeys(label for _, label in self._objects()))
        try:
            entries = sorted(os.scandir(self._home), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{self.path}: {(error.strerror or str(error)).lower()}; give a folder") from error
        return tuple(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    @property
    def _home(self) -> str:
        return os.path.expanduser(self.path)

    def _files(self) -> list[tuple[str, str]]:
        """Lists the files in a local folder that has one subfolder per class. Returns (path, class name) pairs."""
        found = []
        for label in self.labels:
            for folder, below, names in os.walk(os.path.join(self._home, label)):
                below.sort()
                files = [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(self.endings)]
                found += [(file, label) for file in files]
        return found

    def _objects(self) -> list[tuple[str, str]]:
        """Lists the objects in a bucket folder that has one subfolder per class. Returns (path, class name) pairs."""
        parts = (name.split("/") for name in storage.objects_below(self.path) if name.lower().endswith(self.endings))
        images = sorted(names for names in parts if len(names) > 1 and not names[0].startswith("."))
        return [("/".join([self.path.rstrip("/"), *names]), names[0]) for names in images]


class _LabelledFiles(Sequence):
    """Sequence of examples such as {"image": path, "label": class name}. `column` is the key of the path, and `labels`
    are the names of all classes.
    """

    scan = True

    def __init__(self, found: list[tuple[str, str]], column: str):
        self.found, self.column = found, column
        self.labels = tuple(dict.fromkeys(label for _, label in found))

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, label = self.found[int(index)]
        return {self.column: file, "label": label}

    def identity(self, index: int) -> dict[str, Any]:
        """Returns example `index` with the content of its file instead of the path. Fingerprints of the data are
        computed from it, so that they do not change when the folder is moved.
        """
        file, label = self.found[index]
        return {self.column: storage.read_bytes(file), "label": label}

    def place(self, index: int) -> str:
        """Returns the path of the file of example `index`, for error messages."""
        return self.found[index][0]


_skipped: dict[str, int] = {}


def skip(problem: str) -> None:
    """Prints a note on standard error that an image, clip or sound is skipped, with its origin if it is known, and the
    number of items skipped so far in this process. A repeated problem is printed once. `problem` is a phrase that names
    the item and the reason.
    """
    problem = placed(problem)
    if problem not in _skipped:
        _skipped[problem] = len(_skipped) + 1
        print(f"skipped: {problem} ({_skipped[problem]} so far)", file=sys.stderr, flush=True)
