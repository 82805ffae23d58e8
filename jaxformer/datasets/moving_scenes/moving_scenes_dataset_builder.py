"""Moving scenes data set: clips of an emoji that moves, grows or shrinks, and turns on a gradient."""

import dataclasses
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxformer.datasets import downloads
from jaxformer.datasets.emoji.emoji_dataset_builder import images

_DESCRIPTION = """
Clips of 16 frames of 64 × 64 pixels. One emoji moves to the left, to the right, up or down. Meanwhile it grows, shrinks
or keeps its size, and turns clockwise, counterclockwise or not at all. One or two other emoji do not move. The
background is a gradient. `motion` combines the three labels `direction`, `growth` and `rotation`; `object` is the
category of the moving emoji and `name` its name.

The emoji are cut out of the npm package emoji-datasource-google, version 16.0.0: animals, food, places and objects.
Every tenth name of a category is held out, so the validation split contains no emoji of the training split. Clip n
depends only on the split and on n.

Clips are animated WebP images without loss. The emoji (Noto) are under the Apache License 2.0, and the data about them
is under the MIT licence.
"""

DIRECTIONS = ("left", "right", "up", "down")
GROWTHS = ("grows", "shrinks", "same size")
ROTATIONS = ("clockwise", "counterclockwise", "no turn")
MOTIONS = tuple(", ".join(parts) for parts in itertools.product(DIRECTIONS, GROWTHS, ROTATIONS))
"""Label names of `motion`: all combinations of direction, growth and rotation."""
OBJECTS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects")
"""Label names of `object`: the categories of emoji that are used. Symbols are left out, because a turn does not change
the look of many symbols."""
_VERSION = "16.0.0"
_CLIPS = {"train": 4000, "validation": 400}
_SIZE, _FRAMES, _MILLISECONDS = 64, 16, 60
_SIDES, _STILL_SIDES = (16, 22), (10, 16)
"""Minimum and maximum length in pixels of the longer side of a moving emoji at its smallest, and of the others."""
_SHIFT, _FACTOR, _DEGREES = (22, 32), (1.5, 1.9), (60, 150)
"""Minimum and maximum of the distance in pixels, of the growth and of the angle over a whole clip."""


@dataclasses.dataclass(frozen=True)
class CutOut:
    """An emoji that scenes are composed of."""

    picture: Image.Image
    """Image with an alpha channel, cropped to its visible part."""
    name: str
    category: str

    def placed(self, side: float, degrees: float) -> Image.Image:
        """Returns the picture with a longer side of `side` pixels, turned clockwise by some degrees."""
        scale = side / max(self.picture.size)
        width, height = (max(1, round(length * scale)) for length in self.picture.size)
        return self.picture.resize((width, height)).rotate(-degrees, Image.Resampling.BICUBIC, expand=True)


@dataclasses.dataclass(frozen=True)
class Motion:
    """How an emoji moves during a clip."""

    start: np.ndarray
    """Centre in the first frame, (x, y)."""
    shift: np.ndarray
    """Vector from the centre in the first frame to the centre in the last frame."""
    side: float
    """Length of the longer side in the first frame, in pixels."""
    factor: float
    """Length in the last frame, divided by the length in the first frame."""
    degrees: float
    """Angle between the first and the last frame, clockwise."""

    def paste(self, scene: Image.Image, emoji: CutOut, time: float) -> None:
        """Draws an emoji into a frame. `time` is from 0 (first frame) to 1 (last frame)."""
        picture = emoji.placed(self.side * self.factor**time, self.degrees * time)
        x, y = self.start + time * self.shift - np.array(picture.size) / 2
        scene.paste(picture, (round(x), round(y)), picture)


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the moving scenes data set. `_DESCRIPTION` describes the data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            "motion": MOTIONS,
            "direction": DIRECTIONS,
            "growth": GROWTHS,
            "rotation": ROTATIONS,
            "object": OBJECTS,
        }
        features = {
            "clip": tfds.features.Tensor(shape=(), dtype=np.object_),
            **{name: tfds.features.ClassLabel(names=list(names)) for name, names in labels.items()},
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "emoji")
        path = downloads.npm_package("emoji-datasource-google", _VERSION, folder)
        return {split: self._generate_examples(path, split) for split in _CLIPS}

    def _generate_examples(self, path: str, split: str) -> Iterator[tuple[int, dict]]:
        emoji = cut_outs(path, split)
        for number in range(_CLIPS[split]):
            yield number, scene(emoji, np.random.default_rng((list(_CLIPS).index(split), number)))


def cut_outs(path: str, split: str) -> list[CutOut]:
    """Reads the emoji of a split from the archive of the npm package."""
    found = []
    with tarfile.open(path) as archive:
        files = {os.path.basename(member.name): member for member in archive if "/google/64/" in member.name}
        entries = json.loads(downloads.content(archive, "package/emoji.json"))
        for file, name, category in images(entries, split):
            if category in OBJECTS and file in files:
                with Image.open(io.BytesIO(downloads.content(archive, files[file]))) as image:
                    picture = image.convert("RGBA")
                found.append(CutOut(picture.crop(picture.getchannel("A").getbbox()), name, category))
    return found


def scene(emoji: Sequence[CutOut], rng: np.random.Generator) -> dict:
    """Makes one clip with its labels."""
    chosen = [emoji[index] for index in rng.choice(len(emoji), 1 + int(rng.integers(1, 3)), replace=False)]
    direction, growth, rotation = (int(rng.integers(len(names))) for names in (DIRECTIONS, GROWTHS, ROTATIONS))
    background = gradient(rng)
    for still in chosen[1:]:
        motion = Motion(rng.uniform(8, _SIZE - 8, 2), np.zeros(2), rng.uniform(*_STILL_SIDES), 1.0, 0.0)
        motion.paste(background, still, 0.0)
    motion, frames = motion_of(direction, growth, rotation, rng), []
    for frame in range(_FRAMES):
        frames.append(background.copy())
        motion.paste(frames[-1], chosen[0], frame / (_FRAMES - 1))
    return {
        "clip": animation(frames),
        "motion": (direction * len(GROWTHS) + growth) * len(ROTATIONS) + rotation,
        "direction": direction,
        "growth": growth,
        "rotation": rotation,
        "object": OBJECTS.index(chosen[0].category),
        "name": chosen[0].name,
    }


def motion_of(direction: int, growth: int, rotation: int, rng: np.random.Generator) -> Motion:
    """Draws how the emoji moves, so that it stays in the frame. The arguments are indices of labels."""
    unit = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)][direction])
    shift = rng.uniform(*_SHIFT) * unit
    factor = (rng.uniform(*_FACTOR), 1 / rng.uniform(*_FACTOR), 1.0)[growth]
    degrees = rng.uniform(*_DEGREES) * (1, -1, 0)[rotation]
    side = rng.uniform(*_SIDES) * max(1.0, 1 / factor)
    margin = side * max(1.0, factor) / 2
    low = margin + np.maximum(0, -shift)
    high = _SIZE - margin - np.maximum(0, shift)
    return Motion(rng.uniform(np.minimum(low, high), np.maximum(low, high)), shift, side, factor, degrees)


def gradient(rng: np.random.Generator) -> Image.Image:
    """Draws a background: a bilinear gradient between four colors."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    return corners.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, (0.5, 0.5, 1.5, 1.5))


def animation(frames: Sequence[Image.Image]) -> bytes:
    """Encodes frames as an animated WebP image without loss."""
    content = io.BytesIO()
    frames[0].save(
        content, "WEBP", save_all=True, append_images=frames[1:], duration=_MILLISECONDS, lossless=True, method=0
    )
    return content.getvalue()
