"""Marian tokenizer (Junczys-Dowmunt et al. 2018): separate SentencePiece models for the source and the target language,
which share one vocabulary of ids.
"""

import copy
import json

import numpy as np

from jaxformer.data.tokenizers.sentence_piece import SPACE, readable, spelt, starts_word
from jaxformer.data.tokenizers.tokenizer import Ids, Tokenizer
from jaxformer.errors import InputError


class MarianTokenizer(Tokenizer):
    """Tokenizer of a Marian translation model. It encodes texts in the source language. Its property `target` is a
    tokenizer that encodes texts in the target language. Both tokenizers decode ids to text in the target language.

    The vocabulary file maps the entries of both languages to ids. A source text may begin with the name of the target
    language, such as `>>fra<<`.
    """

    file = "source.spm"
    FILES = (file, "target.spm", "vocab.json")

    def __init__(self, source: bytes, target: bytes, vocab: bytes):
        import sentencepiece

        self._contents = source, target, vocab
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_proto=model) for model in (source, target)
        )
        self._processor = self._source
        ids = json.loads(vocab)
        if sorted(ids.values()) != list(range(len(ids))) or "<unk>" not in ids:
            raise InputError("vocab.json: expected a map of pieces, including <unk>, to the ids 0, 1, 2, ...")
        pieces = sorted(ids, key=ids.get)
        languages = [piece for piece in pieces if piece.startswith(">>") and piece.endswith("<<")]
        super().__init__(pieces, np.array([starts_word(piece) for piece in pieces]), special=languages)

    def __reduce__(self):
        return type(self), self._contents

    @property
    def target(self) -> "MarianTokenizer":
        """Tokenizer that encodes texts in the target language, for example reference translations."""
        other = copy.copy(self)
        other._processor = self._target
        return other

    def encode(self, text: str) -> np.ndarray:
        language, text = self._divided(text)
        pieces = self._processor.encode(text, out_type=str)
        return np.array([*language, *(self._ids.get(piece, self.unk_id) for piece in pieces)], np.int32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        language, rest = self._divided(text)
        found, offsets = spelt(self._processor, rest)
        ids = [*language, *(self._ids.get(piece, self.unk_id) for piece, _ in found)]
        before = len(text) - len(rest)
        stretches = np.concatenate([np.array([(0, before)] * len(language), np.int32).reshape(-1, 2), offsets + before])
        return np.array(ids, np.int32), stretches.astype(np.int32)

    def _divided(self, text: str) -> tuple[list[int], str]:
        """Splits a text into the language token at its beginning, such as `>>fra<<`, and the rest. Returns a list with
        the id of the language token, empty if there is none, and the rest of the text.
        """
        end = text.find("<<") + 2
        if not text.startswith(">>") or end < 2:
            return [], text
        return [self._ids.get(text[:end], self.unk_id)], text[end:]

    def decode(self, ids: Ids) -> str:
        shown = [int(number) for number in ids if 0 <= number < self.vocab_size and not self._hidden(int(number))]
        text = self._target.decode_pieces([self.pieces[number] for number in shown])
        return text.replace(SPACE, " ").strip()

    def _hidden(self, number: int) -> bool:
        return bool(self.is_special[number]) and number != self.unk_id

    def piece(self, token: int) -> str:
        return readable(self.pieces[token], self.word_start[token])

    def serialize(self) -> bytes:
        return self._contents[0]

    def files(self) -> dict[str, bytes]:
        return dict(zip(self.FILES, self._contents, strict=True))
