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
"""Kind of model that reads the text: a bidirectional encoder, or a decoder that reads from left to right."""


Ids = Sequence[int] | np.ndarray
"""Token ids: a list, or an integer array [tokens]."""


class Tokenizer(abc.ABC):
    """Converts text to token ids and back. Use one of its subclasses. `encode` never returns ids of special tokens.

    Attributes:
      pieces: pieces (entries) of the vocabulary, in the order of their ids.
      word_start: whether each piece begins a word, bool [vocab]. True for special pieces and punctuation.
      roles: maps roles, such as `eos`, to special pieces. Roles whose piece has a name in `special_tokens.NAMES` may be
        missing.
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
        """Initializes the attributes of all tokenizers.

        Args:
          pieces: pieces (entries) of the vocabulary, in the order of their ids.
          word_start: whether each piece begins a word, bool [vocab].
          roles: maps roles, such as `eos`, to special pieces. Roles whose piece has a name in `special_tokens.NAMES`
            may be missing.
          special: pieces that are special regardless of their names.
          by_name: whether pieces with a name in `special_tokens.NAMES` are special.
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
        """Ids of the special pieces in the vocabulary."""
        more = [self._ids[name] for name in self._more_special if name in self._ids]
        named = [number for number in special_tokens.special(self._ids) if self._by_name or number in more]
        return list(dict.fromkeys(named + more))

    @functools.cached_property
    def sentinel_ids(self) -> np.ndarray:
        """Ids of the sentinels `<extra_id_0>`, `<extra_id_1>`, ..., int32. Usually in descending order."""
        return np.array(special_tokens.sentinels(self._ids), np.int32)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """Whether each piece of the vocabulary is special, bool [vocab]."""
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids of all pieces that are not special, int32."""
        return np.flatnonzero(~self.is_special).astype(np.int32)

    def special_id(self, key: str) -> int | None:
        """Returns the id of the special token with a role, such as `pad`. None if the vocabulary does not have one."""
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
        """Raises InputError if the vocabulary lacks a special token for one of the given roles, such as `eos`."""
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
        """Template of special tokens that is stored in the tokenizer's files.

        None if the tokenizer was trained by this library or its files do not define a template.
        """
        return None

    def template(self, form: Form) -> Template:
        """Returns the template: which special tokens are added to a text and to a pair of texts.

        This is the tokenizer's own template if there is one. Otherwise an encoder reads [CLS] A [SEP] B [SEP], and a
        decoder reads an EOS token after each text.

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
        """Encodes a text. Adds no special tokens, and treats names such as `[MASK]` as plain text. Returns int32
        [tokens].
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes several texts. Returns int32 [tokens] for each."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text like `encode`, and also returns the character offsets of each token.

        Returns:
          Token ids, int32 [tokens], and offsets, int32 [tokens, 2]: the index of the first character that is not white
          space, and the index after the last character.
        """

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Encodes a text in which `[MASK]` stands for the mask token. Returns int32 [tokens].

        As in training, the text after `[MASK]` begins a new word only if a space precedes it. In "the [MASK].", the
        full stop continues the word.
        """
        return self._encode_around(text, {MASK: self.mask_id} if MASK in text else {})

    def encode_with_sentinels(self, text: str) -> np.ndarray:
        """Encodes a text in which names such as `<extra_id_0>` stand for the sentinel tokens of that name. Returns
        int32 [tokens].
        """
        return self._encode_around(text, {self.pieces[number]: int(number) for number in self.sentinel_ids})

    def _encode_around(self, text: str, ids: dict[str, int]) -> np.ndarray:
        """Encodes a text in which the names of some special tokens stand for these tokens. `ids` maps the names to
        token ids.
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
        """Decodes ids to readable text. Omits unknown ids, and special tokens other than `[MASK]` and sentinels."""

    @functools.cached_property
    def _shown(self) -> dict[int, str]:
        """Maps the special tokens that `decode` shows to their texts."""
        names = (*special_tokens.NAMES["mask"], self.roles.get("mask"))
        masks = {number: MASK for number in self.special_ids if self.pieces[number] in names}
        return masks | {int(number): self.pieces[number] for number in self.sentinel_ids}

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """Returns the piece (vocabulary entry) of a token in readable form: '…ing' continues a word, '␣' is a single
        space.
        """

    @property
    def target(self) -> "Tokenizer":
        """Tokenizer of generated texts. This tokenizer itself, unless inputs and outputs have different tokenizers."""
        return self

    @abc.abstractmethod
    def serialize(self) -> bytes:
        """Returns the content of the main tokenizer file."""

    def files(self) -> dict[str, bytes]:
        """Returns the contents of all files of the tokenizer, keyed by file name."""
        return {self.file: self.serialize()}

    def save(self, folder: str) -> None:
        """Saves the tokenizer to a folder atomically: writes a temporary folder and renames it."""
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
        """Writes the tokenizer files to a folder in a bucket. The main file is written last, because its existence
        marks a complete tokenizer.
        """
        with storage.reported(folder, "the tokenizer cannot be saved here"):
            for name, content in sorted(self.files().items(), key=lambda file: file[0] == self.file):
                (folder / name).write_bytes(content)


def without_spaces(text: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Moves the start of each token after its leading white space. Offsets and result are the start and end character
    of each token, int32 [tokens, 2].
    """
    trimmed = np.array(offsets, np.int32).reshape(-1, 2)
    for stretch in trimmed:
        while stretch[0] < stretch[1] and text[stretch[0]].isspace():
            stretch[0] += 1
    return trimmed


def characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Converts offsets that count UTF-8 bytes to offsets that count characters, int32 [tokens, 2]."""
    starts = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
    return np.append(0, np.cumsum(starts))[np.array(offsets, np.int64).reshape(-1, 2)].astype(np.int32)
