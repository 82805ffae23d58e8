"""Tokenizer configurations. A tokenizer is loaded from files, or trained on the training data when first needed."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Literal

from jaxformer import fields, storage
from jaxformer.data.sources import columns
from jaxformer.data.sources.sources import record, skippable
from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.characters import DELIMITER, CharacterTokenizer, load_characters, of_alphabet
from jaxformer.data.tokenizers.loading import load, load_json, load_tokenizer, read, saved
from jaxformer.data.tokenizers.phonemes import PAD, PAUSE, PhonemeTokenizer
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.special_tokens import SPECIALS, UNK
from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Configuration of a SentencePiece tokenizer, which is loaded from a file, or trained on the training data when it
    is first needed.
    """

    vocab: int = 4096
    """Vocabulary size for training, including special tokens and sentinels."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """Type of SentencePiece model: unigram language model (Kudo 2018) or byte-pair encoding."""
    lowercase: bool = False
    """Whether to convert text to lower case."""
    path: str | None = None
    """Path of a trained .model file. If None, a model is trained with the other settings."""
    sample: int = 100_000
    """Maximum number of documents of the training data to train the tokenizer on. If there are more, documents at equal
    intervals are used.
    """
    sentinels: int = 0
    """Number of sentinel tokens for span corruption, such as 100 for T5. They are the last vocabulary entries, in
    descending order (`<extra_id_0>` is the last one), and are appended to a loaded model that has none.
    """

    def __post_init__(self):
        if not 0 <= self.sentinels < self.vocab:
            problem = f"expected at least 0, below vocab={self.vocab}"
            raise FieldError("tokenizer.sentinels", f"={self.sentinels}: {problem}")

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer that is saved in `folder`. If there is none, creates the tokenizer and saves it there:
        loads it from `path` if that is set, otherwise trains it on the documents that `open_source()` returns.
        """
        if saved(folder):
            return load_tokenizer(folder)
        if self.path:
            tokenizer = load(SentencePieceTokenizer, self.path)
            if self.sentinels:
                tokenizer = tokenizer.with_sentinels(self.sentinels)
        else:
            model = training.train_sentencepiece(
                open_source(), self.sample, self.vocab, self.model_type, self.lowercase, self.sentinels
            )
            tokenizer = SentencePieceTokenizer(model)
        tokenizer.save(folder)
        return tokenizer


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """Configuration of BERT's WordPiece tokenizer, which is loaded from a file, or trained on the training data when it
    is first needed.
    """

    vocab: int = 30_522
    """Maximum vocabulary size for training, including special tokens. A small training text results in fewer entries.
    """
    lowercase: bool = True
    """Whether to convert text to lower case and strip accents, for training and for a vocab.txt. A tokenizer.json has
    its own setting, which is used instead.
    """
    path: str | None = None
    """Path of a vocab.txt or a tokenizer.json, or of a folder that contains one of them. If None, a tokenizer is
    trained.
    """
    sample: int = 100_000
    """Maximum number of documents of the training data to train the tokenizer on. If there are more, documents at equal
    intervals are used.
    """

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer that is saved in `folder`. If there is none, creates the tokenizer and saves it there:
        loads it from `path` if that is set, otherwise trains it on the documents that `open_source()` returns.
        """
        if saved(folder):
            return load_tokenizer(folder)
        tokenizer = (
            self._load(self.path)
            if self.path
            else self._from_vocab(training.train_wordpiece(open_source(), self.sample, self.vocab, self.lowercase))
        )
        tokenizer.save(folder)
        return tokenizer

    def _load(self, path: str) -> Tokenizer:
        path = _file(path, "tokenizer.json", "vocab.txt")
        if path.endswith(".json"):
            return _checked(load_json(path), WordPieceTokenizer, path)
        return self._from_vocab(training.vocab_of_lines(read(path)))

    def _from_vocab(self, vocab: dict[str, int]) -> Tokenizer:
        if UNK not in vocab:
            raise InputError(f"tokenizer.path: the vocabulary has no {UNK}; WordPiece needs one")
        return WordPieceTokenizer(training.wordpiece(vocab, self.lowercase).to_str())


@dataclasses.dataclass(frozen=True)
class ByteLevelBpe:
    """Configuration of GPT-2's byte-level BPE tokenizer, which is loaded from files, or trained on the training data
    when it is first needed.
    """

    vocab: int = 50_257
    """Maximum vocabulary size for training, including one entry per byte (256) and special tokens. A small training
    text results in fewer entries.
    """
    path: str | None = None
    """Path of a tokenizer.json, a vocab.json (with merges.txt next to it) or GPT-2's encoder.json (with vocab.bpe next
    to it), or of a folder that contains these files. If None, a tokenizer is trained.
    """
    sample: int = 100_000
    """Maximum number of documents of the training data to train the tokenizer on. If there are more, documents at equal
    intervals are used.
    """

    def __post_init__(self):
        least = 256 + len(SPECIALS)
        if self.vocab < least:
            problem = f"the bytes and special pieces need {least}; expected at least that number"
            raise FieldError("tokenizer.vocab", f"={self.vocab}: {problem}")

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer that is saved in `folder`. If there is none, creates the tokenizer and saves it there:
        loads it from `path` if that is set, otherwise trains it on the documents that `open_source()` returns.
        """
        if saved(folder):
            return load_tokenizer(folder)
        if self.path:
            tokenizer = self._load(self.path)
        else:
            trained = training.train_byte_level(open_source(), self.sample, self.vocab)
            tokenizer = ByteLevelTokenizer(trained.to_str())
        tokenizer.save(folder)
        return tokenizer

    def _load(self, path: str) -> Tokenizer:
        path = _file(path, "tokenizer.json", "vocab.json", "encoder.json")
        merges = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}.get(os.path.basename(path))
        if merges is None:
            return _checked(load_json(path), ByteLevelTokenizer, path)
        return byte_level_of_files(path, os.path.join(os.path.dirname(path), merges))


@dataclasses.dataclass(frozen=True)
class Characters:
    """Configuration of a tokenizer of single characters, for models that spell what they hear. Its vocabulary has the
    special tokens of wav2vec 2.0, the delimiter of words, and the characters of an alphabet; or it is loaded from a
    file.
    """

    alphabet: str = "abcdefghijklmnopqrstuvwxyz'"
    """Characters of the vocabulary, in the order of their ids, without the space between words."""
    path: str | None = None
    """Path of a vocab.json as written by `Wav2Vec2CTCTokenizer` of the transformers library, or of its folder. If None,
    the vocabulary has the characters of `alphabet`.
    """

    def __post_init__(self):
        twice = [character for character in self.alphabet if self.alphabet.count(character) > 1]
        odd = [character for character in self.alphabet if character.isspace() or character == DELIMITER]
        if twice or odd or not self.alphabet:
            wrong = (
                f"{(twice or odd)[0]!r} is not allowed" if odd else f"{twice[0]!r} occurs twice" if twice else "empty"
            )
            problem = f"={self.alphabet!r}: {wrong}; expected different characters other than spaces and {DELIMITER}"
            raise FieldError("tokenizer.alphabet", problem)

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer that is saved in `folder`. If there is none, creates the tokenizer and saves it there.
        `open_source` is not used.
        """
        del open_source
        if saved(folder):
            return load_tokenizer(folder)
        if self.path:
            tokenizer = load_characters(_file(self.path, CharacterTokenizer.file), read)
        else:
            tokenizer = of_alphabet(self.alphabet)
        tokenizer.save(folder)
        return tokenizer


@dataclasses.dataclass(frozen=True)
class Phonemes:
    """Configuration of a tokenizer of phonemes, for models that speak. Its vocabulary has all phonemes of the training
    data.
    """

    column: str = "phonemes"
    """Name of the column with the list of phonemes of a document."""
    sample: int = 20_000
    """Maximum number of documents of the training data whose phonemes are collected. If there are more, documents at
    equal intervals are used.
    """

    def __post_init__(self):
        fields.at_least("tokenizer.sample", self.sample, 1)

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer that is saved in `folder`. If there is none, collects the phonemes of the documents that
        `open_source()` returns, and saves the tokenizer there.
        """
        if saved(folder):
            return load_tokenizer(folder)
        documents, found = open_source(), set()
        for index in range(0, len(documents), max(1, -(-len(documents) // self.sample))):
            with skippable(documents, index):
                found |= set(columns.strings(record(documents, index), self.column, "tokenizer.column"))
        tokenizer = PhonemeTokenizer(sorted(found - {"", PAUSE, PAD}))
        tokenizer.save(folder)
        return tokenizer


def byte_level_of_files(vocab: str, merges: str, prefix: bool = False) -> ByteLevelTokenizer:
    """Loads a byte-level BPE tokenizer from its vocabulary file and its merges file, as published for GPT-2.

    Args:
      vocab: path of a JSON file that maps vocabulary entries to ids.
      merges: path of a file with one merge per line.
      prefix: whether the tokenizer adds a space before every text.
    """
    try:
        ids, lines = json.loads(read(vocab)), read(merges).decode().split("\n")
        pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
        return ByteLevelTokenizer(training.byte_level(ids, pairs, prefix).to_str())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        reason = training.reason(error)
        raise InputError(f"{vocab}, {merges}: not the vocabulary and the merges of a BPE ({reason})") from error


def _pair(line: str) -> tuple[str, str]:
    """Parses a line of a BPE merges file into the two vocabulary entries that are merged."""
    pieces = line.split(" ")
    if len(pieces) != 2:
        raise ValueError(f"{line!r}: expected two pieces")
    return pieces[0], pieces[1]


def _file(path: str, *names: str) -> str:
    """Returns the path of a tokenizer file: `path` itself, or if it is a folder, the first file in it with one of the
    given names. Raises InputError if the folder has none of them.
    """
    path = os.path.expanduser(path)
    if not storage.path(path).is_dir():
        return path
    for name in names:
        if storage.path(os.path.join(path, name)).exists():
            return os.path.join(path, name)
    few = {1: f"no {names[0]}", 2: f"neither {names[0]} nor {names[-1]}"}
    missing = few.get(len(names), f"none of {', '.join(names)}")
    raise InputError(f"{path}: this folder has {missing}")


def _checked(tokenizer: Tokenizer, kind: type[Tokenizer], path: str) -> Tokenizer:
    if not isinstance(tokenizer, kind):
        expected, found = (cls.__name__.removesuffix("Tokenizer") for cls in (kind, type(tokenizer)))
        raise InputError(f"{path}: a tokenizer of the kind {found}; expected {expected}")
    return tokenizer
