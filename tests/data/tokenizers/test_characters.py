"""The tokenizer of characters: its files, and texts outside of its vocabulary."""

import json
import pickle
import re

import numpy as np
import pytest

from jaxformer.data.tokenizers import Characters, load_tokenizer
from jaxformer.data.tokenizers.characters import CharacterTokenizer
from jaxformer.errors import InputError

VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6, "'": 7}


def test_texts_are_spelled_and_read_back(tmp_path):
    tokenizer = Characters("abc'").build(lambda: [], str(tmp_path / "tokenizer"))
    assert tokenizer.pieces == ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c", "'"]
    ids = tokenizer.encode("ab c'x")
    assert ids.tolist() == [5, 6, 4, 7, 8, 3] and ids.dtype == np.int32
    assert tokenizer.decode([1, 5, 6, 0, 4, 4, 7, 3, 99]) == "ab c"
    assert tokenizer.encode("<pad>|").tolist() == [3, 3, 5, 3, 3, 4]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id, tokenizer.delimiter_id) == (0, 3, 2, 4)
    found, offsets = tokenizer.encode_with_offsets("a b")
    assert found.tolist() == [5, 4, 6] and offsets.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert [tokenizer.piece(number) for number in (4, 5)] == ["␣", "a"]
    assert tokenizer.unknown("xa xB") == ["x", "B"] and not tokenizer.is_upper_case
    for again in (load_tokenizer(str(tmp_path / "tokenizer")), pickle.loads(pickle.dumps(tokenizer))):
        assert again.pieces == tokenizer.pieces and again.settings == tokenizer.settings
    assert Characters("xyz").build(lambda: [], str(tmp_path / "tokenizer")).pieces == tokenizer.pieces


def test_settings_of_a_folder_are_read(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    plain = Characters(path=str(tmp_path)).build(lambda: [], str(tmp_path / "one"))
    assert plain.is_upper_case and plain.encode("Ba").tolist() == [6, 3] and plain.decode([6]) == "B"
    settings = {"do_lower_case": True, "pad_token": {"content": "'"}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    lower = Characters(path=str(tmp_path / "vocab.json")).build(lambda: [], str(tmp_path / "two"))
    assert lower.encode("ab'").tolist() == [5, 6, 3] and lower.decode([6]) == "b" and not lower.is_upper_case
    assert lower.pad_id == 7 and load_tokenizer(str(tmp_path / "two")).decode([6]) == "b"


@pytest.mark.parametrize(
    "vocab, settings, said",
    [
        ({"<pad>": 0, "|": 2}, {}, "expected a map of characters to the ids 0, 1, 2"),
        ({"<pad>": 0, "a": 1}, {}, "the vocabulary has no word_delimiter_token, '|'"),
        ({"a": 0, "|": 1}, {}, "the vocabulary has no pad_token, '<pad>'"),
        ({"<pad>": 0, "|": 1, "ch": 2}, {}, "'ch' is not a single character"),
        ({"en": {"a": 0}}, {}, "vocabularies of several languages are not supported"),
        (VOCAB, {"tokenizer_class": "BertTokenizer"}, "tokenizer_class='BertTokenizer' is not supported"),
    ],
)
def test_a_vocabulary_is_refused_in_a_line(vocab, settings, said, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=said.replace("|", r"\|")) as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files, place, said",
    [
        ({"vocab.json": "{"}, "vocab.json", "expected JSON"),
        ({"vocab.json": "[" * 100_000}, "vocab.json", "nested too deeply"),
        ({"vocab.json": "{}", "tokenizer_config.json": "[1]"}, "tokenizer_config.json", "a JSON object of settings"),
        (
            {"vocab.json": json.dumps(VOCAB), "tokenizer_config.json": '{"pad_token": [0]}'},
            "tokenizer_config.json",
            "pad_token=[0]: expected a text",
        ),
        ({"phonemes.json": '["a"'}, "phonemes.json", "expected JSON"),
        ({"phonemes.json": "[" * 100_000}, "phonemes.json", "nested too deeply"),
        ({"phonemes.json": '["a", "a"]'}, "phonemes.json", "expected different phonemes"),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_a_line(files, place, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_tokenizer(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / place}: ") and "\n" not in str(caught.value)


def test_an_alphabet_is_refused_in_a_line():
    for alphabet, said in (("", "empty"), ("aba", "'a' occurs twice"), ("a b", "' ' is not allowed")):
        with pytest.raises(InputError, match=f"tokenizer.alphabet={alphabet!r}: {said}"):
            Characters(alphabet)


def test_a_vocabulary_without_an_unknown_token_refuses_other_characters():
    tokenizer = CharacterTokenizer({"<pad>": 0, "|": 1, "a": 2})
    assert tokenizer.encode("a a").tolist() == [2, 1, 2]
    with pytest.raises(InputError, match="the vocabulary has no 'b' and no unknown token"):
        tokenizer.encode("ab")
