"""WordPiece tokenizer (Devlin et al. 2019)."""

import numpy as np

from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer
from jaxformer.data.tokenizers.tokenizer import Ids


class WordPieceTokenizer(JsonTokenizer):
    """WordPiece tokenizer, as in BERT. Vocabulary entries that continue a word begin with ##."""

    def _starts(self, pieces: list[str]) -> np.ndarray:
        return np.array([not piece.startswith("##") for piece in pieces])

    def decode(self, ids: Ids) -> str:
        return self._tokenizer.decode(self._visible(ids), skip_special_tokens=False).removeprefix("##")

    def piece(self, token: int) -> str:
        piece = self.pieces[token]
        return "…" + piece.removeprefix("##") if piece.startswith("##") else piece
