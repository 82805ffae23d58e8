import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError


def text(count, start=0):
    return " ".join(f"w{number}" for number in range(start, start + count))


def examples(task, tokenizer, example, seed=0):
    """The examples of a task, which has looked at the tokenizer and keeps what its row promises."""
    task.check(tokenizer, pack=False)
    found = task.examples(task.encode(example, tokenizer), Visit(tokenizer, np.random.default_rng(seed), None))
    for arrays in found:
        assert set(arrays) == set(task.row)
        for key, feature in task.row.items():
            assert arrays[key].dtype == feature.dtype and arrays[key].ndim == 1
            assert 1 <= len(arrays[key]) <= feature.capacity
        assert len(arrays["tokens"]) == len(arrays["targets"]) == len(arrays["weights"])
    return found


@given(st.integers(1, 60), st.integers(1, 20), st.booleans())
def test_every_token_is_predicted_once_from_those_before_it(tokenizer, count, length, beginning):
    found = examples(NextToken(length, beginning=beginning), tokenizer, {"text": text(count)})
    ids = [*tokenizer.encode(text(count)), tokenizer.eos_id]
    ids = [tokenizer.bos_id, *ids] if beginning else ids
    assert np.concatenate([example["targets"] for example in found]).tolist() == ids[1:]
    assert np.concatenate([example["tokens"] for example in found]).tolist() == ids[:-1]
    assert all(np.all(example["weights"] == 1) for example in found)
    assert [len(example["tokens"]) for example in found[:-1]] == [length] * (len(found) - 1)


def test_documents_of_sentences_and_of_other_columns(tokenizer):
    whole = examples(NextToken(9), tokenizer, {"text": " w1 w2\nw3 \n"})
    assert tokenizer.decode(whole[0]["tokens"]) == "w1 w2 w3"
    for task, example in [
        (NextToken(9), {"sentences": ["w1 w2", "w3"], "title": "w9"}),
        (NextToken(9, column="body"), {"body": "w1 w2 w3", "text": "w9"}),
    ]:
        (found,) = examples(task, tokenizer, example)
        assert np.array_equal(found["tokens"], whole[0]["tokens"])
    for task in (NextToken(9), PrefixLM(9), PrefixLM(9, 9)):
        assert examples(task, tokenizer, {"text": " \n "}) == []


def test_a_missing_column_is_named(tokenizer):
    example = {"en": "w1", "de": "w2", "count": 3}
    for task, words in [
        (NextToken(), "data.task.column=None: no column 'sentences' or 'text'; the columns are 'en', 'de', 'count'"),
        (PrefixLM(column="fr"), "data.task.column='fr': no such column; the columns are 'en', 'de', 'count'"),
        (TextToText(targets="de"), "data.task.inputs='inputs': no such column; the columns are 'en', 'de', 'count'"),
        (
            TextToText(inputs="en", targets="count"),
            "data.task.targets='count': the column holds 3; expected a text; the columns are",
        ),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            task.encode(example, tokenizer)
        assert "\n" not in str(caught.value)


@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 99))
def test_prefix_lm_predicts_the_rest_in_a_decoder(tokenizer, count, length, seed):
    found = examples(PrefixLM(length), tokenizer, {"text": text(count)}, seed)
    ids = [*tokenizer.encode(text(count)), tokenizer.eos_id]
    assert np.concatenate([example["targets"] for example in found]).tolist() == ids[1:]
    for example in found:
        assert np.array_equal(example["tokens"][1:], example["targets"][:-1])
        given_ = int(example["prefix"].sum())
        assert given_ >= 1 and np.all(example["prefix"][:given_] == 1)
        # Tokens of the prefix are not predicted, and all after it are.
        assert np.array_equal(example["weights"], np.arange(len(example["tokens"])) >= given_ - 1)


@given(st.integers(2, 60), st.integers(2, 20), st.integers(2, 20), st.integers(0, 99))
def test_prefix_lm_predicts_the_rest_with_an_encoder(tokenizer, count, input_length, length, seed):
    found = examples(PrefixLM(length, input_length), tokenizer, {"text": text(count)}, seed)
    restored = []
    for example in found:
        *prefix, end = example["inputs"]
        *rest, other_end = example["targets"]
        assert end == other_end == tokenizer.eos_id and prefix and rest
        assert example["tokens"].tolist() == [tokenizer.pad_id, *rest]
        assert np.all(example["weights"] == 1)
        restored += prefix + rest
    ids = tokenizer.encode(text(count)).tolist()
    assert restored == ids or (restored == ids[:-1] and count % min(input_length, length) == 1)


def test_prefix_lm_splits_at_every_token(tokenizer):
    tasks = {PrefixLM(8): range(1, 9), PrefixLM(9, 9): range(1, 9)}
    for task, expected in tasks.items():
        sizes = set()
        for seed in range(200):
            (example,) = examples(task, tokenizer, {"text": text(9 if task.input_length else 8)}, seed)
            sizes.add(len(example["inputs"]) - 1 if task.input_length else int(example["prefix"].sum()))
        assert sizes == set(expected)


PAIR = {"inputs": "w1 w2 w3", "targets": "w4 w5"}


def test_text_to_text_rows_with_an_encoder(tokenizer):
    (example,) = examples(TextToText(8, 6, prefix="w9 w8 "), tokenizer, PAIR)
    end, pad = tokenizer.eos_id, tokenizer.pad_id
    assert example["inputs"].tolist() == [*tokenizer.encode("w9 w8 w1 w2 w3"), end]
    assert example["targets"].tolist() == [*tokenizer.encode("w4 w5"), end]
    assert example["tokens"].tolist() == [pad, *tokenizer.encode("w4 w5")]
    assert example["weights"].tolist() == [1, 1, 1]


def test_text_to_text_rows_without_an_encoder(tokenizer):
    (example,) = examples(TextToText(None, 8), tokenizer, PAIR)
    end = tokenizer.eos_id
    ids = [*tokenizer.encode("w1 w2 w3"), end, *tokenizer.encode("w4 w5"), end]
    assert example["tokens"].tolist() == ids[:-1] and example["targets"].tolist() == ids[1:]
    assert example["prefix"].tolist() == [1, 1, 1, 1, 0, 0]
    assert example["weights"].tolist() == [0, 0, 0, 1, 1, 1]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 10) | st.none(), st.integers(3, 10))
def test_long_pairs_are_cut_or_dropped(tokenizer, inputs, targets, input_length, length):
    pair = {"inputs": text(inputs), "targets": text(targets, 50)}
    (example,) = examples(TextToText(input_length, length), tokenizer, pair)
    dropping = examples(TextToText(input_length, length, too_long="drop"), tokenizer, pair)
    end = tokenizer.eos_id
    if input_length is None:
        ids = [*example["tokens"], example["targets"][-1]]
        middle = ids.index(end) + 1
        read, written = ids[:middle], ids[middle:]
        fits = inputs + targets + 1 <= length
        assert fits or len(example["tokens"]) == length
    else:
        read, written = example["inputs"].tolist(), example["targets"].tolist()
        fits = inputs < input_length and targets < length
    assert read[-1] == written[-1] == end and len(read) > 1 and len(written) > 1
    assert read[:-1] == tokenizer.encode(pair["inputs"]).tolist()[: len(read) - 1]
    assert written[:-1] == tokenizer.encode(pair["targets"]).tolist()[: len(written) - 1]
    assert len(dropping) == fits and fits == (len(read) == inputs + 1 and len(written) == targets + 1)


@pytest.mark.parametrize("pair", [{"inputs": " ", "targets": "w1"}, {"inputs": "w1", "targets": ""}])
def test_pairs_without_text_give_no_example(tokenizer, pair):
    assert examples(TextToText(prefix="w7: "), tokenizer, pair) == []


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: NextToken(0), "data.task.length=0: expected at least 1"),
        (lambda: PrefixLM(1), "data.task.length=1: expected at least 2"),
        (lambda: PrefixLM(8, 1), "data.task.input_length=1: expected at least 2"),
        (lambda: TextToText(1), "data.task.input_length=1: expected at least 2"),
        (lambda: TextToText(8, 1), "data.task.length=1: expected at least 2"),
        (lambda: TextToText(None, 2), "data.task.length=2: expected at least 3"),
    ],
)
def test_invalid_language_task_fields_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_missing_special_tokens_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    bare = WordPiece(path=str(tmp_path)).build(None, str(tmp_path / "a"))
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n<eos>\n")
    ending = WordPiece(path=str(tmp_path)).build(None, str(tmp_path / "b"))
    for task in (NextToken(), PrefixLM(), TextToText()):
        with pytest.raises(InputError, match="has no </s> or <eos>"):
            task.check(bare, pack=False)
    NextToken().check(ending, pack=True)
    with pytest.raises(InputError, match="has no <s> or <bos>"):
        NextToken(beginning=True).check(ending, pack=True)
    with pytest.raises(InputError, match=r"has no \[PAD\] or <pad>"):
        TextToText().check(ending, pack=True)
