"""Scenes data set: synthetic images of emoji or stamps on color gradients, with the box, label and mask of each
object, and a caption.
"""

import dataclasses
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from jaxformer.datasets import downloads
from jaxformer.datasets.tuxpaint_stamps import tuxpaint_stamps_dataset_builder as tuxpaint

_DESCRIPTION = """
Scenes of up to four objects on gradients, with boxes, labels, masks and captions. The objects of `scenes/emoji`, the
default, are emoji of six kinds: face, hand, person, animal, vehicle and flag. They are cut out of the npm packages
emoji-datasource-google and emoji-datasource-twitter, version 16.0.0. Those of `scenes/stamps` are photographs and
drawings from the Debian package tuxpaint-stamps-default, which are animals, clothes, food, household, plants and
vehicles. Objects are flipped and resized at random, and may overlap. The sides of a scene are between 64 and 96 pixels
long. About one scene in sixteen has no object.

Every tenth name of a kind is held out: all forms of an emoji by both designers are in the same split, so the objects of
the validation split do not occur in the training split. Scene n depends only on the split and on n.

A caption says where each object is in relation to the next one, such as "cat face left of red car, red car above
crown".

`mask` contains the number of the object at each pixel, counted from 1 in the order of `objects`, and 0 for the
background. Boxes enclose the visible pixels of an object, which are at least half of its pixels.

The Google images (Noto) are under the Apache License 2.0, the Twitter images (Twemoji) under CC-BY 4.0, and the data
about them is under the MIT licence. The stamps are under the GNU General Public License, version 2.
"""

KINDS: Mapping[str, tuple[str, ...]] = {
    "face": ("face-",),
    "hand": ("hand-",),
    "person": ("person", "family"),
    "animal": ("animal-",),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
    "flag": ("country-flag",),
}
"""Maps each class name of emoji to the prefixes of the Unicode emoji subcategories that belong to the class."""
STAMP_KINDS = ("animals", "clothes", "food", "household", "plants", "vehicles")
"""Class names of stamps."""
DESIGNERS = ("google", "twitter")
_VERSION, _EVERY = "16.0.0", 10
_SCENES = {"train": 8000, "validation": 400}
_SIDES, _OBJECT_SIDES = (64, 96), (18, 44)
_MOST = 4
_VISIBLE = 0.5
"""Minimum share of an object's pixels that must not be covered by other objects."""
_OPAQUE = 128
"""Minimum alpha value, from 0 to 255, at which a pixel counts as part of an object."""
_CUT = 0.05
"""Minimum share of transparent pixels of a stamp. Others are pictures with a background, and are left out."""
_NO_VEHICLES = (
    "anchor",
    "automobile wheel",
    "bus stop",
    "construction sign",
    "fuel pump",
    "horizontal traffic light",
    "motorway",
    "octagonal sign",
    "oil drum",
    "police cars revolving light",
    "railway track",
    "ring buoy",
    "seat",
    "vertical traffic light",
    "wheel",
)
"""Names of emoji that are left out: their subcategories belong to the class `vehicle`, but they are not vehicles."""


@dataclasses.dataclass(frozen=True)
class CutOut:
    """An emoji or a stamp without its background, to be placed in scenes."""

    picture: Image.Image
    """Image with an alpha channel, cropped to its visible pixels."""
    name: str
    """Name of the emoji or the stamp."""


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """TFDS config of the scenes data set, which selects the objects."""

    kinds: tuple[str, ...] = ()
    """Class names of the objects."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the scenes data set. The module's `_DESCRIPTION` describes its content and splits."""

    builder_config: ScenesConfig
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS: ClassVar = [
        ScenesConfig(name="emoji", description="Scenes of emoji", kinds=tuple(KINDS)),
        ScenesConfig(name="stamps", description="Scenes of stamps", kinds=STAMP_KINDS),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list(self.builder_config.kinds)),
            "name": tfds.features.Text(),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "objects": tfds.features.Sequence(objects),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict:
        downloaded = str(dl_manager.download_dir)
        if self.builder_config.name == "stamps":
            stamps = tuxpaint.unpacked(os.path.join(downloaded, "tuxpaint_stamps"))
            cut_outs = {split: read_stamps(stamps, split) for split in _SCENES}
        else:
            folder = os.path.join(downloaded, "emoji")
            archives = {name: downloads.npm_package(f"emoji-datasource-{name}", _VERSION, folder) for name in DESIGNERS}
            cut_outs = {split: read_cut_outs(archives, split) for split in _SCENES}
        return {split: self._generate_examples(found, split) for split, found in cut_outs.items()}

    def _generate_examples(self, cut_outs: dict[str, list[CutOut]], split: str) -> Iterator[tuple[int, dict]]:
        for number in range(_SCENES[split]):
            yield number, compose(cut_outs, np.random.default_rng((split == "validation", number)))


def read_stamps(folder: Path, split: str) -> dict[str, list[CutOut]]:
    """Reads the stamps of a split that have no background. Returns a dict that maps each label in `STAMP_KINDS` to its
    stamps.

    Args:
      folder: folder of the stamps, as `tuxpaint_stamps_dataset_builder.unpacked` returns it.
      split: `train` or `validation`.
    """
    found: dict[str, list[CutOut]] = {label: [] for label in STAMP_KINDS}
    for stamp in tuxpaint.stamps(folder, split):
        if stamp.kind in found:
            picture = stamp.picture()
            if (np.asarray(picture.getchannel("A")) < _OPAQUE).mean() >= _CUT:
                picture.thumbnail((2 * _OBJECT_SIDES[1], 2 * _OBJECT_SIDES[1]))
                found[stamp.kind].append(CutOut(picture, stamp.name))
    return found


def read_cut_outs(archives: Mapping[str, str], split: str) -> dict[str, list[CutOut]]:
    """Reads the emoji of a split from the archives of the npm packages. Returns a dict that maps each label in `KINDS`
    to its emoji.

    Args:
      archives: maps the names in `DESIGNERS` to the paths of the emoji-datasource archives.
      split: `train` or `validation`.
    """
    found: dict[str, list[CutOut]] = {label: [] for label in KINDS}
    for designer, path in archives.items():
        with tarfile.open(path) as archive:
            files = {os.path.basename(member.name): member for member in archive if f"/{designer}/64/" in member.name}
            entries = json.loads(downloads.content(archive, "package/emoji.json"))
            for label, name, file in _images(entries, split):
                if file in files:
                    found[label].append(CutOut(_cut_out(downloads.content(archive, files[file])), name))
    return found


def _images(entries: Sequence[Mapping[str, Any]], split: str) -> Iterator[tuple[str, str, str]]:
    """Yields (label, emoji name, file name) for each emoji image of a split, including all skin tones.

    Args:
      entries: parsed emoji.json of an emoji-datasource package.
      split: `train` or `validation`.
    """
    for label, prefixes in KINDS.items():
        there = sorted((one for one in entries if one["subcategory"].startswith(prefixes)), key=_order)
        there = [one for one in there if _name(one) not in _NO_VEHICLES]
        for number, entry in enumerate(there):
            if (number % _EVERY == _EVERY - 1) == (split == "validation"):
                for form in (entry, *entry.get("skin_variations", {}).values()):
                    yield label, _name(entry), form["image"]


def _name(entry: Mapping[str, Any]) -> str:
    return (entry["name"] or entry["short_name"]).lower()


def _order(entry: Mapping[str, Any]) -> int:
    return entry["sort_order"]


def _cut_out(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def compose(cut_outs: Mapping[str, Sequence[CutOut]], rng: np.random.Generator) -> dict[str, Any]:
    """Composes a random scene of objects on a gradient. Returns an example of the data set, a dict of `image`,
    `objects` (list of dicts with `bbox`, `label` and `name`), `mask` and `caption`.

    Args:
      cut_outs: maps each label to its objects, at least one.
      rng: random generator.
    """
    width, height = (int(side) for side in rng.integers(_SIDES[0], _SIDES[1] + 1, 2))
    scene = _gradient(width, height, rng)
    mask = np.zeros((height, width), np.uint8)
    count = 0 if rng.random() < 1 / 16 else int(rng.integers(1, _MOST + 1))
    placed: list[tuple[str, str]] = []
    areas: list[int] = []
    for _ in range(count):
        label = list(cut_outs)[int(rng.integers(len(cut_outs)))]
        chosen = cut_outs[label][int(rng.integers(len(cut_outs[label])))]
        picture = _resized(chosen.picture, rng)
        left, upper = (int(rng.integers(0, room + 1)) for room in (width - picture.width, height - picture.height))
        covered = mask.copy()
        region = covered[upper : upper + picture.height, left : left + picture.width]
        region[np.asarray(picture.getchannel("A")) >= _OPAQUE] = len(placed) + 1
        counts = np.bincount(covered.ravel(), minlength=len(areas) + 2)[1:]
        if counts[-1] and (counts[:-1] >= _VISIBLE * np.array(areas)).all():
            scene.paste(picture, (left, upper), picture)
            mask = covered
            placed.append((label, chosen.name))
            areas.append(int(counts[-1]))
    objects = [
        {"bbox": _box(mask == number), "label": label, "name": name} for number, (label, name) in enumerate(placed, 1)
    ]
    return {"image": scene, "objects": objects, "mask": Image.fromarray(mask), "caption": caption_of(objects)}


def caption_of(objects: Sequence[Mapping[str, Any]]) -> str:
    """Describes where each object of a scene is in relation to the next one. A scene without objects has the caption
    "nothing".
    """
    if len(objects) < 2:
        return objects[0]["name"] if objects else "nothing"
    return ", ".join(
        f"{one['name']} {_relation(one['bbox'], other['bbox'])} {other['name']}"
        for one, other in itertools.pairwise(objects)
    )


def _relation(one: tfds.features.BBox, other: tfds.features.BBox) -> str:
    """Returns where a box is in relation to another, along the axis on which their centers are farther apart."""
    right = (one.xmin + one.xmax) - (other.xmin + other.xmax)
    below = (one.ymin + one.ymax) - (other.ymin + other.ymax)
    if abs(right) >= abs(below):
        return "right of" if right > 0 else "left of"
    return "below" if below > 0 else "above"


def _resized(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Resizes a picture to a random size, so that the length of its longer side is within `_OBJECT_SIDES`, and mirrors
    it with probability 0.5.
    """
    factor = rng.uniform(*_OBJECT_SIDES) / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return ImageOps.mirror(picture) if rng.random() < 0.5 else picture


def _gradient(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Returns a random background: a color gradient in a random direction, with some noise."""
    first, last = rng.uniform(0, 255, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height)[:, None]
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    colors = first + (last - first) * share + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))


def _box(visible: np.ndarray) -> tfds.features.BBox:
    """Returns the bounding box of an object. `visible` is whether each pixel belongs to the object, bool [height,
    width].
    """
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    height, width = visible.shape
    return tfds.features.BBox(
        ymin=float(rows[0] / height),
        xmin=float(columns[0] / width),
        ymax=float((rows[-1] + 1) / height),
        xmax=float((columns[-1] + 1) / width),
    )
