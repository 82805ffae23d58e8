"""Tokenizer of phonemes, for models that speak."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from jaxformer.data.tokenizers.tokenizer import Ids, Tokenizer
from jaxformer.errors import InputError
from jaxformer.limits import parse_json

PAD = "<pad>"
"""Vocabulary entry of the padding token, whose id is 0."""
PAUSE = "_"
"""Vocabulary entry of a pause. Data sets write it as an empty text."""
SHOWN = 5
"""Maximum number of unknown phonemes in a message."""


class PhonemeTokenizer(Tokenizer):
    """Tokenizer whose tokens are phonemes, such as `aɪ`. A text is a sequence of phonemes with spaces between them."""

    file = "phonemes.json"

    def __init__(self, phonemes: Sequence[str]):
        """Initializes the tokenizer. `phonemes` are the vocabulary entries without padding and the pause."""
        pieces = [PAD, PAUSE, *phonemes]
        if len(set(pieces)) < len(pieces) or any(piece != "".join(piece.split()) or not piece for piece in pieces):
            raise InputError(f"{self.file}: expected different phonemes without spaces")
        super().__init__(pieces, np.ones(len(pieces), bool), {"pad": PAD})

    def __reduce__(self):
        return type(self), (self.pieces[2:],)

    def unknown(self, phonemes: Sequence[str]) -> list[str]:
        """Returns the phonemes that are not in the vocabulary, each once, in their order."""
        return [name for name in dict.fromkeys(phonemes) if name and self._ids.get(name, 0) == 0]

    def ids_of(self, phonemes: Sequence[str]) -> np.ndarray:
        """Returns the ids of phonemes, int32 [phonemes]. An empty phoneme is a pause.

        Raises:
          InputError: If a phoneme is not in the vocabulary.
        """
        if missing := self.unknown(phonemes):
            names = " ".join(missing[:SHOWN]) + " …" * (len(missing) > SHOWN)
            raise InputError(f"phonemes {names}: not in the vocabulary of {self.vocab_size} phonemes")
        return np.array([self._ids[name or PAUSE] for name in phonemes], np.int32)

    def encode(self, text: str) -> np.ndarray:
        return self.ids_of(text.split())

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        offsets, end = [], 0
        for name in text.split():
            start = text.index(name, end)
            end = start + len(name)
            offsets.append((start, end))
        return self.encode(text), np.array(offsets, np.int32).reshape(-1, 2)

    def decode(self, ids: Ids) -> str:
        known = (int(number) for number in ids if 0 < number < self.vocab_size)
        return " ".join(self.pieces[number] for number in known)

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def serialize(self) -> bytes:
        return (json.dumps(self.pieces[2:], ensure_ascii=False) + "\n").encode()


def load_phonemes(path: str, read: Callable[[str], bytes]) -> PhonemeTokenizer:
    """Loads the tokenizer of a phonemes.json. `read` returns the content of the file at a path.

    Raises:
      InputError: If the file is not a JSON list of phonemes.
    """
    names = parse_json(read(path), path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected a JSON list of phonemes")
    try:
        return PhonemeTokenizer(names)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{PhonemeTokenizer.file}: ')}") from error
