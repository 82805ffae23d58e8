"""Tokenizers from their files."""

import os

from jaxformer.data import tokenizer_training
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError


def load_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer that `save` wrote into this folder."""
    for kind in (SentencePieceTokenizer, WordPieceTokenizer):
        path = os.path.join(folder, kind.file)
        if os.path.exists(path):
            return load(kind, path)
    raise InputError(
        f"{folder}: holds no tokenizer; expected {SentencePieceTokenizer.file} or {WordPieceTokenizer.file}"
    )


def saved(folder: str) -> bool:
    kinds = (SentencePieceTokenizer, WordPieceTokenizer)
    return any(os.path.exists(os.path.join(folder, kind.file)) for kind in kinds)


def load(kind: type[Tokenizer], path: str) -> Tokenizer:
    data = read(path)
    try:
        return kind(data.decode() if kind is WordPieceTokenizer else data)
    except Exception as error:  # both libraries raise bare Exception or RuntimeError
        what = "SentencePiece model" if kind is SentencePieceTokenizer else "tokenizer.json"
        raise InputError(f"{path}: not a {what} ({tokenizer_training.reason(error)})") from error


def read(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: {reason}; give the path of a tokenizer's file") from error
