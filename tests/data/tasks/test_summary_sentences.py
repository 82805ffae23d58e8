"""The sentences of a document in rows, each with its own [CLS], and the labels of the oracle."""

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.tokenizers.template import PLAIN
from jaxformer.errors import InputError

DOCUMENT = ["w1 w2", "w3 w4 w5", "w6"]


def examples(task, tokenizer, document=DOCUMENT, summary="w4 w5"):
    encoded = task.encode({"document": document, "summary": summary}, tokenizer)
    return task.examples(encoded, Visit(tokenizer, np.random.default_rng(0), None))


def spelt(example, tokenizer):
    return " ".join(tokenizer.pieces[token] for token in example["tokens"])


def test_each_sentence_has_its_own_first_token_and_types_alternate(tokenizer):
    (example,) = examples(SummarySentences(20), tokenizer)
    assert spelt(example, tokenizer) == "[CLS] w1 w2 [SEP] [CLS] w3 w4 w5 [SEP] [CLS] w6 [SEP]"
    assert example["token_types"].tolist() == [0] * 4 + [1] * 5 + [0] * 3
    assert example["sentence_positions"].tolist() == [0, 4, 9]
    assert example["targets"].tolist() == [0, 1, 0] and example["weights"].tolist() == [1, 1, 1]
    assert example.keys() == SummarySentences().row.keys()


def test_a_long_document_loses_its_end_and_the_oracle_chooses_from_what_fits(tokenizer):
    (example,) = examples(SummarySentences(7), tokenizer, summary="w3 w6")
    assert spelt(example, tokenizer) == "[CLS] w1 w2 [SEP] [CLS] w3 [SEP]"
    assert example["targets"].tolist() == [0, 1]
    (example,) = examples(SummarySentences(20, 2), tokenizer, summary="w3 w6")
    assert example["sentence_positions"].tolist() == [0, 4] and example["targets"].tolist() == [0, 1]
    assert examples(SummarySentences(6), tokenizer) == [], "only one sentence fits"
    whole = [
        SummarySentences(length, most).lay_out(tokenizer.encode_batch(DOCUMENT), tokenizer).whole
        for length, most in ((12, 8), (11, 8), (6, 8))
    ]
    assert whole == [True, False, False]


def test_a_document_with_nothing_to_choose_gives_no_example(tokenizer):
    task = SummarySentences(20)
    assert examples(task, tokenizer, document="W1 w2.") == []
    assert examples(task, tokenizer, document="") == [] == examples(task, tokenizer, document="!\n---")
    assert examples(task, tokenizer, summary="w30") == [] == examples(task, tokenizer, summary="")


def test_packed_documents_keep_their_sentences(tokenizer):
    task = SummarySentences(24, 6)
    some = examples(task, tokenizer) + examples(task, tokenizer, ["w7", "w8 w9"], "w9")
    batch = lanes.empty_batch(1, task.row)
    lanes.write_row(batch, 0, some, task.row)
    starts = batch["sentence_positions"][0][batch["weights"][0] > 0]
    assert starts.tolist() == [0, 4, 9, 12, 15] and set(batch["tokens"][0, starts]) == {tokenizer.cls_id}
    assert batch["segments"][0, starts].tolist() == [1, 1, 1, 2, 2]
    assert batch["targets"][0].tolist() == [0, 1, 0, 0, 1, 0]


def test_what_cannot_be_is_refused(tokenizer, monkeypatch):
    task = SummarySentences(20)
    with pytest.raises(InputError, match=r"data.task.summary='summary': no such column"):
        task.encode({"document": "w1"}, tokenizer)
    with pytest.raises(InputError, match=r"data.task.document='document': the column holds 3; expected a list"):
        task.encode({"document": 3, "summary": "w1"}, tokenizer)
    with pytest.raises(InputError, match=r"data.task.sentences_per_row=1: expected at least 2"):
        SummarySentences(sentences_per_row=1)
    with pytest.raises(InputError, match=r"data.task.oracle_sentences=0: expected at least 1"):
        SummarySentences(oracle_sentences=0)
    task.check(tokenizer, pack=True)
    monkeypatch.setattr(type(tokenizer), "template", lambda self, form: PLAIN)
    with pytest.raises(InputError, match="no special token before a text"):
        task.check(tokenizer, pack=True)
