"""Emoji data set: images of emoji, 64 × 64 pixels, with their names and categories."""

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from jaxformer.datasets import downloads

_DESCRIPTION = """
Emoji on a white background, 64 × 64 pixels, each with its name and one of nine categories, from the npm packages
emoji-datasource-google and emoji-datasource-twitter, version 16.0.0. `emoji/google` and `emoji/twitter` contain the
emoji of one designer, and `emoji/all` those of both. `emoji/plain` contains those of both without the other skin tones:
two images per name instead of up to 52, so that people are not most of the images.

Every tenth name of a category is held out. All skin tones of an emoji by both designers are in the same split.

The Google images (Noto) are under the Apache License 2.0, the Twitter images (Twemoji) under CC-BY 4.0, and the data
about them is under the MIT licence.
"""

CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
"""Class names: the Unicode categories of emoji, except for the category that contains only skin tones."""
_VERSION, _SIZE, _EVERY = "16.0.0", 64, 10


@dataclasses.dataclass
class EmojiConfig(tfds.core.BuilderConfig):
    """TFDS config of the emoji data set, which selects the designers of its images."""

    designers: tuple[str, ...] = ()
    """Designers whose images are included, `google` or `twitter`, as in the names of the npm packages
    emoji-datasource-DESIGNER.
    """
    tones: bool = True
    """Whether emoji of people are included in all skin tones, or only in the default one."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the emoji data set. The module's `_DESCRIPTION` describes its content and splits."""

    builder_config: EmojiConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        EmojiConfig(name="all", description="By Google and Twitter", designers=("google", "twitter")),
        EmojiConfig(name="google", description="By Google", designers=("google",)),
        EmojiConfig(name="twitter", description="By Twitter", designers=("twitter",)),
        EmojiConfig(name="plain", description="In the default skin tone", designers=("google", "twitter"), tones=False),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(shape=(_SIZE, _SIZE, 3)),
            "label": tfds.features.ClassLabel(names=list(CATEGORIES)),
            "name": text,
            "designer": text,
        }
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "emoji")
        archives = {
            designer: downloads.npm_package(f"emoji-datasource-{designer}", _VERSION, folder)
            for designer in self.builder_config.designers
        }
        return {split: self._generate_examples(archives, split) for split in ("train", "validation")}

    def _generate_examples(self, archives: Mapping[str, str], split: str) -> Iterator[tuple[str, dict]]:
        for designer, path in archives.items():
            with tarfile.open(path) as archive:
                files = {
                    os.path.basename(member.name): member for member in archive if f"/{designer}/64/" in member.name
                }
                entries = json.loads(downloads.content(archive, "package/emoji.json"))
                for file, name, category in images(entries, split, self.builder_config.tones):
                    if file in files:
                        pixels = on_white(downloads.content(archive, files[file]))
                        example = {"image": pixels, "label": category, "name": name, "designer": designer}
                        yield f"{designer}/{file}", example


def images(entries: list[dict], split: str, tones: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yields (file name, emoji name, category) for each emoji image of a split.

    Args:
      entries: parsed emoji.json of an emoji-datasource package.
      split: `train` or `validation`.
      tones: whether to include all skin tones, or only the default one.
    """
    for category in CATEGORIES:
        there = sorted((entry for entry in entries if entry["category"] == category), key=lambda e: e["sort_order"])
        for number, entry in enumerate(there):
            if (number % _EVERY == _EVERY - 1) == (split == "validation"):
                others = entry.get("skin_variations", {}).values() if tones else ()
                for form in (entry, *others):
                    yield form["image"], (entry["name"] or entry["short_name"]).lower(), category


def on_white(data: bytes) -> Image.Image:
    """Decodes an image file, resizes it to 64 × 64 pixels, and puts it on a white background.

    The result is a Pillow image rather than an array, because TFDS would need TensorFlow to encode an array.
    """
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGBA").resize((_SIZE, _SIZE))
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
