"""A run knows its data: what has changed since it began is refused or recorded."""

import gzip
import json
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

import jaxformer as jf
from jaxformer import cli, digests
from jaxformer.data.pipeline import loader
from jaxformer.data.sources import fingerprints as module
from jaxformer.data.sources.fingerprints import fingerprints
from jaxformer.errors import InputError
from jaxformer.runs.data_record import DATA, read_record


def of(source, name="data.train"):
    """The fingerprints of a source."""
    return fingerprints(source.open(), name)


def change(source, alter):
    """The changes that are found after a function has altered the data of a source."""
    before = of(source)
    alter()
    now = of(source)
    assert before.keys() == now.keys()
    return [found for name in before if (found := before[name].change(now[name]))]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\nthree\n")
    return path


def test_a_file_that_has_not_changed_is_the_same_wherever_it_is_opened(text):
    assert change(jf.data.TextFiles((str(text),)), lambda: text.touch()) == []


def test_one_letter_that_was_edited_is_found(text):
    edited = change(jf.data.TextFiles((str(text),)), lambda: text.write_text("one\n\ntwo\n\nthrew\n"))
    assert edited == [f"was edited: {text} has changed"]


def test_a_source_that_has_grown_or_shrunk_is_found(text):
    source = jf.data.TextFiles((str(text.parent / "*.txt"),))
    more = text.parent / "b.txt"
    assert change(source, lambda: more.write_text("four\n")) == [f"has grown from 3 to 4 documents: {more} is new"]
    assert change(source, more.unlink) == [f"has shrunk from 4 to 3 documents: {more} is gone"]


def test_every_byte_of_tables_json_lines_and_pairs_counts(tmp_path):
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl.gz"
    table.write_text("text,label\na,b\n")
    assert change(jf.data.Csv((str(table),)), lambda: table.write_text("text,label\na,c\n"))
    lines.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert change(jf.data.JsonLines((str(lines),)), lambda: lines.write_bytes(gzip.compress(b'{"text": "b"}\n')))
    ours, theirs = tmp_path / "en", tmp_path / "de"
    ours.write_text("a\n"), theirs.write_text("b\n")
    assert change(jf.data.ParallelFiles(str(ours), str(theirs)), lambda: theirs.write_text("c\n"))
    renamed = jf.data.Columns(jf.data.ParallelFiles(str(ours), str(theirs)))
    assert change(renamed, lambda: theirs.write_text("d\n")) == [f"was edited: {theirs} has changed"]


def test_the_pictures_of_folders_count_and_their_place_does_not(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "a" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a" / label / "1.png")
    moved = shutil.copytree(tmp_path / "a", tmp_path / "b")
    sources = [jf.data.ImageFolders(str(folder)) for folder in (tmp_path / "a", moved)]
    assert of(sources[0]) == of(sources[1])
    white = Image.fromarray(np.full((4, 4, 3), 255, np.uint8))
    assert change(sources[1], lambda: white.save(moved / "dog" / "1.png")) == ["was edited"]


def test_each_component_of_a_mixture_is_named(text):
    other = text.parent / "other"
    other.write_text("more\n")
    source = jf.data.Mixture((jf.data.TextFiles((str(text),)), jf.data.TextFiles((str(other),))), (1.0, 2.0))
    found = of(source)
    assert len(found) == 2 and all(name.startswith("data.train: TextFiles(") for name in found)
    assert change(source, lambda: other.write_text("less\n")) == [f"was edited: {other} has changed"]


def test_a_sample_of_a_large_source_finds_many_edits_and_may_miss_few(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 50)
    documents = [{"text": f"document {number}"} for number in range(1000)]
    before = fingerprints(documents, "a")["a"]
    for number in range(0, 1000, 10):
        documents[number] = {"text": "edited"}
    assert before.change(fingerprints(documents, "a")["a"]) == "was edited"
    assert before.change(fingerprints(documents[1:], "a")["a"]) == "has shrunk from 1,000 to 999 documents"


def test_values_of_different_types_differ():
    values = [
        {"a": 1},
        {"a": "1"},
        {"a": b"1"},
        {"a": [1]},
        {"a": np.ones(1)},
        {"a": np.ones((1, 1))},
        {"b": 1},
        {"a": None},
    ]
    assert len({json.dumps(fingerprints([value], "a")["a"].digests) for value in values}) == len(values)


@pytest.mark.slow
def test_changed_data_is_refused_or_accepted_and_recorded(tiny_config, tmp_path, capsys):
    shutil.copytree(tiny_config.parent, tmp_path, dirs_exist_ok=True)
    config, train = tiny.write_corpus(tmp_path), tmp_path / "train.txt"
    folder = tmp_path / "run"
    flags = ["--evaluation.every", "100", "--data.pack", "True", "--data.task.examples_per_row", "4"]

    def run(*more):
        return cli.main(["train", str(config), *flags, "--workdir", str(folder), *more])

    assert run("--steps", "4") == 0
    before = read_record(folder)
    assert set(before.sources) == {"data.train", "data.validation", "tokenizer"}
    assert before.sources["data.train"].documents == 200 and before.accepted == ()
    content = train.read_text()
    train.write_text(content[: len(content) // 2])
    kept = (folder / DATA).read_bytes()
    capsys.readouterr()
    assert run("--steps", "8") == 2
    line = capsys.readouterr().err
    assert (
        line.startswith(f"jaxformer: --workdir {folder}: data.train has shrunk from 200 to ") and line.count("\n") == 1
    )
    assert f"{train} has changed since the run began" in line and "--accept-changed-data" in line
    assert (folder / DATA).read_bytes() == kept
    assert run("--steps", "8", "--accept-changed-data") == 0
    assert "accepted: data.train has shrunk" in capsys.readouterr().out
    now = read_record(folder)
    assert now.changed_at == 4 and len(now.accepted) == 1 and run("--steps", "9") == 0
    (folder / DATA).write_text((folder / DATA).read_text().replace('"changed_at": 4', '"changed_at": 5'))
    assert run("--steps", "10") == 2 and f"{folder / DATA}: damaged" in capsys.readouterr().err
    (folder / DATA).unlink()
    assert run("--steps", "10") == 0 and f"{folder / DATA} is missing" in capsys.readouterr().out


def test_lanes_go_to_their_next_visits(tiny_config):
    data = tiny.load(tiny_config, data__pack=True).data
    state = loader.initial_state(data)
    state[:, :2] = [[7, 3]]
    state[:, 2:] += 5
    found = loader.abandon_documents(data, state)
    assert found[:, :2].tolist() == [[7, 3]] * data.batch
    assert (found[:, 2:] == loader.initial_state(data)[:, 2:]).all() and (state[:, 2:] >= 4).all()


def test_a_record_that_was_changed_is_refused(tmp_path):
    (tmp_path / DATA).write_text(digests.seal("{\n}\n") + " ")
    with pytest.raises(InputError, match=r"data.json: damaged"):
        read_record(tmp_path)
