"""Batches of the language tasks, from the source to rows: what a step sees is the same however it is made."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from jaxformer.data.pipeline.loader import Data, evaluation_batches, train_batches
from jaxformer.data.sources.sources import Columns, JsonLines, Mixture
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import UL2, Denoiser, SpanCorruption

BATCH = 4
TASKS = {
    "next_token": NextToken(16),
    "prefix": PrefixLM(16),
    "prefix_encoder": PrefixLM(16, 20),
    "text_to_text": TextToText(20, 12),
    "text_to_text_decoder": TextToText(None, 30),
    "spans": SpanCorruption(50),
    "mixture": UL2(20, denoisers=(Denoiser(0.3, 2.0), Denoiser(0.5, 4.0), Denoiser(0.25, None))),
}


@pytest.fixture
def make(tmp_path, documents):
    def data(task, pack):
        path = tmp_path / "a.jsonl"
        texts = [{"text": " ".join(text), "inputs": text[0], "targets": " ".join(text[1:3])} for text in documents(17)]
        path.write_text("\n".join(map(json.dumps, texts)))
        return Data(JsonLines((str(path),)), task, BATCH, pack=pack, lookahead=4, open_documents=3)

    return data


@pytest.fixture(params=list(TASKS))
def task(request):
    return TASKS[request.param]


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def data(request, task, make):
    return make(task, request.param)


def take(data, tokenizer, count, rows=range(BATCH), state=None):
    with train_batches(data, tokenizer, 1, rows, state) as batches:
        return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert set(one) == set(other)
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


def examples(batch):
    """The examples in a batch, each as the values of its arrays."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            own = dict.fromkeys(("tokens", "targets", "weights", "prefix"), batch["segments"][row] == segment)
            if "inputs" in batch:
                own["inputs"] = batch["input_segments"][row] == segment
            yield tuple((key, *batch[key][row][mask]) for key, mask in sorted(own.items()) if key in batch)


def test_rows_are_well_formed(data, sentinel_tokenizer):
    names = {"segments", "position_ids"} | (
        {"input_segments", "input_position_ids"} if "inputs" in data.task.row else set()
    )
    full = 0
    for batch, _ in take(data, sentinel_tokenizer, 6):
        assert set(batch) == set(data.task.row) | names
        for key, feature in data.task.row.items():
            assert batch[key].shape == (BATCH, feature.capacity) and batch[key].dtype == feature.dtype
        free = batch["segments"] == 0
        for key in ("tokens", "targets", "weights", "position_ids"):
            assert not batch[key][free].any()
        assert batch["weights"].sum(axis=1).min() >= 1
        full = max(full, batch["segments"].max())
    assert (full > 1) == data.pack


def test_batches_do_not_depend_on_hosts_and_restarts(data, sentinel_tokenizer):
    whole = take(data, sentinel_tokenizer, 10)
    for rows in ([0, 1], [3], [1, 2, 3]):
        for (batch, _), (part, _) in zip(whole, take(data, sentinel_tokenizer, 10, rows), strict=True):
            assert_same({key: array[rows] for key, array in batch.items()}, part)
    for step in (1, 6):
        for (again, _), (batch, _) in zip(
            take(data, sentinel_tokenizer, 10 - step, state=whole[step - 1][1]), whole[step:], strict=True
        ):
            assert_same(again, batch)


@pytest.mark.slow
def test_batches_do_not_depend_on_processes(make, sentinel_tokenizer):
    data = make(TASKS["mixture"], pack=True)
    whole, others = take(data, sentinel_tokenizer, 5), take(dataclasses.replace(data, workers=2), sentinel_tokenizer, 5)
    for (batch, _), (other, _) in zip(whole, others, strict=True):
        assert_same(batch, other)


def test_packing_only_moves_examples(task, make, sentinel_tokenizer):
    def one_pass(data):
        batches = list(evaluation_batches(data.train, data, sentinel_tokenizer, 0, range(BATCH)))
        return Counter(example for batch in batches for example in examples(batch)), len(batches)

    (plain, count), (packed, fewer) = (one_pass(make(task, pack)) for pack in (False, True))
    assert plain == packed and len(plain) >= 17 and fewer < count


@pytest.mark.parametrize("pack", [False, True])
def test_next_tokens_are_the_documents(make, pack, sentinel_tokenizer):
    data = make(NextToken(16), pack)
    batches = evaluation_batches(data.train, data, sentinel_tokenizer, 0, range(BATCH))
    counts = np.zeros(sentinel_tokenizer.vocab_size, int)
    for batch in batches:
        np.add.at(counts, batch["targets"][batch["weights"] > 0], 1)
    documents = data.train.open()
    expected = np.zeros_like(counts)
    expected[sentinel_tokenizer.eos_id] = len(documents)
    for number in range(len(documents)):
        np.add.at(expected, sentinel_tokenizer.encode(documents[number]["text"])[1:], 1)
    np.testing.assert_array_equal(counts, expected)


def test_a_mixture_of_two_tasks_for_one_model(tmp_path, sentinel_tokenizer):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"en": f"w{n}", "de": f"w{n + 100}"}) for n in range(50)))
    pairs = JsonLines((str(tmp_path / "a.jsonl"),))
    mixture = Mixture((Columns(pairs, "en", "de", "w1000 "), Columns(pairs, "de", "en", "w1001 ")), (3.0, 1.0))
    data = Data(mixture, TextToText(8, 8), 8)
    counts = Counter()
    for batch, _ in take(data, sentinel_tokenizer, 200, range(8)):
        for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
            prefix, read, written = sentinel_tokenizer.decode([*inputs, *targets]).split()
            assert int(written[1:]) - int(read[1:]) == {"w1000": 100, "w1001": -100}[prefix]
            counts[prefix] += 1
    assert abs(counts["w1000"] / counts.total() - 0.75) < 0.05
