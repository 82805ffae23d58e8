"""Pictures from files, bytes or arrays, and folders of them."""

import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxformer.data.sources import Source
from jaxformer.errors import InputError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the names of files that are taken for images."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's names of grey and of coloured pictures, by their channels."""


class Undecodable(Exception):
    """What is no image, with its name and what is wrong with it."""


def read_picture(image: str | bytes | np.ndarray, channels: int, name: str = "") -> Image.Image:
    """A picture in memory, of as many channels.

    Args:
        image: a file's path, its content, or pixels, uint8 [height, width, 1, 3 or 4].
        channels: 1 for grey, 3 for colours.
        name: of what has no path, for a message.

    Raises:
        Undecodable: it is no image.
    """
    name = image if isinstance(image, str) else name
    try:
        if isinstance(image, np.ndarray):
            picture = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
        else:
            picture = Image.open(image if isinstance(image, str) else io.BytesIO(image))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            # What is transparent is white: its hidden colour may be anything.
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Undecodable(f"{name}: cannot be decoded: {reason.replace(f' {name!r}', ' it')}") from error
    return picture


@dataclasses.dataclass(frozen=True)
class ImageFolders(Source):
    """A folder of images for each class, which has the folder's name."""

    path: str
    """The folder that holds them; images may lie in folders below those of the classes."""

    def open(self) -> Sequence[dict[str, Any]]:
        found = []
        for label in self.labels:
            for folder, below, names in os.walk(os.path.join(self._home, label)):
                below.sort()
                images = [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(ENDINGS)]
                found += [(image, label) for image in images]
        if not found:
            raise InputError(f"{self.path}: holds no image in a folder of its class; expected names such as cat/1.png")
        return _LabelledFiles(found)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        try:
            entries = sorted(os.scandir(self._home), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{self.path}: {(error.strerror or str(error)).lower()}; give a folder") from error
        return tuple(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    @property
    def _home(self) -> str:
        return os.path.expanduser(self.path)


class _LabelledFiles(Sequence):
    """{"image": path, "label": name} of each file; `labels` are all that there are."""

    def __init__(self, found: list[tuple[str, str]]):
        self.found = found
        self.labels = tuple(dict.fromkeys(label for _, label in found))

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.found[int(index)]
        return {"image": image, "label": label}


_skipped: dict[str, int] = {}


def skip(problem: str) -> None:
    """Tells of an image that is left out, once, and how many have been until now, in this process."""
    if problem not in _skipped:
        _skipped[problem] = len(_skipped) + 1
        print(f"skipped: {problem} ({_skipped[problem]} until now)", file=sys.stderr, flush=True)
