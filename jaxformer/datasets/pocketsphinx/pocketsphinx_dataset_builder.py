"""Pocketsphinx data set: ten short speech recordings with transcripts, to test speech recognizers."""

import os
import re

import tensorflow_datasets as tfds

from jaxformer.datasets.debian_packages import package_folder
from jaxformer.datasets.recordings import RecordingsBuilder

_DESCRIPTION = """
Recordings from the Debian package pocketsphinx-testdata, which is downloaded with apt and unpacked, but not installed:
five sentences of Jane Austen's "Sense and Sensibility", read for LibriVox, and five names of playing cards. They have
16,000 samples per second. The transcripts are in lower case, without punctuation, and have a few mistakes. All
recordings are in the split `test`.

The package is under the BSD 2-clause license.
"""

_DATA = "usr/share/pocketsphinx/test/data"
_SETS = (("librivox", "transcription"), ("cards", "cards.transcription"))
_LINE = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.+)\)")


class Builder(RecordingsBuilder):
    """TFDS builder of the Pocketsphinx data set. The module's `_DESCRIPTION` describes its content."""

    DESCRIPTION = _DESCRIPTION
    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(os.path.abspath(str(dl_manager.download_dir)), "pocketsphinx")
        return {"test": self._generate_examples(recordings(folder))}


def recordings(folder: str) -> list[dict[str, str]]:
    """Downloads the recordings, and returns a dict for each: `name`, `text` (the transcript) and `path` (of the sound
    file). The first five are sentences of a novel, the others are names of playing cards.

    Args:
      folder: folder to which the Debian package is downloaded.

    Raises:
      InputError: If the package cannot be downloaded.
    """
    home, found = os.path.join(package_folder("pocketsphinx-testdata", folder), _DATA), []
    for part, listing in _SETS:
        with open(os.path.join(home, part, listing), encoding="utf-8") as file:
            matches = [_LINE.fullmatch(line.strip()) for line in file if line.strip()]
        for match in filter(None, matches):
            text, name = match.groups()
            found.append({"name": f"{part}/{name}", "text": text, "path": os.path.join(home, part, f"{name}.wav")})
    return found
