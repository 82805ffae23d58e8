"""Records that cannot be read: files cut short while they are open, and records that may be skipped."""

import json
import os

import pytest

from jaxformer.data.messages import tolerating
from jaxformer.data.pipeline.loader import Data, check_documents, train_batches
from jaxformer.data.sources.fingerprints import fingerprints
from jaxformer.data.sources.sources import JsonLines, TextFiles
from jaxformer.data.sources.tables import Csv
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError


def lines(count):
    return [json.dumps({"text": f"w{number} w{number + 1}"}).encode() for number in range(count)]


@pytest.fixture
def damaged(tmp_path):
    """A file of 20 records. Three of them are damaged."""
    content = lines(20)
    content[4], content[11], content[15] = b'{"text": "w4', b'{"text": "w\xff"}', b'{"text": 7}'
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(content) + b"\n")
    return path


def read(data, tokenizer, count=60):
    check_documents(data)
    with train_batches(data, tokenizer, 0, range(2)) as batches:
        return [next(batches)[0]["tokens"].tolist() for _ in range(count)]


@pytest.mark.parametrize("settings", [(TextFiles, {"documents": "line"}), (JsonLines, {})])
def test_a_file_that_is_cut_while_it_is_open_is_named_by_file_and_place(settings, tokenizer, tmp_path):
    """A memory map would end the process with SIGBUS."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(lines(2000)) + b"\n")
    source, fields = settings
    data = Data(source((str(path),), **fields), NextToken(16), 2, prefetch=1)
    batches = train_batches(data, tokenizer, 0, range(2))
    os.truncate(path, 10_000)
    with batches, pytest.raises(InputError) as caught:
        for _ in range(2000):
            next(batches)
    assert str(caught.value).startswith(f"{path}: byte ")
    assert f"{path}: has been cut from " in str(caught.value) and "to 10,000 bytes since it was opened" in str(
        caught.value
    )


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "pipe.gz"):
        os.path.exists(tmp_path / name) or os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: not a regular file; give the path of a readable file"):
            TextFiles((str(tmp_path / name),)).open()


def test_bad_records_are_skipped_up_to_a_number(damaged, tokenizer, tmp_path, capfd):
    def data(count):
        return Data(JsonLines((str(damaged),)), NextToken(16), 2, skip_bad_records=count)

    good = read(data(3), tokenizer)
    said = capfd.readouterr().err
    for place in ("line 5", "line 12", "line 16"):
        assert f"note: {damaged}: {place}" in said or f"{damaged}: not UTF-8 at byte" in said
    assert read(data(3), tokenizer) == good, "what is skipped does not depend on the run"
    path = tmp_path / "without.jsonl"
    kept = [line for number, line in enumerate(lines(20)) if number not in (4, 11, 15)]
    path.write_bytes(b"\n".join(kept) + b"\n")
    whole = read(Data(JsonLines((str(path),)), NextToken(16), 2), tokenizer)
    assert {str(row) for batch in good for row in batch} == {str(row) for batch in whole for row in batch}
    for count in (0, 2):
        with pytest.raises(InputError) as caught:
            read(data(count), tokenizer)
        assert str(damaged) in str(caught.value) and "\n" not in str(caught.value)
        assert ("data.skip_bad_records=2" in str(caught.value)) == bool(count)


def test_the_tokenizer_and_the_fingerprint_skip_the_same_records(damaged, tmp_path):
    with tolerating(3):
        documents = JsonLines((str(damaged),)).open()
        assert len(documents) == 20 and fingerprints(documents, "data.train")["data.train"].documents == 20
        built = WordPiece(vocab=60).build(lambda: documents, str(tmp_path / "tokenizer"))
    assert built.vocab_size > 20


def test_rows_of_the_wrong_length_are_skipped_in_tables(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\nw1,a\nw2\nw3,b\n")
    with pytest.raises(InputError, match=r"train.csv: line 3 has 1 values; expected 2"):
        Csv((str(path),)).open()
    with tolerating(1):
        assert [row["text"] for row in Csv((str(path),)).open()] == ["w1", "w3"]
