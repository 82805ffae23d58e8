"""Tokenizer of single characters, for models that spell what they hear (Graves et al. 2006; Baevski et al. 2020)."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxformer.data.tokenizers.tokenizer import Ids, Tokenizer
from jaxformer.errors import InputError, shown
from jaxformer.limits import parse_json

SETTINGS = "tokenizer_config.json"
"""Name of the file with the settings of the tokenizer, next to the vocabulary."""
TOKENIZER_CLASS = "Wav2Vec2CTCTokenizer"
"""Class of the transformers library that loads the files of the tokenizer."""
DELIMITER = "|"
"""Default vocabulary entry of the space between two words."""
ROLES: Mapping[str, str] = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
"""Default names of the special tokens, keyed by role. The token with the role `pad` is also the blank of CTC."""


class CharacterTokenizer(Tokenizer):
    """Tokenizer whose tokens are single characters. A space is the vocabulary entry `|`, and a character outside the
    vocabulary is the unknown token. Its files are those of `Wav2Vec2CTCTokenizer` in the transformers library.
    """

    file = "vocab.json"

    def __init__(self, vocab: Mapping[str, int], settings: Mapping[str, Any] | None = None):
        """Initializes the tokenizer.

        Args:
          vocab: maps vocabulary entries to ids 0, 1, 2, ...
          settings: fields of tokenizer_config.json: `word_delimiter_token`, `do_lower_case` (whether the vocabulary is
            in upper case, and texts in lower case), and names of special tokens such as `pad_token`.

        Raises:
          InputError: If the ids are not consecutive, an entry is not a single character, or there is no padding token
            or delimiter of words.
        """
        settings = settings or {}
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise InputError(f"{self.file}: expected a map of characters to the ids 0, 1, 2, ...")
        pieces = sorted(vocab, key=vocab.__getitem__)
        named = {role: settings.get(f"{role}_token", name) for role, name in ROLES.items()}
        roles = {role: name for role, name in named.items() if name in vocab}
        self.delimiter: str = settings.get("word_delimiter_token") or DELIMITER
        self.lowercase: bool = bool(settings.get("do_lower_case", False))
        for what, name in (("pad_token", named["pad"]), ("word_delimiter_token", self.delimiter)):
            if name not in vocab:
                raise InputError(f"{self.file}: the vocabulary has no {what}, {name!r}")
        super().__init__(pieces, np.array([piece == self.delimiter for piece in pieces]), roles)
        odd = [piece for piece in pieces if len(piece) != 1 and not self.is_special[vocab[piece]]]
        if odd and odd != [self.delimiter]:
            raise InputError(f"{self.file}: {odd[0]!r} is not a single character, which is not supported")
        self.delimiter_id = vocab[self.delimiter]
        self._characters = {
            piece: number for number, piece in enumerate(pieces) if len(piece) == 1 and not self.is_special[number]
        }
        self._characters[" "] = self.delimiter_id

    def __reduce__(self):
        return type(self), (self._ids, self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Content of tokenizer_config.json."""
        names = {f"{role}_token": self.roles.get(role) for role in ROLES}
        return {
            "tokenizer_class": TOKENIZER_CLASS,
            "word_delimiter_token": self.delimiter,
            "do_lower_case": self.lowercase,
            "replace_word_delimiter_char": " ",
            **names,
        }

    @property
    def is_upper_case(self) -> bool:
        """Whether the vocabulary has capital letters and no small ones, so that texts must be in upper case."""
        letters = "".join(piece for piece in self._characters if piece.isalpha())
        return not self.lowercase and letters != letters.lower() and letters == letters.upper()

    def unknown(self, text: str) -> list[str]:
        """Returns the characters of a text that are not in the vocabulary, each once, in the order of the text."""
        text = text.upper() if self.lowercase else text
        return list(dict.fromkeys(character for character in text if character not in self._characters))

    def encode(self, text: str) -> np.ndarray:
        text = text.upper() if self.lowercase else text
        if "unk" not in self.roles and (missing := self.unknown(text)):
            raise InputError(f"{text[:40]!r}: the vocabulary has no {missing[0]!r} and no unknown token")
        other = self.special_id("unk")
        return np.array([self._characters.get(character, other) for character in text], np.int32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode(text)
        starts = np.arange(len(ids), dtype=np.int32)
        return ids, np.stack([starts, starts + 1], axis=1)

    def decode(self, ids: Ids) -> str:
        known = (int(number) for number in ids if 0 <= number < self.vocab_size)
        text = "".join(self.pieces[number] for number in known if not self.is_special[number])
        text = " ".join(text.replace(self.delimiter, " ").split())
        return text.lower() if self.lowercase else text

    def piece(self, token: int) -> str:
        return "␣" if token == self.delimiter_id else self.pieces[token]

    def serialize(self) -> bytes:
        return _json(self._ids)

    def files(self) -> dict[str, bytes]:
        return {SETTINGS: _json(self.settings), self.file: self.serialize()}


def of_alphabet(alphabet: str) -> CharacterTokenizer:
    """Creates the tokenizer of an alphabet. Its vocabulary has the special tokens of wav2vec 2.0, the delimiter of
    words, and the characters of the alphabet, in this order.
    """
    pieces = [*ROLES.values(), DELIMITER, *alphabet]
    return CharacterTokenizer({piece: number for number, piece in enumerate(pieces)})


def load_characters(path: str | os.PathLike, read: Callable[[str], bytes]) -> CharacterTokenizer:
    """Loads the tokenizer of a vocab.json, with the settings in the tokenizer_config.json next to it, if it exists.

    Args:
      path: path of vocab.json.
      read: function that returns the content of the file at a path.

    Raises:
      InputError: If a file is not JSON, or the tokenizer is of a kind that is not supported.
    """
    path = os.fspath(path)
    beside = os.path.join(os.path.dirname(path), SETTINGS)
    settings = _read_settings(beside, read)
    vocab = parse_json(read(path), path)
    numbers = isinstance(vocab, dict) and all(type(number) is int for number in vocab.values())
    if not numbers or settings.get("target_lang"):
        expected = "expected a map of characters to ids; vocabularies of several languages are not supported"
        raise InputError(f"{path}: {expected}")
    try:
        return CharacterTokenizer(vocab, settings)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{CharacterTokenizer.file}: ')}") from error


def _read_settings(path: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    """Returns the content of a tokenizer_config.json, with the texts of the special tokens instead of objects that
    contain them. Empty if there is no file.
    """
    try:
        content = read(path)
    except InputError:
        return {}
    settings = parse_json(content, path)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a JSON object of settings")
    kind = settings.get("tokenizer_class") or TOKENIZER_CLASS
    if kind != TOKENIZER_CLASS:
        raise InputError(f"{path}: tokenizer_class={shown(kind)} is not supported; expected {TOKENIZER_CLASS}")
    plain = {
        name: said["content"] if isinstance(said, dict) and "content" in said else said
        for name, said in settings.items()
    }
    for name in (*(f"{role}_token" for role in ROLES), "word_delimiter_token"):
        if not isinstance(plain.get(name), str | None):
            raise InputError(f"{path}: {name}={shown(plain[name])}: expected a text")
    return plain


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
