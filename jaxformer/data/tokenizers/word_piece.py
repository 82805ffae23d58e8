"""WordPiece vocabularies (Devlin et al. 2019)."""

from collections.abc import Sequence

import numpy as np

from jaxformer.data.tokenizers.tokenizer import Tokenizer


class WordPieceTokenizer(Tokenizer):
    """A WordPiece vocabulary as the `tokenizers` library has it."""

    file = "tokenizer.json"

    def __init__(self, model: str):
        import tokenizers

        self._model = model
        self._tokenizer = tokenizers.Tokenizer.from_str(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Special tokens spelt out in a corpus are text.
        self._tokenizer.encode_special_tokens = True
        size = self._tokenizer.get_vocab_size()
        pieces = [self._tokenizer.id_to_token(number) or "" for number in range(size)]
        super().__init__(pieces, np.array([not piece.startswith("##") for piece in pieces]))

    def __reduce__(self):
        return type(self), (self._model,)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        hidden = self.is_special.copy()
        hidden[list(self._shown)] = False
        shown = [int(number) for number in ids if 0 <= number < self.vocab_size and not hidden[number]]
        return self._tokenizer.decode(shown, skip_special_tokens=False).removeprefix("##")

    def piece(self, token: int) -> str:
        piece = self.pieces[token]
        return "…" + piece.removeprefix("##") if piece.startswith("##") else piece

    def serialize(self) -> bytes:
        return self._model.encode()
