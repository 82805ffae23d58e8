"""Tokenizers that are stored in a tokenizer.json and mark words as SentencePiece does: U+2581 at the beginning of a
word.
"""

import functools

import numpy as np

from jaxformer.data.tokenizers import special_tokens
from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer
from jaxformer.data.tokenizers.sentence_piece import SPACE, readable, starts_word
from jaxformer.data.tokenizers.tokenizer import Ids


class MetaspaceTokenizer(JsonTokenizer):
    """Unigram or BPE tokenizer whose vocabulary entries mark the start of a word with U+2581, as in SentencePiece."""

    def _starts(self, pieces: list[str]) -> np.ndarray:
        return np.array([starts_word(piece) for piece in pieces])

    @functools.cached_property
    def _shown(self) -> dict[int, str]:
        unknown = [self.roles.get("unk"), *special_tokens.NAMES["unk"]]
        found = {number: "⁇ " for number in self.special_ids if self.pieces[number] in unknown}  # As in SentencePiece.
        return super()._shown | found

    def decode(self, ids: Ids) -> str:
        pieces = [
            SPACE + self._shown[number] if number in self._shown else self.pieces[number]
            for number in self._visible(ids)
        ]
        return self._tokenizer.decoder.decode(pieces).replace(SPACE, " ").strip()

    def piece(self, token: int) -> str:
        return readable(self.pieces[token], self.word_start[token])
