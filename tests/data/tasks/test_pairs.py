"""Pairs of texts side by side."""

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.transforms.text import TextAugmentation
from jaxformer.errors import InputError


def examples(task, tokenizer, **columns):
    return task.examples(task.encode(columns, tokenizer), Visit(tokenizer, np.random.default_rng(0), None))


def test_text_pairs_have_special_tokens(tokenizer):
    (example,) = examples(TextPairs(length=5), tokenizer, first="w1 w2", second="w3 w4 w5 w6")
    spelt = {name: [tokenizer.pieces[number] for number in example[name]] for name in ("inputs", "tokens")}
    assert spelt == {"inputs": ["[CLS]", "w1", "w2", "[SEP]"], "tokens": ["[CLS]", "w3", "w4", "w5", "[SEP]"]}
    assert example["weights"].tolist() == [1] and example.keys() == TextPairs().row.keys()


def test_text_pairs_input_length_may_be_shorter(tokenizer):
    task = TextPairs(length=6, input_length=4)
    (example,) = examples(task, tokenizer, first="w1 w2 w3 w4", second="w3 w4 w5 w6")
    spelt = {name: [tokenizer.pieces[number] for number in example[name]] for name in ("inputs", "tokens")}
    assert spelt == {"inputs": ["[CLS]", "w1", "w2", "[SEP]"], "tokens": ["[CLS]", "w3", "w4", "w5", "w6", "[SEP]"]}
    assert (task.row["inputs"].capacity, task.row["tokens"].capacity) == (4, 6)


def test_text_pairs_are_augmented_in_training_only(tokenizer):
    task = TextPairs(augmentation=TextAugmentation(dropout=0.5))
    words = " ".join(f"w{number}" for number in range(1, 9))
    (example,) = examples(task, tokenizer, first=words, second=words)
    assert tokenizer.unk_id in example["inputs"] and tokenizer.unk_id in example["tokens"]
    assert example["inputs"].tolist() != example["tokens"].tolist()
    (example,) = examples(task.for_evaluation(), tokenizer, first=words, second=words)
    assert tokenizer.unk_id not in example["inputs"] and tokenizer.unk_id not in example["tokens"]


def test_text_pairs_may_repeat_one_column(tokenizer):
    (example,) = examples(TextPairs(first="text", second="text"), tokenizer, text="w1 w2")
    assert example["inputs"].tolist() == example["tokens"].tolist()


def test_an_empty_text_gives_no_pair(tokenizer):
    assert examples(TextPairs(), tokenizer, first="w1", second=" ") == []


def test_invalid_text_pairs_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"data.task.second='second': no such column; the columns are 'first'"):
        examples(TextPairs(), tokenizer, first="w1")
    with pytest.raises(InputError, match=r"data.task.length=2: expected at least 3"):
        TextPairs(length=2)
    with pytest.raises(InputError, match=r"data.task.input_length=2: expected at least 3"):
        TextPairs(input_length=2)
