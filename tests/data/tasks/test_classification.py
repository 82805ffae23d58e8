import json

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.fields.label import label_index
from jaxformer.data.pipeline import lanes
from jaxformer.data.pipeline.loader import Data, check_documents, evaluation_batches, train_batches
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.sources.tables import Csv
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.layouts import cut_longest
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import InputError

LABELS = ("no", "maybe", "yes")


def example(task, tokenizer, columns, seed=0):
    document = task.encode(columns, tokenizer)
    [made] = task.examples(document, Visit(tokenizer, np.random.default_rng(seed), None))
    assert set(made) == set(task.row)
    for key, feature in task.row.items():
        assert made[key].dtype == feature.dtype and len(made[key]) <= feature.capacity, key
    return made


def words(tokenizer, tokens):
    return " ".join(tokenizer.pieces[token] for token in tokens)


def test_a_text_and_its_label(tokenizer):
    made = example(Classify(labels=LABELS, length=16), tokenizer, {"text": "w1 w2", "label": "yes"})
    assert words(tokenizer, made["tokens"]) == "[CLS] w1 w2 [SEP]"
    assert made["targets"].tolist() == [2] and made["weights"].tolist() == [1] and made["cls_positions"].tolist() == [0]
    assert not made["token_types"].any()


@pytest.mark.parametrize("label", ["maybe", 1, np.int64(1)])
def test_labels_are_names_or_indices(tokenizer, label):
    task = Classify(labels=LABELS, text="words", label="class")
    assert example(task, tokenizer, {"words": "w1", "class": label})["targets"].tolist() == [1]


def test_a_pair_is_cut_at_its_longer_text(tokenizer):
    task = Classify(text="a", pair="b", labels=LABELS, length=9)
    columns = {"a": "w1 w2 w3 w4 w5 w6 w7", "b": "w8 w9", "label": 0}
    made = example(task, tokenizer, columns)
    assert words(tokenizer, made["tokens"]) == "[CLS] w1 w2 w3 w4 [SEP] w8 w9 [SEP]"
    assert made["token_types"].tolist() == [0] * 6 + [1] * 3
    made = example(task, tokenizer, columns | {"a": columns["b"], "b": columns["a"]})
    assert words(tokenizer, made["tokens"]) == "[CLS] w8 w9 [SEP] w1 w2 w3 w4 [SEP]"


def test_cut_longest_shortens_the_longer_text_first():
    for one, other, room in [(9, 9, 7), (3, 9, 7), (9, 2, 7), (1, 1, 7), (9, 9, 6)]:
        first, second = cut_longest(np.arange(one), np.arange(other), room)
        lengths = [one, other]
        while sum(lengths) > room:
            lengths[int(lengths[1] >= lengths[0])] -= 1
        assert [len(first), len(second)] == lengths
        assert first.tolist() == list(range(len(first))) and second.tolist() == list(range(len(second)))


def test_a_decoder_reads_texts_with_end_tokens(tokenizer):
    task = Classify(text="a", pair="b", labels=LABELS, length=8, form="decoder")
    made = example(task, tokenizer, {"a": "w1 w2", "b": "w3", "label": 0})
    assert words(tokenizer, made["tokens"]) == "w1 w2 [SEP] w3 [SEP]" and "token_types" not in made


def test_multi_label_and_regression_targets(tokenizer):
    many = Classify(labels=LABELS, kind="multi_label")
    assert example(many, tokenizer, {"text": "w1", "label": ["yes", 0]})["targets"].tolist() == [1, 0, 1]
    assert example(many, tokenizer, {"text": "w1", "label": []})["targets"].tolist() == [0, 0, 0]
    number = Classify(labels=("likeness",), kind="regression")
    assert example(number, tokenizer, {"text": "w1", "label": "3.5"})["targets"].tolist() == [3.5]


def test_packed_rows_have_the_position_of_each_cls(tokenizer):
    task = Classify(labels=LABELS, kind="multi_label", length=16, examples_per_row=3)
    made = [example(task, tokenizer, {"text": f"w{n} w9", "label": [n]}) for n in (0, 2)]
    batch = lanes.empty_batch(1, task.row)
    lanes.write_row(batch, 0, made, task.row)
    assert batch["cls_positions"].tolist() == [[0, 4, 0]] and batch["weights"].tolist() == [[1, 1, 0]]
    assert batch["targets"].reshape(3, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert batch["segments"][0, :9].tolist() == [1] * 4 + [2] * 4 + [0]


def test_a_text_without_words_gives_no_example(tokenizer):
    task = Classify(labels=LABELS)
    assert task.examples(task.encode({"text": " ", "label": 0}, tokenizer), Visit(tokenizer, None, None)) == []


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"text": "w1", "label": "perhaps"}, "label 'perhaps': unknown; expected one of no, maybe, yes"),
        ({"text": "w1", "label": 3}, "label 3: unknown"),
        ({"text": "w1", "label": -1}, "label -1: unknown"),
        ({"text": "w1", "label": True}, "label True: unknown"),
        ({"text": "w1", "class": 1}, "data.task.label='label': no such column; the columns are 'text', 'class'"),
    ],
)
def test_unknown_labels_are_refused(tokenizer, columns, words):
    with pytest.raises(InputError, match=words):
        Classify(labels=LABELS).encode(columns, tokenizer)


@pytest.mark.parametrize(
    "kind, label, words",
    [
        ("multi_label", "yes", "holds 'yes'; expected a list of labels"),
        ("regression", "high", "holds 'high'; expected a number"),
    ],
)
def test_targets_of_a_wrong_type_are_refused(tokenizer, kind, label, words):
    with pytest.raises(InputError, match=words):
        Classify(labels=("yes",), kind=kind).encode({"text": "w1", "label": label}, tokenizer)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "task.labels"),
        ({"labels": ("a", "a")}, "without duplicates"),
        ({"labels": ("a",)}, "expected at least two labels"),
        ({"labels": ("a", "b"), "kind": "regression"}, "expected one name"),
        ({"labels": LABELS, "length": 3}, "data.task.length=3"),
    ],
)
def test_invalid_classify_fields_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Classify(**fields)


def test_a_source_of_one_class_is_refused(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "w1", "label": "yes"}\n' * 5)
    data = Data(JsonLines((str(tmp_path / "train.jsonl"),)), Classify(labels=LABELS), 2)
    with pytest.raises(InputError, match="every label is 'yes'; expected examples of at least two classes"):
        train_batches(data, tokenizer, 0, range(2))


def test_augmentation_deletes_swaps_and_drops(tokenizer):
    tokens = tokenizer.encode("w1x3 w2 w3 w4 w5 w6 w7 w8")
    pieces = set(tokens.tolist())
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shorter = TextAugmentation(deletion=0.9)(tokens, tokenizer, rng)
        assert 1 <= len(shorter) < len(tokens) and set(shorter.tolist()) <= pieces
        swapped = TextAugmentation(swap=0.5)(tokens, tokenizer, rng)
        assert sorted(swapped) == sorted(tokens)
        at = np.flatnonzero(swapped == tokens[0])[0]
        assert swapped[at + 1] == tokens[1]  # a word of two pieces stays one
        dropped = TextAugmentation(dropout=0.5)(tokens, tokenizer, rng)
        assert len(dropped) == len(tokens) and set(dropped[dropped != tokens].tolist()) <= {tokenizer.unk_id}
    assert (swapped != tokens).any()
    with pytest.raises(InputError, match=r"data\.task\.augmentation\.swap=1"):
        TextAugmentation(swap=1.0)


def test_text_augmentation_is_for_training_only(tokenizer, tmp_path):
    lines = [f'{{"text": "w{n} w{n + 1} w{n + 2} w{n + 3}", "label": {n % 2}}}' for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    source = JsonLines((str(tmp_path / "train.jsonl"),))
    task = Classify(labels=LABELS, length=16, augmentation=TextAugmentation(dropout=0.5))
    data = Data(source, task, 8)
    held_out = next(evaluation_batches(source, data, tokenizer, 0, range(8)))
    assert not (held_out["tokens"] == tokenizer.unk_id).any()
    with train_batches(data, tokenizer, 0, range(8)) as batches:
        first, second = next(batches)[0]["tokens"], next(batches)[0]["tokens"]
    assert (first == tokenizer.unk_id).any() and (second == tokenizer.unk_id).any()


@pytest.mark.parametrize(
    "value, holds",
    [
        ([0, 1, 0], [0, 1, 0]),
        ([0.0, 1.0, 1.0], [0, 1, 1]),
        ([True, False, False], [1, 0, 0]),
        ([0, 0, 0], [0, 0, 0]),
        (np.array([1, 1, 0]), [1, 1, 0]),
        (np.array([0.0, 0.0, 1.0], np.float32), [0, 0, 1]),
        ([2, 0], [1, 0, 1]),
        ([0, 2, 1], [1, 1, 1]),
        ([1], [0, 1, 0]),
        (["yes", "yes"], [0, 0, 1]),
        (["1", " no "], [1, 1, 0]),
        (["0", "1", "0"], [0, 1, 0]),
        (np.array(["1.0", " 0.0", "0"]), [1, 0, 0]),
        (["2", "0"], [1, 0, 1]),
    ],
)
def test_multi_label_lists_are_multi_hot_or_labels(tokenizer, value, holds):
    task = Classify(labels=LABELS, kind="multi_label")
    assert example(task, tokenizer, {"text": "w1", "label": value})["targets"].tolist() == holds


@pytest.mark.parametrize(
    "value, words",
    [
        ([1, 1], r"labels \[1, 1\]: an index is repeated; expected distinct indices, or 3 zeros and ones"),
        ([2, 2, 0], "an index is repeated"),
        (["yes", 2], "an index is repeated"),
        ([0, 1, 0, 0], "an index is repeated"),
        (["0", "1", "0", "0"], "an index is repeated"),
        ([True, False], "label True: unknown"),
        ([0.5, 0.5, 0], "label 0.5: unknown"),
        ([0, 1, 3], "label 3: unknown"),
    ],
)
def test_invalid_multi_label_lists_are_refused(tokenizer, value, words):
    with pytest.raises(InputError, match=words):
        Classify(labels=LABELS, kind="multi_label").encode({"text": "w1", "label": value}, tokenizer)


def test_numerals_in_lists_are_first_compared_with_names(tokenizer):
    task = Classify(labels=("1", "0", "2"), kind="multi_label")
    assert example(task, tokenizer, {"text": "w1", "label": ["0", "1", "0"]})["targets"].tolist() == [1, 1, 0]


def test_ambiguous_lists_of_two_labels_are_refused(tokenizer, tmp_path):
    """[0, 1] of two labels is the second alone; beside [0], which is a number, it could be both."""
    path = tmp_path / "a.jsonl"
    task = Classify(labels=("a", "b"), kind="multi_label", length=8)
    assert example(task, tokenizer, {"text": "w1", "label": [0, 1]})["targets"].tolist() == [0, 1]

    def start(*labels):
        path.write_text("".join(f'{{"text": "w1", "label": {json.dumps(label)}}}\n' for label in labels))
        train_batches(Data(JsonLines((str(path),)), task, 2), tokenizer, 0, range(2)).close()

    start([0, 1], [1, 1], [0, 0], [1, 0])
    start([0], [1], [])
    start(["a"], ["a", "b"], [])
    start([0.0, 1.0], [])  # Floats are not indices of labels.
    for other in ([0], [], ["1"]):
        with pytest.raises(
            InputError, match=r"a.jsonl: line 2: \[0, 1\] may be .*a.jsonl: line 1 has indices, \["
        ) as caught:
            start(other, [0, 1], [1, 1])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["1", " 1", "1.0", 1.0, " maybe\t", np.float32(1)])
def test_labels_from_tables_are_read_as_indices(tokenizer, label):
    assert example(Classify(labels=LABELS), tokenizer, {"text": "w1", "label": label})["targets"].tolist() == [1]


def test_label_index_compares_names_first():
    assert [label_index(label, ("1", "2", " 0")) for label in ("1", "2", "0", 0, 1)] == [0, 1, 2, 0, 1]
    for label in ("3", "-1", "1e0", "²", "", "1_0", 1.5, "1.5"):
        with pytest.raises(InputError, match="unknown"):
            label_index(label, ("1", "2", " 0"))


def test_messages_list_the_first_labels_only():
    with pytest.raises(InputError, match=r"expected one of c0, .*, c9 and 990 more, or an index from 0"):
        label_index("x", [f"c{n}" for n in range(1000)])


def test_check_classes_finds_a_rare_class(tokenizer, tmp_path):
    """Two rows of 3,000 have the second class, where no sample of 1,000 evenly spaced ones sees them."""
    sample = set(np.linspace(0, 2999, 1000).astype(int))
    rare = [n for n in range(1500, 3000) if n not in sample][:2]
    rows = [f"w{n},{'yes' if n in rare else 'no'}" for n in range(3000)]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["text,label", *rows]))
    data = Data(Csv((str(path),)), Classify(labels=LABELS, length=8), 2)
    train_batches(data, tokenizer, 0, range(2)).close()
    path.write_text("\n".join(["text,label", *rows]).replace("yes", "no"))
    with pytest.raises(InputError, match="every label is 'no'; expected examples of at least two classes"):
        train_batches(data, tokenizer, 0, range(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf", "NaN", 1e39, 10**400])
def test_regression_targets_must_be_finite(tokenizer, value):
    task = Classify(labels=("likeness",), kind="regression")
    with pytest.raises(
        InputError, match=r"data\.task\.label='label': the column holds .*; expected a finite float32 number"
    ):
        task.encode({"text": "w1", "label": value}, tokenizer)


def test_rows_without_a_finite_number_are_listed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nw1,2\nw2,nan\nw3,\nw4,1e99\n")
    with pytest.raises(InputError) as caught:
        check_documents(Data(Csv((str(path),)), Classify(labels=("likeness",), kind="regression"), 1))
    assert [part.split(": ", 2)[1] for part in str(caught.value).split("; ") if part.startswith(str(path))] == [
        "line 3",
        "line 4",
        "line 5",
    ]
