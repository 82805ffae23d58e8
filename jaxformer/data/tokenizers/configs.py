"""Tokenizers as an experiment names them: trained on its source on first use, or loaded."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Literal

from jaxformer.data import tokenizer_training
from jaxformer.data.special_tokens import UNK
from jaxformer.data.tokenizers.loading import load, load_tokenizer, read, saved
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError


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
    """A trained .model file; None trains one, and the fields above and below say how."""
    sample: int = 100_000
    """Documents to train on, evenly spaced over the source."""
    sentinels: int = 0
    """Pieces <extra_id_0>, ... for span corruption, from the vocabulary's end downwards; T5 has 100. A loaded model
    that has none gets them behind its own."""

    def __post_init__(self):
        if not 0 <= self.sentinels < self.vocab:
            raise InputError(
                f"tokenizer.sentinels {self.sentinels}: must be from 0 to below tokenizer.vocab {self.vocab}"
            )

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer kept in `folder`; made and saved there if there is none yet."""
        if saved(folder):
            return load_tokenizer(folder)
        if self.path:
            tokenizer = load(SentencePieceTokenizer, self.path)
            if self.sentinels:
                tokenizer = tokenizer.with_sentinels(self.sentinels)
        else:
            how = (self.vocab, self.model_type, self.lowercase, self.sentinels)
            model = tokenizer_training.train_sentencepiece(open_source(), self.sample, *how)
            tokenizer = SentencePieceTokenizer(model)
        tokenizer.save(folder)
        return tokenizer


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """WordPiece as BERT has it: trained on the training source on first use, or loaded."""

    vocab: int = 30_522
    """Pieces to train, special ones included; a small text gives fewer."""
    lowercase: bool = True
    """Fold case and strip accents; also for a vocab.txt, which does not say."""
    path: str | None = None
    """A vocab.txt, a tokenizer.json, or a folder with one of them; None trains one."""
    sample: int = 100_000
    """Documents to train on, evenly spaced over the source."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer kept in `folder`; made and saved there if there is none yet."""
        if saved(folder):
            return load_tokenizer(folder)
        tokenizer = (
            self._load(self.path)
            if self.path
            else self._from_vocab(
                tokenizer_training.train_wordpiece(open_source(), self.sample, self.vocab, self.lowercase)
            )
        )
        tokenizer.save(folder)
        return tokenizer

    def _load(self, path: str) -> Tokenizer:
        if os.path.isdir(path):
            names = [name for name in ("tokenizer.json", "vocab.txt") if name in os.listdir(path)]
            if not names:
                raise InputError(f"{path}: this folder has neither tokenizer.json nor vocab.txt")
            path = os.path.join(path, names[0])
        if path.endswith(".json"):
            return load(WordPieceTokenizer, path)
        pieces = read(path).decode(errors="replace").splitlines()
        return self._from_vocab({piece: number for number, piece in enumerate(pieces)})

    def _from_vocab(self, vocab: dict[str, int]) -> Tokenizer:
        if UNK not in vocab:
            raise InputError(f"tokenizer.path: the vocabulary has no {UNK}; WordPiece needs one")
        return WordPieceTokenizer(tokenizer_training.wordpiece(vocab, self.lowercase).to_str())
