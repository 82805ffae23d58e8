import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.pipeline.loader import Data, evaluation_batches, train_batches
from jaxformer.data.sources.sources import Columns, JsonLines, Mixture
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import UL2, SpanCorruption
from jaxformer.errors import InputError

TASK = MultiTask(SpanCorruption(40), TextToText(24, 30))
TEXT = {"text": " ".join(f"w{number}" for number in range(100))}
PAIR = {"inputs": "w200 w201", "targets": "w202 w203 w204"}


def same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        MultiTask(UL2(20, denoisers=SpanCorruption().recipes), TextToText(30, 9)),
        MultiTask(PrefixLM(30, 12), TextToText(12, 12)),
        MultiTask(SpanCorruption(None, 40), TextToText(None, 50)),
    ],
)
def test_multi_task_gives_the_examples_of_its_tasks(task, sentinel_tokenizer):
    task.check(sentinel_tokenizer, pack=True)
    for example, alone in ((TEXT, task.denoising), (PAIR, task.text_to_text), (TEXT | PAIR, task.text_to_text)):
        found = []
        for one in (task, alone):
            document = one.encode(example, sentinel_tokenizer)
            found.append(one.examples(document, Visit(sentinel_tokenizer, np.random.default_rng(3), None)))
            assert document.size == alone.encode(example, sentinel_tokenizer).size
        same(*found)
        assert found[0]
        for arrays in found[0]:
            assert arrays.keys() == task.row.keys()
            assert all(len(arrays[key]) <= feature.capacity for key, feature in task.row.items())


def test_multi_task_rows_have_the_longer_length():
    assert {key: feature.capacity for key, feature in TASK.row.items()} == {
        "inputs": 40,
        **dict.fromkeys(("tokens", "targets", "weights"), 30),
    }


@pytest.fixture
def data(tmp_path):
    """Chapters, and pairs for two tasks with a prefix each."""
    (tmp_path / "texts").write_text("\n".join(json.dumps(TEXT | {"title": f"w{n}"}) for n in range(4)))
    (tmp_path / "pairs").write_text("\n".join(json.dumps({"en": f"w{n}", "de": f"w{n} w{n}"}) for n in range(900, 940)))
    pairs = JsonLines((str(tmp_path / "pairs"),))
    sources = (
        JsonLines((str(tmp_path / "texts"),)),
        Columns(pairs, "en", "de", "w1: "),
        Columns(pairs, "de", "en", "w2: "),
    )
    mixture = Mixture(sources, (1.0, 4.0, 3.0))
    return Data(mixture, TASK, batch=4, validation=mixture, pack=True)


def kinds(batches, tokenizer):
    """How many examples of each kind: by the first token of their inputs, or hidden spans."""
    found = Counter()
    for batch in batches:
        for inputs, segments in zip(batch["inputs"], batch["input_segments"], strict=True):
            for number in range(1, segments.max() + 1):
                ids = inputs[segments == number]
                hidden = np.isin(ids, tokenizer.sentinel_ids).any()
                found["spans" if hidden else tokenizer.decode(ids).split(" ")[0]] += 1
    return found


def test_multi_task_follows_the_weights_of_a_mixture(data, sentinel_tokenizer):
    with train_batches(data, sentinel_tokenizer, seed=0, rows=range(4)) as batches:
        counts = kinds([next(batches)[0] for _ in range(150)], sentinel_tokenizer)
    spans = counts["spans"] / 3  # A text gives three stretches.
    assert counts["w1"] / counts["w2"] == pytest.approx(4 / 3, rel=0.1)
    assert counts["w1"] / spans == pytest.approx(4, rel=0.1)


def test_evaluation_reads_every_example_once_evenly_mixed(data, sentinel_tokenizer):
    batches = list(evaluation_batches(data.validation, data, sentinel_tokenizer, 0, range(4)))
    assert kinds(batches, sentinel_tokenizer) == {"spans": 12, "w1": 40, "w2": 40}
    assert set(kinds(batches[:3], sentinel_tokenizer)) == {"spans", "w1", "w2"}


def test_multi_task_refuses_conflicting_settings(tokenizer):
    with pytest.raises(
        InputError, match=r"data.task.text_to_text.input_length=None: expected a number, as denoising.input_length=512"
    ):
        MultiTask(SpanCorruption(512), TextToText(None, 512))
    with pytest.raises(InputError, match=r"SpanCorruption: a row has up to 2 spans, but the tokenizer has 0 sentinels"):
        TASK.check(tokenizer, pack=True)


def test_an_error_names_a_component_without_examples(data, tmp_path, sentinel_tokenizer):
    (tmp_path / "empty").write_text('{"en": "", "de": "w1"}\n{"en": "w1", "de": " "}')
    none = Columns(JsonLines((str(tmp_path / "empty"),)), "en", "de", "w3: ")
    for mixture in (
        Mixture((data.train, none), (9.0, 1.0)),
        Mixture((Mixture((none,), (1.0,)), data.train), (1.0, 1.0)),
    ):
        wrong = dataclasses.replace(data, train=mixture, validation=mixture)
        for read in (
            lambda wrong=wrong: train_batches(wrong, sentinel_tokenizer, 0, range(4)),
            lambda wrong=wrong: next(evaluation_batches(wrong.validation, wrong, sentinel_tokenizer, 0, range(4))),
        ):
            with pytest.raises(InputError, match=r"^Columns\(.*empty.*: has no document of two .* MultiTask") as caught:
                read()
            assert "texts" not in str(caught.value) and "\n" not in str(caught.value)
    # One that is never drawn may be empty.
    unused = dataclasses.replace(data, train=Mixture((data.train, none), (1.0, 0.0)))
    train_batches(unused, sentinel_tokenizer, 0, range(4)).close()
