import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs, Sentences
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError


def examples(task, tokenizer, texts, seed=0):
    encoded = [task.encode({"sentences": text}, tokenizer) for text in texts]
    rng = np.random.default_rng(seed)

    def draw(rng):
        return encoded[1 + rng.integers(len(encoded) - 1)]

    return task.examples(encoded[0], Visit(tokenizer, rng, draw))


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("whole_word", [True, False])
def test_masked_lm_examples(tokenizer, documents, next_sentence, whole_word):
    task = MaskedSentencePairs(length=24, predictions=4, next_sentence=next_sentence, whole_word=whole_word)
    texts = documents(30)
    words_of = [set(" ".join(text).split()) for text in texts]
    labels = []
    for seed in range(40):
        for example in examples(task, tokenizer, texts, seed):
            assert set(example) == set(task.row)
            for key, feature in task.row.items():
                assert example[key].dtype == feature.dtype
                assert example[key].ndim == 1 and len(example[key]) <= feature.capacity
            tokens = example["tokens"].copy()
            at = example["masked_positions"]
            assert 1 <= len(at) <= 4 and np.all(example["weights"] == 1)
            tokens[at] = example["targets"]
            assert tokens[0] == tokenizer.cls_id and tokens[-1] == tokenizer.sep_id
            first, *second = np.split(tokens, np.flatnonzero(tokens == tokenizer.sep_id) + 1)[:-1]
            types = [np.full(len(part), kind) for kind, part in enumerate([first, *second])]
            assert np.array_equal(example["token_types"], np.concatenate(types))
            assert {tokenizer.pieces[token] for token in first[1:-1]} <= words_of[0]
            if next_sentence:
                (label,), (part,) = example["next_sentence"], second
                assert example["cls_positions"] == 0 and example["next_sentence_weights"] == 1
                own = {tokenizer.pieces[token] for token in part[:-1]} <= words_of[0]
                assert own == (label == 0)
                labels.append(label)
            else:
                assert not second
    assert not next_sentence or 0.35 < np.mean(labels) < 0.65


def test_masked_lm_skips_single_sentences_and_special_tokens(tokenizer):
    task = MaskedSentencePairs(length=16, predictions=3)
    assert examples(task, tokenizer, [["w1 w2"], ["w3"]]) == []
    assert examples(task, tokenizer, [["w1 w2", " "], ["w3"]]) == []
    alone = MaskedSentencePairs(length=16, predictions=3, next_sentence=False)
    assert len(examples(alone, tokenizer, [["w1 w2"]])) == 1
    assert examples(alone, tokenizer, [["[UNK] ☃"]]) == []  # nothing there to be learned
    assert examples(alone, tokenizer, [[]]) == []


def test_sentences_are_encoded_on_first_use(tokenizer):
    asked = []

    class Counting:
        def encode(self, text):
            asked.append(text)
            return tokenizer.encode(text)

        def encode_batch(self, texts):
            return [self.encode(text) for text in texts]

    document = Sentences(["w1", "w2 w3", "w4"], Counting())
    assert len(document) == 3 and document.size == 9
    assert tokenizer.decode(document[1]) == "w2 w3" and len(document[1]) == 2
    assert asked == ["w2 w3"]
    assert [len(tokens) for tokens in document.tokens] == [1, 2, 1]
    assert asked == ["w2 w3", "w1", "w4"]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"length": 4}, "data.task.length=4: .*at least 5"),
        ({"length": 2, "next_sentence": False, "predictions": 1}, "at least 3"),
        ({"length": 16}, "data.task.predictions=20: expected 1 to data.task.length=16"),
        ({"predictions": 0}, "data.task.predictions=0"),
        ({"mask_rate": 0.0}, "task.mask_rate"),
        ({"mask_rate": 1.0}, "task.mask_rate"),
        ({"short_rate": 1.5}, "task.short_rate"),
        ({"examples_per_row": 0}, "task.examples_per_row"),
    ],
)
def test_invalid_masked_lm_fields_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        MaskedSentencePairs(**fields)


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\n")
    tokenizer = WordPiece(path=str(tmp_path)).build(None, str(tmp_path / "kept"))
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        MaskedSentencePairs().check(tokenizer, pack=False)


def test_several_examples_a_row_need_packing(tokenizer):
    with pytest.raises(InputError, match=r"examples_per_row=4: without data.pack"):
        MaskedSentencePairs(examples_per_row=4).check(tokenizer, pack=False)
    with pytest.raises(InputError, match=r"data.pack=True: expected data.task.examples_per_row above 1"):
        MaskedSentencePairs().check(tokenizer, pack=True)
    MaskedSentencePairs(examples_per_row=4).check(tokenizer, pack=True)
    MaskedSentencePairs(next_sentence=False).check(tokenizer, pack=True)
