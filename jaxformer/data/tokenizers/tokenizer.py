"""Base class of all tokenizers."""

import abc
import functools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxformer import storage
from jaxformer.data.tokenizers import special_tokens
from jaxformer.data.tokenizers.special_tokens import MASK
from jaxformer.data.tokenizers.template import Template, decoder_template, encoder_template
from jaxformer.errors import InputError

Form = Literal["encoder", "decoder"]
"""Kind of model for which special tokens are added: a bidirectional encoder, or a decoder that reads from left to
right.
"""


Ids = Sequence[int] | np.ndarray
"""Token ids: a list, or an integer array [tokens]."""


class Tokenizer(abc.ABC):
    """Converts text to token ids and back. Abstract: use a subclass, such as `SentencePieceTokenizer`. `encode` never
    returns ids of special tokens.

    Attributes:
      pieces: vocabulary entries, in the order of their ids.
      word_start: whether each vocabulary entry begins a word, bool [vocab]. True for special tokens and punctuation.
      roles: maps roles, such as `eos`, to names of special tokens. May omit roles that are inferred from common names,
        such as `</s>` (see `special_tokens.NAMES`).
    """

    file: str
    """Name of the main tokenizer file in the tokenizer's folder."""

    def __init__(
        self,
        pieces: list[str],
        word_start: np.ndarray,
        roles: Mapping[str, str] | None = None,
        special: Sequence[str] = (),
        by_name: bool = True,
    ):
        """Initializes the attributes that all tokenizers have.

        Args:
          pieces: vocabulary entries, in the order of their ids.
          word_start: whether each vocabulary entry begins a word, bool [vocab].
          roles: maps roles, such as `eos`, to names of special tokens. May omit roles that are inferred from common
            names, such as `</s>` (see `special_tokens.NAMES`).
          special: vocabulary entries that are special tokens regardless of their names.
          by_name: whether vocabulary entries with a name in `special_tokens.NAMES` are special tokens.
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
        """Ids of the special tokens, including sentinels."""
        more = [self._ids[name] for name in self._more_special if name in self._ids]
        named = [number for number in special_tokens.special(self._ids) if self._by_name or number in more]
        return list(dict.fromkeys(named + more))

    @functools.cached_property
    def sentinel_ids(self) -> np.ndarray:
        """Ids of the sentinels `<extra_id_0>`, `<extra_id_1>`, ... in this order, int32 [sentinels]. The ids themselves
        usually descend.
        """
        return np.array(special_tokens.sentinels(self._ids), np.int32)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """Whether each vocabulary entry is a special token, bool [vocab]."""
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids of all vocabulary entries that are not special tokens, int32."""
        return np.flatnonzero(~self.is_special).astype(np.int32)

    def special_id(self, key: str) -> int | None:
        """Returns the id of the special token that has a role, such as `pad`. None if the vocabulary has none."""
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
        """Raises InputError if the vocabulary has no special token for one of the given roles, such as `eos`."""
        for key in keys:
            self._special(key)

    # Looked up on first use, because the task decides which of them a vocabulary must have.
    pad_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("pad"))
    unk_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("unk"))
    cls_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("cls"))
    sep_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("sep"))
    mask_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("mask"))
    bos_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("bos"))
    eos_id: functools.cached_property[int] = functools.cached_property(lambda self: self._special("eos"))

    @property
    def own_template(self) -> Template | None:
        """Template of special tokens, such as [CLS] A [SEP], that the tokenizer's files define.

        None if they do not define one, or if the tokenizer was trained by this library.
        """
        return None

    def template(self, form: Form) -> Template:
        """Returns the template that defines which special tokens are added to a text and to a pair of texts.

        This is the tokenizer's own template if it has one; for a decoder, padding tokens at its end are removed.
        Otherwise it is [CLS] A [SEP] and [CLS] A [SEP] B [SEP] for an encoder, and an EOS token after each text for a
        decoder.

        Args:
          form: kind of the model, `encoder` or `decoder`.

        Raises:
          InputError: If the vocabulary lacks these special tokens.
        """
        return self._encoder_template if form == "encoder" else self._decoder_template

    @functools.cached_property
    def _encoder_template(self) -> Template:
        return self.own_template or encoder_template(self.cls_id, self.sep_id)

    @functools.cached_property
    def _decoder_template(self) -> Template:
        own = self.own_template
        # A classifier reads the last token of a decoder that is not padding. If the EOS token is also the padding
        # token, it would never be read.
        return decoder_template(self.eos_id) if own is None else own.without_end(self.special_id("pad"))

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Encodes a text without adding special tokens. Names of special tokens in the text, such as `[MASK]`, are
        encoded as plain text. Returns token ids, int32 [tokens].
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes several texts as by `encode`. Returns the token ids of each text, int32 [tokens]."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text as by `encode`, and also returns the position of each token in the text.

        Returns:
          Token ids, int32 [tokens], and character offsets, int32 [tokens, 2]: the index of the token's first character
          that is not white space, and the index after its last character.
        """

    @functools.cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Regular expression that matches the name of any special token. Of several names that match, it takes the
        longest.
        """
        names = sorted({self.pieces[number] for number in self.special_ids} - {""}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def encode_with_special_tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text in which the names of special tokens, such as `<|im_end|>`, become these tokens.

        Returns:
          Token ids, int32 [tokens], and character offsets, int32 [tokens, 2]: the start and end (exclusive) of each
          token in the text. White space before a word may belong to its token or not.
        """
        ids, offsets, place = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)], 0
        for number, part in enumerate(re.split(f"({self.special_pattern.pattern})", text)):
            if number % 2:
                ids.append(np.array([self._ids[part]], np.int32))
                offsets.append(np.array([[place, place + len(part)]], np.int32))
            elif part:
                tokens, ranges = self.encode_with_offsets(part)
                ids.append(tokens)
                offsets.append(ranges + place)
            place += len(part)
        return np.concatenate(ids), np.concatenate(offsets)

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Encodes a text in which each `[MASK]` becomes the mask token. Returns token ids, int32 [tokens].

        As in training, the text after `[MASK]` begins a new word only if a space precedes it. In "the [MASK].", the
        full stop continues the word.
        """
        return self._encode_around(text, {MASK: self.mask_id} if MASK in text else {})

    def encode_with_sentinels(self, text: str) -> np.ndarray:
        """Encodes a text in which each name of a sentinel, such as `<extra_id_0>`, becomes that sentinel token. Returns
        token ids, int32 [tokens].
        """
        return self._encode_around(text, {self.pieces[number]: int(number) for number in self.sentinel_ids})

    def _encode_around(self, text: str, ids: dict[str, int]) -> np.ndarray:
        """Encodes a text in which the names of some special tokens become these tokens. Other names are encoded as
        plain text. Returns token ids, int32 [tokens].

        Args:
          text: text to encode.
          ids: maps the names of these special tokens to token ids.
        """
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
    def decode(self, ids: Ids) -> str:
        """Decodes token ids to readable text. Omits ids outside the vocabulary, and special tokens such as EOS, but not
        `[MASK]` and sentinels.
        """

    @functools.cached_property
    def _shown(self) -> dict[int, str]:
        """Maps the ids of the special tokens that `decode` does not omit to the text that it writes for them, such as
        `[MASK]`.
        """
        names = (*special_tokens.NAMES["mask"], self.roles.get("mask"))
        masks = {number: MASK for number in self.special_ids if self.pieces[number] in names}
        return masks | {int(number): self.pieces[number] for number in self.sentinel_ids}

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """Returns a token's vocabulary entry in readable form: "…ing" for an entry that continues a word, "␣" for a
        single space.
        """

    @property
    def target(self) -> "Tokenizer":
        """Tokenizer for the texts that a model generates. It is this tokenizer, except for a translation model with one
        tokenizer per language.
        """
        return self

    @abc.abstractmethod
    def serialize(self) -> bytes:
        """Returns the content of the main tokenizer file, which is named `Tokenizer.file`."""

    def files(self) -> dict[str, bytes]:
        """Returns the contents of all files of the tokenizer, keyed by file name."""
        return {self.file: self.serialize()}

    def save(self, folder: str) -> None:
        """Saves the tokenizer to a new folder. For a local folder this is atomic: the files are written to a temporary
        folder, which is then renamed.

        Raises:
          InputError: If the files cannot be written.
        """
        if storage.is_remote(folder):
            self._save_remote(storage.path(folder))
            return
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
            if not os.path.exists(os.path.join(folder, self.file)):  # Another process may have saved it.
                reason = (error.strerror or str(error)).lower()
                raise InputError(
                    f"{folder}: the tokenizer cannot be saved here ({reason}); give a folder that can be written"
                ) from error

    def _save_remote(self, folder: Path) -> None:
        """Writes the tokenizer files to a folder in a bucket. The main file is written last, because its presence means
        that the tokenizer is complete.
        """
        with storage.reported(folder, "the tokenizer cannot be saved here"):
            for name, content in sorted(self.files().items(), key=lambda file: file[0] == self.file):
                (folder / name).write_bytes(content)


def without_spaces(text: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Removes leading white space from the character ranges of tokens.

    Args:
      text: the encoded text.
      offsets: start and end (exclusive) of each token, as character indices, [tokens, 2].

    Returns:
      Offsets of the same form whose starts are moved past white space, int32 [tokens, 2].
    """
    trimmed = np.array(offsets, np.int32).reshape(-1, 2)
    for stretch in trimmed:
        while stretch[0] < stretch[1] and text[stretch[0]].isspace():
            stretch[0] += 1
    return trimmed


def characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Converts offsets from UTF-8 byte indices to character indices.

    Args:
      text: the encoded text.
      offsets: start and end (exclusive) of each token, as byte indices.

    Returns:
      The same offsets as character indices, int32 [tokens, 2].
    """
    starts = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
    return np.append(0, np.cumsum(starts))[np.array(offsets, np.int64).reshape(-1, 2)].astype(np.int32)
