import pytest

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets.debian_descriptions import debian_descriptions_dataset_builder as descriptions
from jaxformer.datasets.debian_questions import debian_questions_dataset_builder as questions


def example(
    package="macaroon", summary="macaroon Library for python", description="A Python library, python for Macaroons."
):
    return {"package": package, "summary": summary, "description": description}


def test_answers_are_all_occurrences_of_the_word_in_the_context():
    found = [questions._question(example(package=f"p{number}")) for number in range(20)]
    asked = {one["question"]: one["answers"] for one in found}
    assert asked.keys() == {"macaroon Library for _"}, "Macaroons is another word, and library a common one"
    (answers,) = asked.values()
    assert answers == {"text": ["Python", "python"], "answer_start": [2, 18]}
    for one in found:
        for text, start in zip(one["answers"]["text"], one["answers"]["answer_start"], strict=True):
            assert one["context"][start : start + len(text)] == text


def test_the_word_depends_on_the_package_alone():
    words = {
        questions._question(example(f"p{n}", "fast viewer of maps", "A viewer. Of maps; fast!"))["question"]
        for n in range(40)
    }
    assert words == {"_ viewer of maps", "fast _ of maps", "fast viewer of _"}
    assert questions._question(example()) == questions._question(example())


@pytest.mark.parametrize(
    "summary, description",
    [("a library for your", "Your library, for a"), ("viewer", "It shows."), ("map viewer", "viewer " * 200)],
)
def test_what_gives_no_question(summary, description):
    assert questions._question(example(summary=summary, description=description)) is None


def test_it_is_prepared_with_the_columns_of_squad(monkeypatch, tmp_path):
    splits = {"train": [example(f"p{n}") for n in range(3)], "validation": [example("q")], "test": [example("r")]}
    monkeypatch.setattr(descriptions, "summaries", lambda folder: splits)
    read = Tfds("debian_questions", "train", str(tmp_path)).open()
    assert len(read) == 3
    assert list(read[0]["answers"]["text"]) == ["Python", "python"]
    assert [int(start) for start in read[0]["answers"]["answer_start"]] == [2, 18]
    assert read[0]["question"] == "macaroon Library for _" and read[0]["context"].startswith("A Python")
