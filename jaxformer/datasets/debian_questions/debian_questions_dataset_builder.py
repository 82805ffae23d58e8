"""Debian questions data set: cloze questions about package descriptions. A question is the summary of a package with a
missing word, and the answer is the place of that word in the description.
"""

import hashlib
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from jaxformer.datasets.debian_descriptions import debian_descriptions_dataset_builder as descriptions

_DESCRIPTION = """
Questions whose answers are words of a text. They are made by the method of Hermann et al. 2015, who used news articles
and their highlights: a word of a package summary is replaced by an underscore, and the answer is in the long
description of the package. The columns are those of SQuAD. Every occurrence of the word in the text is an answer.

The word is chosen by a digest of the package name. The candidates are the words of the summary that have at least four
letters, also occur in the description (ignoring case), and are not among a few very common words. Some of the questions
can be answered without reading the description, and some cannot be answered with certainty, even by humans.

The texts and their splits are those of `debian_descriptions/summaries`; see there for their origin. All packages of a
source are in the same split.
"""

BLANK = "_"
"""Text that replaces the missing word in a question."""

_WORD = re.compile(r"[^\W\d_][\w+-]{2,}\w")
_COMMON = {"also", "based", "from", "have", "into", "library", "package", "provides", "that", "their"}
_COMMON |= {"this", "using", "which", "with", "your"}
_LONGEST = 1000  # Maximum number of characters in a description.


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the cloze questions. The module's `_DESCRIPTION` describes their content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text, sequence = tfds.features.Text(), tfds.features.Sequence
        answers = sequence({"text": text, "answer_start": tfds.features.Scalar(np.int32)})
        columns = {"package": text, "question": text, "context": text, "answers": answers}
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(columns)
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(os.path.abspath(str(dl_manager.download_dir)), "debian_descriptions")
        splits = descriptions.summaries(folder)
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(filter(None, map(_question, examples)))


def _question(example: dict) -> dict | None:
    """Makes a cloze question from a package description and its summary: replaces a word of the summary that also
    occurs in the description by a blank.

    Args:
      example: dict with `package`, `description` and `summary`.

    Returns:
      Dict with the columns `package`, `question`, `context` and `answers`, as in SQuAD. None if the description is too
      long or has no suitable word in common with the summary.
    """
    summary, context = example["summary"], example["description"]
    found: dict[str, list[re.Match]] = {}
    for word in _WORD.finditer(context):
        found.setdefault(word[0].lower(), []).append(word)
    words = [word for word in _WORD.finditer(summary) if word[0].lower() in found and word[0].lower() not in _COMMON]
    if not words or len(context) > _LONGEST:
        return None
    digest = hashlib.sha256(example["package"].encode()).digest()
    word = words[int.from_bytes(digest[:4], "big") % len(words)]
    places = found[word[0].lower()]
    answers = {"text": [place[0] for place in places], "answer_start": [place.start() for place in places]}
    question = summary[: word.start()] + BLANK + summary[word.end() :]
    return {"package": example["package"], "question": question, "context": context, "answers": answers}
