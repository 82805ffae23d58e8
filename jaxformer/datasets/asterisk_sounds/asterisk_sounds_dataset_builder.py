"""Asterisk sounds data set: voice prompts of the telephone system Asterisk, with transcripts, in five languages."""

import glob
import gzip
import hashlib
import os
import re
from typing import Any

import tensorflow_datasets as tfds

from jaxformer.datasets.debian_packages import package_folder
from jaxformer.datasets.recordings import RecordingsBuilder
from jaxformer.errors import InputError

_DESCRIPTION = """
Prompts of the telephone system Asterisk, such as "Please enter your password followed by the pound key.", each spoken
by one professional speaker per language, from the Debian packages asterisk-core-sounds-LANGUAGE-wav. The transcripts
are those of the packages asterisk-core-sounds-LANGUAGE. Both are downloaded with apt and unpacked, but not installed.

The sounds have 8,000 samples per second. Prompts without a transcript, and tones, whose description is in brackets, are
left out. A tenth of the texts, chosen by a digest, is held out, so that no text is in both splits.

The sounds are under the Creative Commons license CC BY-SA 3.0.
"""

LANGUAGES = ("en", "fr", "es", "it", "ru")
"""Codes of the languages. Each is the name of a TFDS config of the data set, such as `asterisk_sounds/en`."""
_EVERY = 10


class Builder(RecordingsBuilder):
    """TFDS builder of the Asterisk sounds data set. The module's `_DESCRIPTION` describes its content and splits."""

    DESCRIPTION = _DESCRIPTION
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=language, description=f"Prompts in {language}") for language in LANGUAGES
    ]

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(os.path.abspath(str(dl_manager.download_dir)), "asterisk_sounds")
        config: Any = self.builder_config
        examples = prompts(config.name, folder)
        return {
            "train": self._generate_examples([one for one in examples if not held_out(one["text"])]),
            "validation": self._generate_examples([one for one in examples if held_out(one["text"])]),
        }


def prompts(language: str, folder: str) -> list[dict[str, str]]:
    """Downloads the voice prompts of a language, and returns a dict for each, sorted by name: `name`, `text` (the
    transcript) and `path` (of the sound file).

    Args:
      language: code of the language.
      folder: folder to which the Debian packages are downloaded.

    Raises:
      InputError: If the packages cannot be downloaded, or do not contain the expected files.
    """
    packages = [package_folder(f"asterisk-core-sounds-{language}{ending}", folder) for ending in ("", "-wav")]
    lists = glob.glob(os.path.join(packages[0], "usr/share/doc/*/core-sounds-*.txt.gz"))
    homes = glob.glob(os.path.join(packages[1], "usr/share/asterisk/sounds/*/"))
    if len(lists) != 1 or len(homes) != 1:
        raise InputError(f"asterisk-core-sounds-{language}: the package has another layout than version 1.6.1")
    with gzip.open(lists[0], "rt", encoding="utf-8-sig") as file:
        texts = transcripts(file.read())
    found = []
    for name, text in sorted(texts.items()):
        path = os.path.join(homes[0], f"{name}.wav")
        if os.path.isfile(path) and os.path.getsize(path):
            found.append({"name": name, "text": text, "path": path})
    return found


def transcripts(listing: str) -> dict[str, str]:
    """Parses a list of transcripts, and returns a dict that maps the names of prompts to transcripts.

    Args:
      listing: text with a line `NAME: TEXT` per prompt. Comments and descriptions of tones are left out.
    """
    found = {}
    for line in listing.splitlines():
        name, colon, text = line.partition(":")
        text = re.sub(r"\s+", " ", text).strip()
        if colon and text and not line.startswith(";") and text[0] not in "[(<":
            found[name.strip()] = text
    return found


def held_out(text: str) -> bool:
    """Returns whether a transcript belongs to the validation split, as determined by a digest of its words. Case and
    punctuation are ignored, so that similar transcripts are in the same split.
    """
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % _EVERY == 0
