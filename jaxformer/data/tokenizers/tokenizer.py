"""The interface of tokenizers."""

import abc
import functools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxformer.data.tokenizers import special_tokens
from jaxformer.data.tokenizers.special_tokens import MASK
from jaxformer.data.tokenizers.template import Template, decoder_template, encoder_template
from jaxformer.errors import InputError

Form = Literal["encoder", "decoder"]
"""The kind of model that a text is laid out for: bidirectional, or left to right."""


class Tokenizer(abc.ABC):
    """Text to ids and back; use one of its subclasses. `encode` never returns ids of special tokens.

    Attributes:
      pieces: the pieces of the vocabulary, by id.
      word_start: bool [vocab]; does the piece begin a word? True for special pieces and for
        punctuation, which is a word of its own.
      roles: special pieces by what they are for, where that does not follow from `special_tokens.NAMES`.
    """

    file: str
    """Name of the tokenizer's file in its folder."""

    def __init__(
        self,
        pieces: list[str],
        word_start: np.ndarray,
        roles: Mapping[str, str] | None = None,
        special: Sequence[str] = (),
        by_name: bool = True,
    ):
        """Initialises the attributes of all tokenizers.

        Args:
          pieces: as the attribute.
          word_start: as the attribute.
          roles: as the attribute.
          special: pieces that are special regardless of their names.
          by_name: whether pieces with the names of `special_tokens.NAMES` are special.
        """
        self._by_name = by_name
        self.pieces, self.word_start, self.roles = pieces, word_start, dict(roles or {})
        self._more_special = [*self.roles.values(), *special]
        self.word_start[self.special_ids] = True

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @functools.cached_property
    def special_ids(self) -> list[int]:
        """Ids of the special pieces that the vocabulary has."""
        more = [self._ids[name] for name in self._more_special if name in self._ids]
        named = [number for number in special_tokens.special(self._ids) if self._by_name or number in more]
        return list(dict.fromkeys(named + more))

    @functools.cached_property
    def sentinel_ids(self) -> np.ndarray:
        """int32 ids of the sentinels `<extra_id_0>`, `<extra_id_1>`, ..., mostly descending."""
        return np.array(special_tokens.sentinels(self._ids), np.int32)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """bool [vocab]."""
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """int32 ids of all pieces that are not special."""
        return np.flatnonzero(~self.is_special).astype(np.int32)

    def special_id(self, key: str) -> int | None:
        """The id of the special token for a purpose, such as `pad`; None if the vocabulary has none."""
        special = set(self.special_ids)
        names = [self.roles[key]] if key in self.roles else special_tokens.NAMES[key]
        return next((self._ids[name] for name in names if self._ids.get(name) in special), None)

    def _special(self, key: str) -> int:
        if (found := self.special_id(key)) is not None:
            return found
        choices = [self.roles[key]] if key in self.roles else special_tokens.NAMES[key]
        names = " or ".join(choices)
        raise InputError(
            f"tokenizer: the vocabulary of {self.vocab_size} pieces has no {names}; "
            "give one that has it, or leave `tokenizer.path` out to train one"
        )

    def require(self, *keys: str) -> None:
        """Raises InputError if the vocabulary lacks the special token for one of these purposes, such as `eos`."""
        for key in keys:
            self._special(key)

    # Looked up when first used: the task decides which of them a vocabulary must have.
    pad_id = functools.cached_property(lambda self: self._special("pad"))
    unk_id = functools.cached_property(lambda self: self._special("unk"))
    cls_id = functools.cached_property(lambda self: self._special("cls"))
    sep_id = functools.cached_property(lambda self: self._special("sep"))
    mask_id = functools.cached_property(lambda self: self._special("mask"))
    bos_id = functools.cached_property(lambda self: self._special("bos"))
    eos_id = functools.cached_property(lambda self: self._special("eos"))

    @property
    def own_template(self) -> Template | None:
        """The template that came with the tokenizer; None for one that is trained here or does not say."""
        return None

    def template(self, form: Form) -> Template:
        """The special tokens around a text and around a pair of texts.

        It is the tokenizer's own template if there is one. Otherwise an encoder reads [CLS] A [SEP] B [SEP], and a
        decoder each text with an end token.

        Raises:
          InputError: the vocabulary has no such special tokens.
        """
        return self._encoder_template if form == "encoder" else self._decoder_template

    @functools.cached_property
    def _encoder_template(self) -> Template:
        return self.own_template or encoder_template(self.cls_id, self.sep_id)

    @functools.cached_property
    def _decoder_template(self) -> Template:
        own = self.own_template
        # A classifier reads a decoder's last token that is not padding: an end token that is padding is never read.
        return decoder_template(self.eos_id) if own is None else own.without_end(self.special_id("pad"))

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int32 [n]; no special tokens are added, and `[MASK]` in a text is plain text."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [n] each."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids, int32 [n], as from `encode`, and each one's characters in the text, int32 [n, 2].

        These are the index of its first character other than a space, and the index after its last.
        """

    def encode_with_masks(self, text: str) -> np.ndarray:
        """int32 [n]; every literal `[MASK]` becomes the token `mask_id`.

        A word begins after it only if the text has a space: "the [MASK]." ends with the piece of a full stop, as in
        training.
        """
        return self._encode_around(text, {MASK: self.mask_id} if MASK in text else {})

    def encode_with_sentinels(self, text: str) -> np.ndarray:
        """int32 [n]; every literal `<extra_id_0>` becomes the token of that name, if there is one."""
        return self._encode_around(text, {self.pieces[number]: int(number) for number in self.sentinel_ids})

    def _encode_around(self, text: str, ids: dict[str, int]) -> np.ndarray:
        """The tokens of a text in which some words are the names of ids."""
        words = re.split(f"({'|'.join(map(re.escape, ids))})", text) if ids else [text]
        parts = [self.encode(words[0])]
        for name, part in zip(words[1::2], words[2::2], strict=True):
            continues = bool(part) and not part[0].isspace()
            parts.append(np.array([ids[name]], np.int32))
            parts.append(self._encode_continuation(part) if continues else self.encode(part))
        return np.concatenate(parts)

    def _encode_continuation(self, text: str) -> np.ndarray:
        return self.encode(text)

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, without special tokens except `[MASK]` and sentinels, and without unknown ids."""

    @functools.cached_property
    def _shown(self) -> dict[int, str]:
        """The special tokens that `decode` shows, and their texts."""
        names = (*special_tokens.NAMES["mask"], self.roles.get("mask"))
        masks = {number: MASK for number in self.special_ids if self.pieces[number] in names}
        return masks | {int(number): self.pieces[number] for number in self.sentinel_ids}

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """A piece in readable form: '…ing' continues a word, '␣' is a single space."""

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of generated texts; itself, unless inputs and outputs have different ones."""
        return self

    @abc.abstractmethod
    def serialize(self) -> bytes:
        """The content of the tokenizer's file."""

    def files(self) -> dict[str, bytes]:
        """The contents of the files in its folder, by name."""
        return {self.file: self.serialize()}

    def save(self, folder: str) -> None:
        """Writes the folder atomically: under another name first, then renamed."""
        folder = os.path.abspath(folder)
        temporary = f"{folder}.tmp-{os.getpid()}"
        try:
            os.makedirs(temporary)
            for name, content in self.files().items():
                with open(os.path.join(temporary, name), "wb") as file:
                    file.write(content)
            os.replace(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.exists(os.path.join(folder, self.file)):  # Another process may have saved it meanwhile.
                reason = (error.strerror or str(error)).lower()
                raise InputError(
                    f"{folder}: the tokenizer cannot be saved here ({reason}); give a folder that can be written"
                ) from error


def without_spaces(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The offsets, int32 [n, 2], without leading white space in the text."""
    trimmed = np.array(offsets, np.int32).reshape(-1, 2)
    for stretch in trimmed:
        while stretch[0] < stretch[1] and text[stretch[0]].isspace():
            stretch[0] += 1
    return trimmed


def characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Offsets in characters, int32 [n, 2], from offsets in bytes of the text's UTF-8."""
    starts = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
    return np.append(0, np.cumsum(starts))[np.array(offsets, np.int64).reshape(-1, 2)].astype(np.int32)
