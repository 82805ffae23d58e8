"""A text with few different pieces gives a smaller vocabulary and a note."""

import re

import pytest
import sentencepiece

from jaxformer.data.tokenizers import SentencePiece
from jaxformer.errors import InputError

TEXT = "the cat sat on the mat and the dog ran off"


def build(folder, text=TEXT, **fields):
    return SentencePiece(**fields).build(lambda: [{"text": text}] * 5, str(folder / "tokenizer"))


def most_pieces(folder, text=TEXT):
    """The characters that SentencePiece counts in the text."""
    (folder / "text.txt").write_text(f"{text}\n" * 5)
    with pytest.raises(RuntimeError) as caught:
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"),
            model_prefix=str(folder / "m"),
            vocab_size=4096,
            bos_id=-1,
            eos_id=-1,
            pad_id=0,
            unk_id=1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            minloglevel=2,
        )
    return int(re.search(r"<= (\d+)", str(caught.value))[1])


@pytest.mark.parametrize("sentinels", [0, 3])
def test_the_vocabulary_is_capped_with_a_note(tmp_path, capsys, sentinels):
    tokenizer = build(tmp_path, vocab=4096 + sentinels, sentinels=sentinels)
    assert tokenizer.vocab_size == most_pieces(tmp_path) + sentinels
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and len(tokenizer.sentinel_ids) == sentinels
    assert capsys.readouterr().err == (
        f"note: tokenizer.vocab={4096 + sentinels}: the text has fewer different pieces; the vocabulary has "
        f"{tokenizer.vocab_size}\n"
    )


def test_byte_pairs_are_capped_too(tmp_path, capsys):
    tokenizer = build(tmp_path, vocab=5000, model_type="bpe")
    assert 22 < tokenizer.vocab_size < 5000 and "note: tokenizer.vocab=5000" in capsys.readouterr().err


def test_enough_pieces_give_no_note(tmp_path, capsys):
    assert build(tmp_path, vocab=20).vocab_size == 20
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sentinels", [0, 2])
def test_too_few_pieces_for_the_characters_say_how_many(tmp_path, sentinels):
    with pytest.raises(
        InputError, match=rf"tokenizer\.vocab=8.*the text's characters alone need {19 + sentinels}; expected"
    ):
        build(tmp_path, vocab=8, sentinels=sentinels)
    assert build(tmp_path, vocab=19 + sentinels, sentinels=sentinels).vocab_size == 19 + sentinels
