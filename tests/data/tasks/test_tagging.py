"""Tags of words on tokens: which token carries one, where long sentences are cut, what is refused."""

import itertools

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.tagging import TagTokens, encode_words, windows
from jaxformer.errors import InputError

LABELS = ("O", "B-x", "I-x", "B-y", "I-y")


def examples(task, tokenizer, words, tags):
    document = task.encode({"words": words, "tags": tags}, tokenizer)
    return task.examples(document, Visit(tokenizer, np.random.default_rng(0), None))


def test_the_first_token_of_a_word_carries_its_tag(tokenizer):
    (example,) = examples(TagTokens(LABELS), tokenizer, ["w1x0x1", "w2", "w3x2"], ["B-x", "I-x", "O"])
    spelt = [tokenizer.pieces[number] for number in example["tokens"]]
    assert spelt == ["[CLS]", "w1", "##x0", "##x1", "w2", "w3", "##x2", "[SEP]"]
    assert example["weights"].tolist() == [0, 1, 0, 0, 1, 1, 0, 0]
    assert example["targets"].tolist() == [0, 1, 0, 0, 2, 0, 0, 0]
    assert example["weights"].dtype == np.float32 and example["targets"].dtype == np.int32
    assert TagTokens(LABELS).row.keys() == example.keys()


def test_tags_may_be_indices(tokenizer):
    named, numbered = (
        examples(TagTokens(LABELS), tokenizer, ["w1", "w2"], tags)[0]["targets"] for tags in (["I-y", "O"], [4, 0])
    )
    assert named.tolist() == numbered.tolist() == [0, 4, 0, 0]


def test_a_word_without_a_token_shifts_no_tag(tokenizer):
    words = encode_words(["w1", "\x00", "w2"], tokenizer, [1, 2, 3])
    assert [tokenizer.pieces[number] for number in words.tokens] == ["w1", "w2"]
    assert words.tags.tolist() == [1, 3] and words.owners.tolist() == [0, 2]


def test_a_sentence_without_words_gives_no_example(tokenizer):
    assert examples(TagTokens(LABELS), tokenizer, [], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_windows_cover_all_tokens_and_begin_with_words(seed):
    rng = np.random.default_rng(seed)
    first = rng.random(100) < 0.4
    first[0] = True
    cuttable = first & (rng.random(100) < 0.5)
    parts = windows(first, 12, cuttable)
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(100))
    assert max(part.stop - part.start for part in parts) <= 12
    for before, part in itertools.pairwise(parts):
        later = slice(before.start + 1, before.start + 13)
        assert cuttable[part.start] or not cuttable[later].any()
        assert first[part.start] or not first[later].any()


def test_a_word_longer_than_a_window_is_cut(tokenizer):
    parts = examples(TagTokens(LABELS, length=5), tokenizer, ["w1" + "x1" * 7, "w2"], ["B-x", "O"])
    assert [len(part["tokens"]) - 2 for part in parts] == [3, 3, 3]
    assert sum(part["weights"].sum() for part in parts) == 2


def test_windows_do_not_cut_entities_that_fit(tokenizer):
    words, tags = [f"w{n}" for n in range(9)], ["O", "O", "B-x", "I-x", "I-x", "O", "B-x", "I-x", "I-x"]
    parts = examples(TagTokens(LABELS, length=6), tokenizer, words, tags)
    assert [part["targets"][1:-1].tolist() for part in parts] == [[0, 0], [1, 2, 2, 0], [1, 2, 2]]


@pytest.mark.parametrize(
    "example, message",
    [
        ({"words": ["w1"], "tags": ["Z"]}, "label 'Z': unknown; expected one of O, B-x"),
        ({"words": ["w1"], "tags": [5]}, "label 5: unknown"),
        ({"words": ["w1", "w2"], "tags": ["O"]}, "data.task.tags='tags': 2 words in 'words' and 1 tags: 'w1 w2'"),
        (
            {"words": "w1 w2", "tags": ["O"]},
            "data.task.words='words': the column holds 'w1 w2'; expected a list; the columns are 'words', 'tags'",
        ),
        ({"words": ["w1"]}, "data.task.tags='tags': no such column; the columns are 'words'"),
    ],
)
def test_errors_in_sentences_are_one_line(example, message, tokenizer):
    with pytest.raises(InputError) as caught:
        TagTokens(LABELS).encode(example, tokenizer)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_invalid_tag_labels_are_refused():
    with pytest.raises(InputError, match="without duplicates"):
        TagTokens(("a", "a"))
    with pytest.raises(InputError, match=r"data.task.length=2: expected at least 3"):
        TagTokens(LABELS, length=2)
