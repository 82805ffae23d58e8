"""SentencePiece tokenizer (Kudo & Richardson 2018)."""

import functools

import numpy as np

from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.tokenizer import Ids, Tokenizer, characters, without_spaces
from jaxformer.errors import InputError

SPACE = "\u2581"
"""Character that SentencePiece writes in place of a space."""


def starts_word(piece: str) -> bool:
    """Returns whether a vocabulary entry begins a word. An entry without letters and digits, such as punctuation,
    counts as a separate word.
    """
    return piece.startswith(SPACE) or not any(map(str.isalnum, piece))


def readable(piece: str, starts: bool) -> str:
    """Converts a vocabulary entry to readable text: "▁Hello" to "Hello", "ing" to "…ing", and a single space to "␣".

    Args:
      piece: the entry, in which U+2581 marks a space.
      starts: whether the entry begins a word.
    """
    if piece == SPACE:
        return "␣"
    return piece.removeprefix(SPACE) if starts else "…" + piece


def spelt(processor, text: str) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Encodes a text with a SentencePiece processor.

    Args:
      processor: `sentencepiece.SentencePieceProcessor`.
      text: text to encode.

    Returns:
      A pair: a list of (vocabulary entry, id) per token, and the character offsets of each token (start, end
      exclusive), int32 [tokens, 2].
    """
    from sentencepiece import sentencepiece_pb2

    # All versions of SentencePiece support offsets in this serialized form.
    serialized = processor.encode(text, out_type="serialized_proto")
    # The module makes its classes when it is imported.
    parsed = sentencepiece_pb2.SentencePieceText.FromString(serialized)  # pyright: ignore[reportAttributeAccessIssue]
    found = parsed.pieces
    offsets = characters(text, [(piece.begin, piece.end) for piece in found])
    return [(piece.piece, piece.id) for piece in found], without_spaces(text, offsets)


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer of a SentencePiece model."""

    file = "tokenizer.model"

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._processor.get_piece_size()
        pieces = [self._processor.id_to_piece(number) for number in range(size)]
        super().__init__(pieces, np.array([starts_word(piece) for piece in pieces]))

    def __reduce__(self):
        return type(self), (self._model,)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(text), np.int32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        found, offsets = spelt(self._processor, text)
        return np.array([number for _, number in found], np.int32), offsets

    def _encode_continuation(self, text: str) -> np.ndarray:
        return np.array(self._no_prefix_tokenizer.encode(text), np.int32)

    @functools.cached_property
    def _no_prefix_tokenizer(self):
        """Variant of the SentencePiece processor that does not add a space before a text. It encodes text that directly
        follows `[MASK]` or a sentinel and continues the same word.
        """
        import sentencepiece

        model = training.parsed(self._model)
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def decode(self, ids: Ids) -> str:
        ids = [int(number) for number in ids if 0 <= number < self.vocab_size]
        pieces = [
            SPACE + self._shown[number] if number in self._shown else self.pieces[number]
            for number in ids
            if number in self._shown or not self._processor.is_control(number)
        ]
        return self._processor.decode_pieces(pieces).replace(SPACE, " ").strip()

    def piece(self, token: int) -> str:
        return readable(self.pieces[token], self.word_start[token])

    def serialize(self) -> bytes:
        return self._model

    def with_sentinels(self, count: int) -> "SentencePieceTokenizer":
        """Returns a tokenizer whose vocabulary has `count` additional sentinel tokens at its end. Returns this
        tokenizer if it already has `count` sentinels.

        Raises:
          InputError: If the model already has a different number of sentinels.
        """
        if len(self.sentinel_ids) == count:
            return self
        if len(self.sentinel_ids):
            raise InputError(
                f"tokenizer.sentinels={count}: the model has {len(self.sentinel_ids)} of its own; "
                f"set {len(self.sentinel_ids)}, or 0 to leave it as it is"
            )
        return type(self)(training.with_sentinels(self._model, count))
