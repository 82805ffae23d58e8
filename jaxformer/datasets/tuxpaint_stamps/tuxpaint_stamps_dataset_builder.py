"""Stamps data set: pictures of things, with their outlines and with captions in English, German and French."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from jaxformer.datasets.debian_packages import package_folder
from jaxformer.errors import InputError

_DESCRIPTION = """
785 photographs and drawings of things, from the Debian package tuxpaint-stamps-default, the stamps of the drawing
program Tux Paint. Each has a caption in English, German and French, such as "A crow.", and one of sixteen kinds, such
as `animals`. Pictures are at most 256 pixels wide and high, on white. `mask` is the opacity of each pixel, from 0 to
255.

Every tenth thing of a kind is held out. Pictures of the same thing, such as `frog` and `frog-1`, are in the same split.
The stamps that are only stored as SVG are left out.

The pictures are under the GNU General Public License, version 2.
"""

KINDS = (
    "animals",
    "clothes",
    "food",
    "hobbies",
    "household",
    "medical",
    "military",
    "naturalforces",
    "people",
    "plants",
    "seasonal",
    "space",
    "sports",
    "symbols",
    "town",
    "vehicles",
)
"""Class names: the folders of the package."""
LANGUAGES = ("en", "de", "fr")
_PACKAGE = "tuxpaint-stamps-default"
_FOLDER = Path("usr", "share", "tuxpaint", "stamps")
_LARGEST, _EVERY = 256, 10


@dataclasses.dataclass(frozen=True)
class Stamp:
    """A picture of the package, which has not been read."""

    path: Path
    kind: str
    """Class name of the picture, one of `KINDS`."""
    captions: dict[str, str]
    """Caption in each of `LANGUAGES`, keyed by language code."""

    @property
    def name(self) -> str:
        """File name without its extension and number, such as `polar bear`."""
        return re.sub(r"[-_ ]*\d*$", "", self.path.stem).replace("_", " ").replace("-", " ") or self.path.stem

    def picture(self) -> Image.Image:
        """Reads the picture, with an alpha channel, cropped to its visible pixels and at most 256 × 256 pixels."""
        with Image.open(self.path) as file:
            picture = file.convert("RGBA")
        picture = picture.crop(picture.getchannel("A").getbbox())
        picture.thumbnail((_LARGEST, _LARGEST))
        return picture


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the stamps data set. The module's `_DESCRIPTION` describes its content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=list(KINDS)),
            "name": tfds.features.Text(),
            **{language: tfds.features.Text() for language in LANGUAGES},
        }
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = unpacked(os.path.join(str(dl_manager.download_dir), "tuxpaint_stamps"))
        return {split: self._generate_examples(folder, split) for split in ("train", "validation")}

    def _generate_examples(self, folder: Path, split: str) -> Iterator[tuple[str, dict]]:
        for stamp in stamps(folder, split):
            picture = stamp.picture()
            image = Image.new("RGBA", picture.size, "white")
            image.alpha_composite(picture)
            example = {"image": image.convert("RGB"), "mask": picture.getchannel("A")}
            labels = {"label": stamp.kind, "name": stamp.name}
            yield stamp.path.relative_to(folder).as_posix(), example | labels | stamp.captions


def unpacked(folder: str) -> Path:
    """Downloads the package to `folder`, unless it is there. Returns the folder of its stamps.

    Raises:
      InputError: If the download fails, or the package contains no stamps.
    """
    found = Path(package_folder(_PACKAGE, folder)) / _FOLDER
    if not found.is_dir():
        raise InputError(f"{_PACKAGE}: has no {_FOLDER}; another version of the package is needed")
    return found


def stamps(folder: Path, split: str) -> Iterator[Stamp]:
    """Yields the stamps of a split that have a picture and captions in all `LANGUAGES`.

    Args:
      folder: folder of the stamps, with a subfolder per kind.
      split: `train` or `validation`.
    """
    for kind in KINDS:
        there: dict[tuple[Path, str], list[Stamp]] = {}
        for path in sorted((folder / kind).rglob("*.png")):
            if captions := _captions(path.with_suffix(".txt")):
                stamp = Stamp(path, kind, captions)
                there.setdefault((path.parent, stamp.name), []).append(stamp)
        for number, found in enumerate(there.values()):
            if (number % _EVERY == _EVERY - 1) == (split == "validation"):
                yield from found


def _captions(path: Path) -> dict[str, str]:
    """Reads the captions of a stamp. Returns an empty dict if the file does not exist or lacks a language."""
    if not path.is_file():
        return {}  # Some pictures are mirrored or flipped versions of others.
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    found = {"en": first.strip()}
    for line in lines:
        code, _, caption = line.partition(".utf8=")
        if code in LANGUAGES and caption.strip():
            found[code] = caption.strip()
    return found if all(found.get(language) for language in LANGUAGES) else {}
