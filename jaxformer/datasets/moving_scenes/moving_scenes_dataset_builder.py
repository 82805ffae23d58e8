"""Moving scenes data set: synthetic clips of an emoji that moves, changes its size and turns in front of a color
gradient.
"""

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
"""Class names of the label `motion`: all combinations of a direction, a growth and a rotation."""
OBJECTS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects")
"""Class names of the label `object`: the categories of the emoji in the clips. The category of symbols is not used,
because many symbols look the same after a rotation.
"""
_VERSION = "16.0.0"
_CLIPS = {"train": 4000, "validation": 400}
_SIZE, _FRAMES, _MILLISECONDS = 64, 16, 60
_SIDES, _STILL_SIDES = (16, 22), (10, 16)
"""Minimum and maximum length in pixels of the longer side of an emoji: of the moving emoji when it is smallest
(_SIDES), and of the emoji that do not move (_STILL_SIDES).
"""
_SHIFT, _FACTOR, _DEGREES = (22, 32), (1.5, 1.9), (60, 150)
"""Minimum and maximum change of the moving emoji from the first to the last frame: distance in pixels (_SHIFT), size
factor if it grows (_FACTOR), and angle in degrees if it turns (_DEGREES).
"""


@dataclasses.dataclass(frozen=True)
class CutOut:
    """An emoji without its background, to be placed in clips."""

    picture: Image.Image
    """Image with an alpha channel, cropped to its visible pixels."""
    name: str
    category: str

    def placed(self, side: float, degrees: float) -> Image.Image:
        """Returns the picture, resized so that its longer side has `side` pixels, and turned clockwise by `degrees`."""
        scale = side / max(self.picture.size)
        width, height = (max(1, round(length * scale)) for length in self.picture.size)
        return self.picture.resize((width, height)).rotate(-degrees, Image.Resampling.BICUBIC, expand=True)


@dataclasses.dataclass(frozen=True)
class Motion:
    """Movement, change of size and rotation of an emoji from the first to the last frame of a clip."""

    start: np.ndarray
    """Center of the emoji in the first frame, (x, y) in pixels."""
    shift: np.ndarray
    """Vector (x, y) in pixels from the emoji's center in the first frame to its center in the last frame."""
    side: float
    """Length of the emoji's longer side in the first frame, in pixels."""
    factor: float
    """Size of the emoji in the last frame, divided by its size in the first frame."""
    degrees: float
    """Clockwise rotation of the emoji from the first to the last frame, in degrees."""

    def paste(self, scene: Image.Image, emoji: CutOut, time: float) -> None:
        """Draws an emoji into a frame in place, at the position, size and rotation of a time between 0 (first frame)
        and 1 (last frame).
        """
        picture = emoji.placed(self.side * self.factor**time, self.degrees * time)
        x, y = self.start + time * self.shift - np.array(picture.size) / 2
        scene.paste(picture, (round(x), round(y)), picture)


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the moving scenes data set. The module's `_DESCRIPTION` describes its content and splits."""

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
    """Reads the emoji of a split from the archive of the npm package emoji-datasource-google at `path`."""
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
    """Makes a random clip. Returns an example of the data set, a dict of the encoded clip, its labels and the name of
    the moving emoji.

    Args:
      emoji: emoji to choose from at random.
      rng: random generator.
    """
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
    """Returns a random motion of the given kind that stays in the frame.

    Args:
      direction: index into `DIRECTIONS`.
      growth: index into `GROWTHS`.
      rotation: index into `ROTATIONS`.
      rng: random generator.
    """
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
    """Returns a random background: a bilinear gradient between four corner colors."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    return corners.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, (0.5, 0.5, 1.5, 1.5))


def animation(frames: Sequence[Image.Image]) -> bytes:
    """Encodes the frames of a clip as a lossless animated WebP image."""
    content = io.BytesIO()
    frames[0].save(
        content, "WEBP", save_all=True, append_images=frames[1:], duration=_MILLISECONDS, lossless=True, method=0
    )
    return content.getvalue()
