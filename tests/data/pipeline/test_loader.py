import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import numpy as np
import pytest

from jaxformer.data.pipeline.loader import Data, evaluation_batches, initial_state, train_batches
from jaxformer.data.sources.sources import JsonLines, Mixture, TextFiles
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.errors import InputError

BATCH = 8
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path, documents):
    def make(count=25, name="a.jsonl", seed=0):
        path = tmp_path / name
        lines = [json.dumps({"sentences": text}) for text in documents(count, seed)]
        path.write_text("\n".join(lines))
        return JsonLines((str(path),))

    return make


@pytest.fixture(params=["plain", "packed", "mixture"])
def data(request, source):
    task = MaskedSentencePairs(length=40, predictions=6)
    if request.param == "plain":
        return Data(source(), task, BATCH)
    packed = dataclasses.replace(task, examples_per_row=3)
    if request.param == "packed":
        return Data(source(), packed, BATCH, pack=True, lookahead=4, open_documents=2)
    mixture = Mixture((source(), source(9, "b.jsonl", 1)), (2.0, 1.0))
    return Data(mixture, packed, BATCH, pack=True, lookahead=4, open_documents=3)


def take(data, tokenizer, count, rows=range(BATCH), state=None, seed=1):
    with train_batches(data, tokenizer, seed, rows, state) as batches:
        return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert set(one) == set(other)
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


def test_batches_have_the_shapes_of_their_row(data, tokenizer):
    (batch, state), *_ = take(data, tokenizer, 1, rows=[1, 3, 6])
    assert set(batch) == set(data.task.row) | {"segments", "position_ids"}
    for key, feature in data.task.row.items():
        assert batch[key].shape == (3, feature.capacity) and batch[key].dtype == feature.dtype
    assert batch["segments"].shape == batch["position_ids"].shape == batch["tokens"].shape
    assert state.shape == initial_state(data)[[1, 3, 6]].shape and state.dtype == np.int32


def test_rows_are_well_formed(data, tokenizer):
    for batch, _ in take(data, tokenizer, 5):
        for row in range(BATCH):
            tokens, segments = batch["tokens"][row].copy(), batch["segments"][row]
            at = batch["masked_positions"][row][batch["weights"][row] > 0]
            assert np.all(np.diff(at) > 0) and np.all(segments[at] > 0)
            tokens[at] = batch["targets"][row][: len(at)]
            assert not np.isin(tokens[at], tokenizer.special_ids).any()
            starts = np.flatnonzero(tokens == tokenizer.cls_id)
            held = batch["next_sentence_weights"][row] > 0
            assert np.array_equal(batch["cls_positions"][row][held], starts)
            assert len(starts) == segments.max() == held.sum()
            for segment in range(1, segments.max() + 1):
                own = np.flatnonzero(segments == segment)
                assert np.array_equal(batch["position_ids"][row][own], np.arange(len(own)))
                assert (tokens[own] == tokenizer.sep_id).sum() == 2


@pytest.mark.parametrize("hosts", [2, 4])
def test_batches_do_not_depend_on_the_hosts(data, tokenizer, hosts):
    whole = take(data, tokenizer, 12)
    for host in range(hosts):
        rows = range(host * BATCH // hosts, (host + 1) * BATCH // hosts)
        for (batch, state), (part, part_state) in zip(whole, take(data, tokenizer, 12, rows), strict=True):
            assert_same({key: array[rows] for key, array in batch.items()}, part)
            np.testing.assert_array_equal(state[rows], part_state)


def test_batches_do_not_depend_on_restarts(data, tokenizer):
    whole = take(data, tokenizer, 30)
    assert np.array_equal(whole[0][1][:, 0] > 0, np.ones(BATCH, bool))
    for step in (1, 2, 7, 20):
        again = take(data, tokenizer, 30 - step, state=whole[step - 1][1])
        for (batch, state), (expected, expected_state) in zip(again, whole[step:], strict=True):
            assert_same(batch, expected)
            np.testing.assert_array_equal(state, expected_state)


def test_restarts_with_other_hosts_repeat_and_skip_nothing(data, tokenizer):
    whole = take(data, tokenizer, 12)
    state = whole[3][1]
    for hosts in (4, 2, 1):
        parts = [take(data, tokenizer, 2, rows, state[rows]) for rows in (range(h, BATCH, hosts) for h in range(hosts))]
        step = {4: 4, 2: 6, 1: 8}[hosts]
        next_state = np.empty_like(state)
        for host, part in enumerate(parts):
            for offset in range(2):
                expected = {key: a[host::hosts] for key, a in whole[step + offset][0].items()}
                assert_same(part[offset][0], expected)
            next_state[host::hosts] = part[1][1]
        state = next_state


def test_seeds_differ(data, tokenizer):
    first, second = (take(data, tokenizer, 1, seed=seed)[0][0] for seed in (1, 2))
    assert not np.array_equal(first["tokens"], second["tokens"])


@pytest.mark.slow
def test_processes_give_the_same_batches(data, tokenizer):
    data = dataclasses.replace(data, workers=2)
    whole = take(dataclasses.replace(data, workers=0), tokenizer, 8)
    for (batch, state), (expected, expected_state) in zip(take(data, tokenizer, 8), whole, strict=True):
        assert_same(batch, expected)
        np.testing.assert_array_equal(state, expected_state)
    again = take(data, tokenizer, 3, rows=[1, 2, 5], state=whole[4][1][[1, 2, 5]])
    for (batch, _), (expected, _) in zip(again, whole[5:], strict=True):
        assert_same(batch, {key: array[[1, 2, 5]] for key, array in expected.items()})


def first_words(batch, tokenizer):
    """Each example's word after [CLS], unmasked."""
    tokens = batch["tokens"].copy()
    rows, places = np.nonzero(batch["weights"])
    tokens[rows, batch["masked_positions"][rows, places]] = batch["targets"][rows, places]
    return [tokenizer.pieces[token] for token in tokens[:, 1:][tokens[:, :-1] == tokenizer.cls_id]]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("count", [3, 25])
def test_evaluation_uses_every_document_once(tokenizer, source, documents, pack, count):
    task = MaskedSentencePairs(length=200, predictions=30, examples_per_row=4 if pack else 1)
    task = dataclasses.replace(task, next_sentence=False, short_rate=0)
    data = Data(source(count), task, BATCH, pack=pack)
    batches = list(evaluation_batches(data.train, data, tokenizer, 0, range(BATCH)))
    seen = Counter()
    for batch in batches:
        tokens = batch["tokens"].copy()
        rows, places = np.nonzero(batch["weights"])
        tokens[rows, batch["masked_positions"][rows, places]] = batch["targets"][rows, places]
        seen.update(tokenizer.pieces[token] for token in tokens[tokens >= 5])
        assert np.all((batch["segments"] > 0) == (tokens > 0))
    expected = Counter(word for text in documents(count) for sentence in text for word in sentence.split())
    assert seen == expected
    again = list(evaluation_batches(data.train, data, tokenizer, 0, range(BATCH)))
    for one, other in zip(batches, again, strict=True):
        assert_same(one, other)
    if count < BATCH:
        assert not batches[0]["segments"][count:].any() and not batches[0]["weights"][count:].any()


def test_evaluation_pairs_visit_every_document(tokenizer, source, documents):
    data = Data(source(11), MaskedSentencePairs(length=200, predictions=30), 4)
    batches = evaluation_batches(data.train, data, tokenizer, 0, range(4))
    words = Counter(word for batch in batches for word in first_words(batch, tokenizer))
    beginnings = {text[0].split()[0] for text in documents(11)}
    assert all(words[word] == 1 for word in beginnings)


def test_background_errors_are_raised_unchanged(tokenizer, source, monkeypatch):
    data = Data(source(), MaskedSentencePairs(length=40, predictions=6), 4)
    encode, calls = MaskedSentencePairs.encode, itertools.count()

    def failing(task, example, tokenizer):
        if next(calls) == 9:
            raise InputError("a broken document")
        return encode(task, example, tokenizer)

    monkeypatch.setattr(MaskedSentencePairs, "encode", failing)
    batches = train_batches(data, tokenizer, 0, range(4))
    with batches, pytest.raises(InputError) as caught:
        for _ in range(50):
            next(batches)
    path, line = str(caught.value).removesuffix(": a broken document").split(": line ")
    assert path.endswith(".jsonl") and 1 <= int(line) <= len(data.train.open())


def test_closing_stops_the_work(tokenizer, source):
    data = Data(source(), MaskedSentencePairs(length=40, predictions=6), 4)
    before = threading.active_count()
    batches = train_batches(data, tokenizer, 0, range(4))
    next(batches)
    assert threading.active_count() == before + 2  # One prepares batches, one watches for stalls.
    start = time.monotonic()
    batches.close()
    batches.close()
    assert threading.active_count() == before and time.monotonic() - start < 1
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_interpreter_exits_with_open_batches(tmp_path, source, tokenizer, workers):
    tokenizer.save(str(tmp_path / "tokenizer"))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from jaxformer.data.pipeline.loader import Data, train_batches
        from jaxformer.data.sources.sources import JsonLines
        from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
        from jaxformer.data.tokenizers import load_tokenizer

        if __name__ == "__main__":
            task = MaskedSentencePairs(length=40, predictions=6)
            data = Data({source()!r}, task, 4, workers={workers})
            batches = train_batches(data, load_tokenizer({str(tmp_path / "tokenizer")!r}), 0, range(4))
            print(len(next(batches)[0]["tokens"]))
        """)
    )
    result = run(str(script))
    assert (result.returncode, result.stdout, result.stderr) == (0, "4\n", "")


def run(*arguments):
    """Python in another process, which may not know of this project."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_data_imports_no_model_and_no_jax():
    """The processes that prepare batches import no model, and need no JAX: Grain uses it only where it is installed."""
    files = sorted((ROOT / "jaxformer" / "data").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    hidden = dict.fromkeys(("jax", "flax", "optax"))
    code = f"import sys; sys.modules |= {hidden}; [__import__(name) for name in {names}]; print(*sys.modules)"
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
    modules = {name.split(".")[1] for name in result.stdout.split() if name.startswith("jaxformer.")}
    found = {
        "classes",
        "data",
        "digests",
        "ending",
        "errors",
        "field_docs",
        "fields",
        "limits",
        "namespaces",
        "notebook",
        "progress",
        "storage",
        "suggestions",
    }
    assert modules == found


def test_a_source_without_examples_is_refused_at_once(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3 w4\n\nw5\n")
    data = Data(TextFiles((str(tmp_path / "a.txt"),)), MaskedSentencePairs(), 4)
    start = time.monotonic()
    for action in (
        lambda: train_batches(data, tokenizer, 0, range(4)),
        lambda: evaluation_batches(data.train, data, tokenizer, 0, range(4)),
    ):
        with pytest.raises(InputError, match=r"a.txt.* has no document of two sentences or more"):
            action()
    assert time.monotonic() - start < 1


def test_one_document_has_no_other_to_draw(tokenizer, tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"w1 w2\nw3 w4"))
    data = Data(TextFiles((str(path),)), MaskedSentencePairs(), 4)
    with pytest.raises(InputError, match=r"a.txt.gz.*: holds 1 document; .*needs 2 or more"):
        train_batches(data, tokenizer, 0, range(4))
    alone = dataclasses.replace(data, task=MaskedSentencePairs(next_sentence=False))
    assert take(alone, tokenizer, 3, range(4))[2][0]["tokens"][3].any()


@pytest.mark.parametrize("fields", [{"batch": 0}, {"open_documents": 0}, {"prefetch": 0}, {"workers": -1}])
def test_invalid_data_fields_are_refused(source, fields):
    with pytest.raises(InputError, match=f"data.{next(iter(fields))}=.*: expected at least"):
        Data(**{"train": source(), "task": MaskedSentencePairs(), "batch": 4} | fields)


def test_a_state_of_other_settings_is_refused(tokenizer, data):
    other = dataclasses.replace(data, open_documents=7)
    with pytest.raises(InputError, match="the lane states have shape"):
        train_batches(other, tokenizer, 0, range(BATCH), initial_state(data))
    with pytest.raises(InputError, match="rows"):
        train_batches(data, tokenizer, 0, [BATCH])


def test_text_files_as_bert_reads_them(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2\nw3\nw4 w5\n\nw6 w7. w8! W9\n\nw10\nw11\n")
    task = MaskedSentencePairs(length=16, predictions=3)
    data = Data(TextFiles((str(tmp_path / "*.txt"),)), task, 2)
    batch, _ = take(data, tokenizer, 1, range(2))[0]
    assert (batch["segments"] > 0).sum() > 8
