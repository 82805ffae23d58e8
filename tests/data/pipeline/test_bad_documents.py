"""A document that a task cannot read is named by its place: file and line, split and index."""

import json

import numpy as np
import pytest

from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline import loader
from jaxformer.data.pipeline.loader import Data, check_documents, train_batches
from jaxformer.data.sources.sources import Columns, Decoded, JsonLines, Mixture, TextFiles, located, place
from jaxformer.data.sources.tables import ClassFolders, Csv, Tsv
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.dialogue import Dialogue
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import SpanCorruption
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.errors import InputError

LABELS = ("no", "yes")
ANSWERS = {"text": ["w3"], "answer_start": [3]}
TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
TASKS = {
    "masked": (MaskedSentencePairs(16, 4), {"sentences": ["w1 w2", "w3"]}),
    "next token": (NextToken(16), {"text": "w1"}),
    "prefix": (PrefixLM(16), {"text": "w1 w2"}),
    "text to text": (TextToText(16, 16), {"inputs": "w1", "targets": "w2"}),
    "spans": (SpanCorruption(16), {"text": "w1 w2 w3"}),
    "multi-task": (MultiTask(SpanCorruption(16), TextToText(16, 16)), {"inputs": "w1", "targets": "w2"}),
    "label": (Classify(labels=LABELS), {"text": "w1", "label": "no"}),
    "labels of a pair": (
        Classify(pair="b", labels=LABELS, kind="multi_label"),
        {"text": "w1", "b": "w2", "label": ["no"]},
    ),
    "number": (Classify(labels=("score",), kind="regression"), {"text": "w1", "label": 2.5}),
    "tags": (TagTokens(LABELS), {"words": ["w1", "w2"], "tags": ["no", "yes"]}),
    "pairs": (TextPairs(), {"first": "w1", "second": "w2"}),
    "answers": (AnswerSpans(32, 8, 8), {"question": "w1", "context": "w2 w3", "answers": ANSWERS}),
    "dialogue": (Dialogue(64), {"messages": TURNS}),
    "image": (LabelledImages(ImageField(strict=True), labels=LABELS), {"image": "missing.png", "label": "no"}),
}
CASES = [(name, column) for name, (_, example) in TASKS.items() for column in example]


def bad_values(column, good):
    """JSON values that `column`, which holds `good`, cannot have."""
    yield from (None, {}, [None], [[]], "\ud83d", ["w1", "\udc00"], [{"role": "user", "content": None}], {"text": "w3"})
    if column not in ("label", "answers"):
        yield from (5, 2.5, True, [5, 6], [2.5])
    if column == "answers":
        for part, value in (("text", "w3"), ("text", [3]), ("text", ["\ud83d"]), ("text", []), ("answer_start", 3)):
            yield good | {part: value}
        yield from (good | {"answer_start": [value]} for value in (None, "3", 2.5, True, 99, -1))
    if column == "label":
        yield from ("perhaps", 1e400, float("nan"), -1, 7, True)


@pytest.mark.parametrize("name, column", CASES)
def test_a_wrong_type_is_named_by_file_and_line(name, column, tokenizer, sentinel_tokenizer, tmp_path):
    task, good = TASKS[name]
    path = tmp_path / "train.jsonl"
    tokenizer = sentinel_tokenizer if "spans" in name or "multi" in name else tokenizer
    for bad in bad_values(column, good[column]):
        if name == "number" and bad in (-1, 7):
            continue  # Numbers like others.
        path.write_text(f"\n{json.dumps(good)}\n{json.dumps(good | {column: bad})}\n")
        documents = JsonLines((str(path),)).open()
        with pytest.raises(InputError) as caught, located(documents, 1):
            task.encode(documents[1], tokenizer)
        assert str(caught.value).startswith(f"{path}: line 3: "), bad
        assert "\n" not in str(caught.value) and str(caught.value).encode(), bad
        if name != "image" or column == "label":
            with pytest.raises(InputError) as caught:
                check_documents(Data(JsonLines((str(path),)), task, 1))
            assert str(caught.value).startswith(f"{path}: line 3: "), bad


@pytest.mark.parametrize("name", TASKS)
def test_good_documents_pass(name, tmp_path):
    task, good = TASKS[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(good))
    check_documents(Data(JsonLines((str(tmp_path / "a.jsonl"),)), task, 1))


def test_ten_problems_are_listed_and_the_others_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": None if n % 2 else "w1"}) + "\n" for n in range(40)))
    with pytest.raises(InputError) as caught:
        check_documents(Data(JsonLines((str(path),)), NextToken(8), 1))
    problems = str(caught.value).split("; expected a text; the columns are 'text'; ")
    assert problems[0] == f"{path}: line 2: data.task.column='text': the column holds None"
    assert len(problems) == 11 and problems[-1] == "and 10 more"


def test_a_large_source_is_checked_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_CHECKED", 50)
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n' * 100)
    with pytest.raises(InputError, match=r"; and 40 more of 50 documents read$") as caught:
        check_documents(Data(JsonLines((str(tmp_path / "a.jsonl"),)), NextToken(8), 1))
    assert "line 1: " in str(caught.value) and "line 3: " in str(caught.value) and "line 2: " not in str(caught.value)


def test_validation_documents_are_checked(tmp_path):
    for name, text in (("train", '{"text": "w1"}'), ("valid", '{"text": 1}')):
        (tmp_path / name).write_text(text)
    train, valid = (JsonLines((str(tmp_path / name),)) for name in ("train", "valid"))
    with pytest.raises(InputError, match=r"valid: line 1: data.task.column='text': the column holds 1"):
        check_documents(Data(train, NextToken(8), 1, validation=valid))


def test_sources_name_the_origin_of_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "b.csv").write_text('text,label\n"a\nb",1\nc,0\n')
    (tmp_path / "c.tsv").write_text("text\tlabel\na\t1\n")
    (tmp_path / "d.jsonl").write_text('\n{"en": "a", "de": "b"}\n')
    (tmp_path / "pos").mkdir()
    (tmp_path / "pos" / "1.txt").write_text("fine")
    text, csv = TextFiles((str(tmp_path / "a.txt"),)), Csv((str(tmp_path / "b.csv"),))
    columns = Columns(JsonLines((str(tmp_path / "d.jsonl"),)), "en", "de")
    for source, index, expected in [
        (text, 1, "a.txt: line 5"),
        (csv, 0, "b.csv: line 2"),
        (csv, 1, "b.csv: line 4"),
        (Tsv((str(tmp_path / "c.tsv"),)), 0, "c.tsv: line 2"),
        (columns, 0, "d.jsonl: line 2"),
        (ClassFolders(str(tmp_path)), 0, "pos/1.txt"),
        (Mixture((text, columns), (1, 1)), 2, "d.jsonl: line 2"),
    ]:
        assert place(source.open(), index) == f"{tmp_path}/{expected}"
    assert place(Decoded([1, 2], "glue/sst2: split train"), 1) == "glue/sst2: split train, example 1"
    assert place([1, 2], 1) == "example 1"


def test_training_names_the_document(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nw1,no\nw2,yes\nw3,perhaps\n")
    data = Data(Csv((str(path),)), Classify(labels=LABELS, length=8), 2)
    batches = train_batches(data, tokenizer, 0, range(2))
    with (
        batches,
        pytest.raises(InputError, match=r"a\.csv: line 4: label 'perhaps': unknown; expected one of no, yes"),
    ):
        for _ in range(3):
            next(batches)


@pytest.mark.parametrize(
    "example", [{"text": "a \ud83d"}, {"text": None}, {"words": ["a", 5]}, {"en": "a", "de": "\udfff"}]
)
def test_tokenizer_training_names_a_bad_document(example, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + json.dumps(example))
    for config in (SentencePiece(30), WordPiece(30), ByteLevelBpe(300)):
        with pytest.raises(InputError, match=rf"^{path}: line 2: ") as caught:
            config.build(JsonLines((str(path),)).open, str(tmp_path / "tokenizer"))
        assert "\n" not in str(caught.value) and "INTERNAL" not in str(caught.value)


def test_other_errors_keep_their_type_and_get_a_note():
    with pytest.raises(ZeroDivisionError) as caught, located([1, 2], 1):
        np.testing.assert_equal(1 // 0, 0)
    assert caught.value.__notes__ == ["while reading example 1"]
