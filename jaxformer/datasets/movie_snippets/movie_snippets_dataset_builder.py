"""Movie snippets data set: snippets of movie reviews with average human ratings and sentiment labels."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from jaxformer.datasets import downloads

_DESCRIPTION = """
Sentences of movie reviews from rotten.tomatoes.com (Pang & Lee 2004), each with the average of at least twenty human
ratings from -4 to 4 (Hutto & Gilbert 2014), from the source archive of the Python package vaderSentiment 3.3.2.

The label is positive if the average is above 0 and negative if it is below 0. 37 snippets with an average of exactly 0
are left out, which leaves 10,566. Ten percent of the snippets are for validation and ten percent for testing, chosen by
a digest of their letters.

The ratings are under the MIT licence.
"""

_FILE = "movieReviewSnippets_GroundTruth.txt"
LABELS = ("negative", "positive")


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the movie snippets data set. The module's `_DESCRIPTION` describes its content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                    "rating": tfds.features.Scalar(np.float32),
                }
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "movie_snippets")
        splits: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
        for example in _examples(_read(downloads.package("vaderSentiment", "3.3.2", folder, ".tar.gz"))):
            splits[_split_of(example["text"])].append(example)
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(examples)


def _read(archive: str) -> str:
    """Returns the content of the snippets file, which is in a tar archive inside the archive of the Python package
    vaderSentiment.

    Args:
      archive: path of the package archive.
    """
    with tarfile.open(archive) as package:
        [inner] = [name for name in package.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz")]
        with tarfile.open(fileobj=io.BytesIO(downloads.read_member(package, inner))) as files:
            [name] = [name for name in files.getnames() if name.endswith("/" + _FILE)]
            return downloads.read_member(files, name).decode()


def _examples(text: str) -> Iterator[dict]:
    seen = set()
    for line in text.splitlines():
        if line.strip():
            _, rating, snippet = line.split("\t")
            rating, letters = float(rating), _letters(snippet)
            if rating and letters not in seen:
                seen.add(letters)
                yield {"text": snippet.strip(), "label": LABELS[int(rating > 0)], "rating": rating}


def _split_of(text: str) -> str:
    number = int.from_bytes(hashlib.sha256(_letters(text).encode()).digest()[:4], "big") % 10
    return {0: "validation", 1: "test"}.get(number, "train")


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text.lower())
