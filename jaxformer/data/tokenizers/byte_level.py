"""Byte-level BPE (Radford et al. 2019). It encodes the UTF-8 bytes of a text, so that any text can be encoded without
an unknown token.
"""

import functools
import re

import numpy as np

from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer, parts
from jaxformer.data.tokenizers.tokenizer import Ids


class ByteLevelTokenizer(JsonTokenizer):
    """Byte-level BPE tokenizer, as in GPT-2. In its vocabulary, each byte is written as one of 256 printable characters
    (`ALPHABET`). The space before a word belongs to the word's first token.
    """

    def _starts(self, pieces: list[str]) -> np.ndarray:
        # A part of a character counts as a part of a word.
        texts = [self._spelt(piece).decode(errors="replace") for piece in pieces]
        return np.array([text[:1].isspace() or not any(c.isalnum() or c == "\ufffd" for c in text) for text in texts])

    def _spelt(self, piece: str) -> bytes:
        """Returns the bytes that a vocabulary entry represents.

        If the entry contains characters that are not in `ALPHABET`, as added tokens may, returns its UTF-8 encoding.
        """
        if all(letter in ALPHABET for letter in piece):
            return bytes(ALPHABET[letter] for letter in piece)
        return piece.encode()

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        shown = {number: f" {name}".encode() for number, name in self._shown.items()}
        return [shown.get(number) or self._spelt(piece) for number, piece in enumerate(self.pieces)]

    @functools.cached_property
    def _prefixed(self) -> bool:
        """Whether the tokenizer adds a space before every text."""
        return any(part.get("add_prefix_space", False) for part in parts(self.config, "pre_tokenizer"))

    def _encode_around(self, text: str, ids: dict[str, int]) -> np.ndarray:
        # The space before a token name is dropped: on its own it would be encoded as a piece.
        if ids:
            text = re.sub(rf"\s+({'|'.join(map(re.escape, ids))})", r"\1", text)
        return super()._encode_around(text, ids)

    def decode(self, ids: Ids) -> str:
        """Decodes token ids to text. Bytes that are not valid UTF-8, such as an incomplete character, become U+FFFD."""
        visible = self._visible(ids)
        text = b"".join(self._bytes[number] for number in visible).decode(errors="replace")
        return text.removeprefix(" ") if visible and (self._prefixed or visible[0] in self._shown) else text

    def piece(self, token: int) -> str:
        if self.is_special[token]:
            return self.pieces[token]
        try:
            text = self._bytes[token].decode()
        except UnicodeDecodeError:
            text = "".join(f"\\x{byte:02x}" for byte in self._bytes[token])
        word = text.removeprefix(" ")
        shown = "".join(c if c.isprintable() and not c.isspace() else "␣" if c == " " else ascii(c)[1:-1] for c in word)
        return (shown if self.word_start[token] else f"…{shown}") or "␣"


def _alphabet() -> dict[str, int]:
    """Returns GPT-2's mapping from printable characters to the bytes that they represent in vocabulary entries.

    Printable bytes are represented by themselves. The other bytes are represented by U+0100 and the following
    characters, in order.
    """
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


ALPHABET = _alphabet()
"""Maps each of the 256 characters in which vocabulary entries are written to the byte that it represents."""
