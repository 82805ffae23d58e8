"""Configs of tokenizers: trained on the training source on first use, or loaded."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Literal

from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.loading import load, load_json, load_tokenizer, read, saved
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.special_tokens import SPECIALS, UNK
from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """SentencePiece: trained on the training source on first use, or loaded."""

    vocab: int = 4096
    """Pieces to train, special ones and sentinels included."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """Unigram language model (Kudo 2018) or byte-pair encoding."""
    lowercase: bool = False
    """Fold case."""
    path: str | None = None
    """A trained .model file; None trains one with the other fields."""
    sample: int = 100_000
    """Documents to train on, evenly spaced over the source."""
    sentinels: int = 0
    """Number of pieces <extra_id_0>, ... for span corruption, from the end of the vocabulary downwards; T5 has 100. A
    loaded model without any gets them after its own pieces."""

    def __post_init__(self):
        if not 0 <= self.sentinels < self.vocab:
            problem = f"expected at least 0, below vocab={self.vocab}"
            raise FieldError("tokenizer.sentinels", f"={self.sentinels}: {problem}")

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer in `folder`; trained or loaded, and saved there, if there is none yet."""
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
    """BERT's WordPiece: trained on the training source on first use, or loaded."""

    vocab: int = 30_522
    """Pieces to train, including the special ones; a small text gives fewer."""
    lowercase: bool = True
    """Fold case and strip accents, also for a vocab.txt, which has no such setting."""
    path: str | None = None
    """A vocab.txt, a tokenizer.json, or a folder with one of them; None trains one."""
    sample: int = 100_000
    """Documents to train on, evenly spaced over the source."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer in `folder`; trained or loaded, and saved there, if there is none yet."""
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
    """GPT-2's byte-level BPE: trained on the training source on first use, or loaded."""

    vocab: int = 50_257
    """Pieces to train, including the 256 bytes and the special ones; a small text gives fewer."""
    path: str | None = None
    """A tokenizer.json, or a folder with one, with vocab.json and merges.txt, or with GPT-2's encoder.json and
    vocab.bpe; None trains one."""
    sample: int = 100_000
    """Documents to train on, evenly spaced over the source."""

    def __post_init__(self):
        least = 256 + len(SPECIALS)
        if self.vocab < least:
            problem = f"the bytes and the special pieces alone are {least}; expected at least that many"
            raise FieldError("tokenizer.vocab", f"={self.vocab}: {problem}")

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer in `folder`; trained or loaded, and saved there, if there is none yet."""
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


def byte_level_of_files(vocab: str, merges: str, prefix: bool = False) -> ByteLevelTokenizer:
    """A byte-level BPE from GPT-2's two files; `prefix`: whether every text begins with an added space."""
    try:
        ids, lines = json.loads(read(vocab)), read(merges).decode().split("\n")
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return ByteLevelTokenizer(training.byte_level(ids, pairs, prefix).to_str())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        reason = training.reason(error)
        raise InputError(f"{vocab}, {merges}: not the vocabulary and the merges of a BPE ({reason})") from error


def _file(path: str, *names: str) -> str:
    """The path, or the first of these files in it if it is a folder."""
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        return path
    for name in names:
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    missing = f"neither {names[0]} nor {names[1]}" if len(names) == 2 else f"none of {', '.join(names)}"
    raise InputError(f"{path}: this folder has {missing}")


def _checked(tokenizer: Tokenizer, kind: type[Tokenizer], path: str) -> Tokenizer:
    if not isinstance(tokenizer, kind):
        expected, found = (cls.__name__.removesuffix("Tokenizer") for cls in (kind, type(tokenizer)))
        raise InputError(f"{path}: a tokenizer of the kind {found}; expected {expected}")
    return tokenizer
