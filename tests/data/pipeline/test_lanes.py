"""Lanes by themselves, with a task whose examples say where they come from."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.examples import Feature
from jaxformer.data.pipeline import lanes
from jaxformer.data.sources.order import in_order, shuffled
from jaxformer.data.tasks.base import Task

LENGTH = 20


@dataclasses.dataclass(frozen=True)
class Marks(Task):
    """A document is a list of lengths; its examples hold their document's number and their own."""

    per_row: int = 5

    @property
    def row(self):
        return {
            "mark": Feature(self.per_row),
            "tokens": Feature(LENGTH),
            "places": Feature(8, offset=True),
        }

    def encode(self, example, tokenizer):
        return Document(**example)

    def examples(self, document, visit):
        shift = int(visit.rng.integers(100))
        assert visit.draw(visit.rng).number != document.number
        return [
            {
                "mark": np.array([document.number * 100 + index], np.int32),
                "tokens": np.full(length, 1 + shift, np.int32),
                "places": np.array([0, length - 1], np.int32),
            }
            for index, length in enumerate(document.lengths)
        ]


@dataclasses.dataclass
class Document:
    number: int
    lengths: list
    size: int = 1


def make(documents, count, order=None, lookahead=0, num_open=2, state=None, only=None):
    texts = [{"number": n, "lengths": lengths} for n, lengths in enumerate(documents)]
    order = order or shuffled(texts, seed=5)
    reader = lanes.Reader(texts, order, Marks(), None, seed=7)
    state = lanes.initial_state(count, num_open, lookahead) if state is None else state
    return [
        lanes.Lane(reader, Marks().row, number, count, state[number], num_open)
        for number in (range(count) if only is None else only)
    ]


def written(row):
    batch = lanes.empty_batch(1, Marks().row)
    lanes.write_row(batch, 0, row, Marks().row)
    return batch


corpora = st.lists(st.lists(st.integers(1, LENGTH), max_size=6), min_size=2, max_size=12).filter(
    lambda corpus: any(corpus)
)
lookaheads = st.sampled_from([0, 1, 3, 8])


@given(corpora, st.integers(1, 4), st.integers(1, 3), lookaheads)
@settings(max_examples=60)
def test_one_pass_has_every_example_once(corpus, count, num_open, lookahead):
    order = in_order(corpus)
    seen = Counter()
    for lane in make(corpus, count, order, lookahead, num_open):
        while row := lane.next_row():
            batch = written(row)
            seen.update(example["mark"][0] for example in row)
            # Nothing is truncated, and each example is a segment of its own.
            assert (batch["tokens"] > 0).sum() == sum(len(e["tokens"]) for e in row) <= LENGTH
            assert np.array_equal(batch["segments"] > 0, batch["tokens"] > 0)
        assert lane.next_row() == []
    marks = [n * 100 + i for n, lengths in enumerate(corpus) for i in range(len(lengths))]
    assert seen == Counter(marks)


@given(corpora, st.integers(1, 3), st.integers(1, 3), lookaheads, st.integers(0, 12))
@settings(max_examples=60)
def test_a_state_restores_the_lane_at_every_row(corpus, count, num_open, lookahead, rows):
    original = make(corpus, count, lookahead=lookahead, num_open=num_open)
    for _ in range(rows):
        for lane in original:
            lane.next_row()
    state = np.array([lane.state() for lane in original], np.int32)
    restored = make(corpus, count, lookahead=lookahead, num_open=num_open, state=state)
    for _ in range(6):
        for first, second in zip(original, restored, strict=True):
            one, other = written(first.next_row()), written(second.next_row())
            assert all(np.array_equal(one[key], other[key]) for key in one)
            assert first.state() == second.state()


def test_a_lane_does_not_depend_on_the_others():
    corpus = [[3, 9, 12], [5], [], [20, 1, 1], [7, 7]]
    together = make(corpus, 3, lookahead=4)
    rows = [[written(lane.next_row()) for lane in together] for _ in range(20)]
    for number in range(3):
        (alone,) = make(corpus, 3, lookahead=4, only=[number])
        for row in rows:
            batch = written(alone.next_row())
            assert all(np.array_equal(batch[key], row[number][key]) for key in batch)


def test_an_epoch_has_every_example_once():
    corpus = [[1] * (n % 4) for n in range(40)]
    (lane,) = make(corpus, 1, num_open=1)
    marks = [n * 100 + i for n in range(40) for i in range(n % 4)]
    for _ in range(3):
        assert sorted(lane.next_row()[0]["mark"][0] for _ in marks) == marks


def test_open_documents_take_turns():
    (lane,) = make([[1] * 50] * 6, 1, num_open=3)
    numbers = [lane.next_row()[0]["mark"][0] // 100 for _ in range(9)]
    assert len(set(numbers[:3])) == 3 and numbers[:3] == numbers[3:6] == numbers[6:]


def test_packing_writes_examples_one_after_the_other():
    row = [
        {
            "mark": np.array([n], np.int32),
            "tokens": np.full(length, 9, np.int32),
            "places": np.array([0, length - 1], np.int32),
        }
        for n, length in [(1, 3), (2, 2)]
    ]
    batch = written(row)
    assert batch["tokens"][0, :6].tolist() == [9] * 5 + [0]
    assert batch["segments"][0, :6].tolist() == [1, 1, 1, 2, 2, 0]
    assert batch["position_ids"][0, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch["places"][0].tolist() == [0, 2, 3, 4, 0, 0, 0, 0]
    assert batch["mark"][0].tolist() == [1, 2, 0, 0, 0]


def test_packing_fills_rows_and_bounds_the_wait():
    rng = np.random.default_rng(0)
    corpus = [rng.integers(1, LENGTH + 1, size=5).tolist() for _ in range(200)]
    lookahead = 16
    (lane,) = make(corpus, 1, lookahead=lookahead)
    fill, waits, born = [], [], {}
    for number in range(300):
        row = lane.next_row()
        fill.append(sum(len(example["tokens"]) for example in row) / LENGTH)
        for marked in lane._pending:
            born.setdefault((marked.visit, marked.index), number)
        waiting = {(marked.visit, marked.index) for marked in lane._pending}
        waits += [number - since for mark, since in born.items() if mark not in waiting]
        born = {mark: since for mark, since in born.items() if mark in waiting}
    assert np.mean(fill) > 0.93
    assert max(waits) <= lookahead


@pytest.mark.parametrize("size", [1, 2**25])
def test_rows_do_not_depend_on_the_cache(monkeypatch, size):
    corpus = [[3, 9, 12], [5], [20, 1, 1], [7, 7]]
    expected = [written(lane.next_row()) for lane in make(corpus, 2) for _ in range(20)]
    monkeypatch.setattr(lanes, "_CACHE_SIZE", size)
    again = [written(lane.next_row()) for lane in make(corpus, 2) for _ in range(20)]
    for one, other in zip(expected, again, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


@dataclasses.dataclass(frozen=True)
class MarkedPairs(Task):
    """Examples of inputs and tokens, of the lengths that a document lists, each holding its own number."""

    @property
    def row(self):
        return {"inputs": Feature(15), "tokens": Feature(LENGTH), "targets": Feature(LENGTH)}

    def encode(self, example, tokenizer):
        return Document(**example)

    def examples(self, document, visit):
        return [
            {
                "inputs": np.full(inputs, number, np.int32),
                "tokens": np.full(tokens, number, np.int32),
                "targets": np.full(tokens, -number, np.int32),
            }
            for number, (inputs, tokens) in enumerate(document.lengths, 1 + 10 * document.number)
        ]


def pair_rows(documents, lookahead, num_open=2):
    texts = [{"number": number, "lengths": lengths} for number, lengths in enumerate(documents)]
    reader, features = lanes.Reader(texts, in_order(texts), MarkedPairs(), None, seed=0), MarkedPairs().row
    lane = lanes.Lane(reader, features, 0, 1, lanes.initial_state(1, num_open, lookahead)[0], num_open)
    while row := lane.next_row():
        batch = lanes.empty_batch(1, features)
        lanes.write_row(batch, 0, row, features)
        yield {key: array[0] for key, array in batch.items()}


pair_corpora = st.lists(
    st.lists(st.tuples(st.integers(1, 15), st.integers(1, LENGTH)), max_size=6), min_size=1, max_size=8
)


@given(pair_corpora, lookaheads)
@settings(max_examples=60)
def test_inputs_have_the_segments_of_their_tokens(corpus, lookahead):
    seen = {}
    for batch in pair_rows(corpus, lookahead):
        assert batch["input_segments"].shape == batch["input_position_ids"].shape == batch["inputs"].shape
        for name in ("input_segments", "input_position_ids"):
            assert batch[name].dtype == np.int32
        assert np.array_equal(batch["input_segments"] > 0, batch["inputs"] > 0)
        assert np.array_equal(batch["segments"] > 0, batch["tokens"] > 0)
        assert np.array_equal(batch["targets"], -batch["tokens"])
        assert set(batch["input_segments"]) - {0} == set(batch["segments"]) - {0}
        for segment in range(1, batch["segments"].max() + 1):
            inputs, tokens = (np.flatnonzero(batch[name] == segment) for name in ("input_segments", "segments"))
            (number,) = {*batch["inputs"][inputs], *batch["tokens"][tokens]}
            assert np.array_equal(batch["input_position_ids"][inputs], np.arange(len(inputs)))
            assert np.array_equal(batch["position_ids"][tokens], np.arange(len(tokens)))
            assert number not in seen
            seen[number] = (len(inputs), len(tokens))
    assert seen == {
        1 + 10 * number + index: lengths
        for number, document in enumerate(corpus)
        for index, lengths in enumerate(document)
    }


def test_a_row_is_full_when_its_inputs_are():
    # The second and the fourth fit beside the first by their tokens, the fourth alone by its inputs too.
    rows = list(pair_rows([[(9, 2), (8, 2), (15, 2), (6, 3)]], lookahead=4, num_open=1))
    assert [sorted({*row["tokens"]} - {0}) for row in rows] == [[1, 4], [2], [3]]


def test_packing_takes_the_longest_pair_with_its_inputs():
    rows = pair_rows([[(5, 2), (1, 4), (9, 3)]], lookahead=3, num_open=1)
    first = next(rows)
    assert first["tokens"][:9].tolist() == [1, 1, 3, 3, 3, 2, 2, 2, 2]
    assert first["input_segments"].tolist() == [1] * 5 + [2] * 9 + [3]


def test_rows_without_inputs_have_no_segments_of_them():
    assert set(lanes.empty_batch(2, Marks().row)) == {*Marks().row, "segments", "position_ids"}
