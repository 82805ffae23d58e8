"""Lanes by themselves, with a task whose examples say where they come from."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data import lanes
from jaxformer.data.sources import in_order, shuffled
from jaxformer.data.tasks import Feature, Task

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

    def examples(self, document, tokenizer, rng, draw):
        shift = int(rng.integers(100))
        assert draw(rng).number != document.number
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


def make(documents, count, order=None, lookahead=0, opened=2, state=None, only=None):
    texts = [{"number": n, "lengths": lengths} for n, lengths in enumerate(documents)]
    order = order or shuffled(texts, seed=5)
    reader = lanes.Reader(texts, order, Marks(), None, seed=7)
    state = lanes.initial_state(count, opened, lookahead) if state is None else state
    return [
        lanes.Lane(reader, Marks().row, number, count, state[number], opened)
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
def test_one_pass_has_every_example_once(corpus, count, opened, lookahead):
    order = in_order(corpus)
    seen = Counter()
    for lane in make(corpus, count, order, lookahead, opened):
        while row := lane.next_row():
            batch = written(row)
            seen.update(example["mark"][0] for example in row)
            # Nothing is cut, and each example stands in its own segment.
            assert (batch["tokens"] > 0).sum() == sum(len(e["tokens"]) for e in row) <= LENGTH
            assert np.array_equal(batch["segments"] > 0, batch["tokens"] > 0)
        assert lane.next_row() == []
    marks = [n * 100 + i for n, lengths in enumerate(corpus) for i in range(len(lengths))]
    assert seen == Counter(marks)


@given(corpora, st.integers(1, 3), st.integers(1, 3), lookaheads, st.integers(0, 12))
@settings(max_examples=60)
def test_a_state_restores_the_lane_at_every_row(corpus, count, opened, lookahead, rows):
    original = make(corpus, count, lookahead=lookahead, opened=opened)
    for _ in range(rows):
        for lane in original:
            lane.next_row()
    state = np.array([lane.state() for lane in original], np.int32)
    restored = make(corpus, count, lookahead=lookahead, opened=opened, state=state)
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
    (lane,) = make(corpus, 1, opened=1)
    marks = [n * 100 + i for n in range(40) for i in range(n % 4)]
    for _ in range(3):
        assert sorted(lane.next_row()[0]["mark"][0] for _ in marks) == marks


def test_open_documents_take_turns():
    (lane,) = make([[1] * 50] * 6, 1, opened=3)
    numbers = [lane.next_row()[0]["mark"][0] // 100 for _ in range(9)]
    assert len(set(numbers[:3])) == 3 and numbers[:3] == numbers[3:6] == numbers[6:]


def test_packing_lays_examples_side_by_side():
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
    assert batch["positions"][0, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch["places"][0].tolist() == [0, 2, 3, 4, 0, 0, 0, 0]
    assert batch["mark"][0].tolist() == [1, 2, 0, 0, 0]


def test_packing_fills_rows_and_lets_none_wait_for_ever():
    rng = np.random.default_rng(0)
    corpus = [rng.integers(1, LENGTH + 1, size=5).tolist() for _ in range(200)]
    lookahead = 16
    (lane,) = make(corpus, 1, lookahead=lookahead)
    fill, waits, born = [], [], {}
    for number in range(300):
        row = lane.next_row()
        fill.append(sum(len(example["tokens"]) for example in row) / LENGTH)
        for marked in lane._waiting:
            born.setdefault((marked.visit, marked.index), number)
        waiting = {(marked.visit, marked.index) for marked in lane._waiting}
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
