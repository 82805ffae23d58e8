"""Loads tokenizers from files."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxformer import storage
from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.characters import CharacterTokenizer, load_characters
from jaxformer.data.tokenizers.json_tokenizer import ROLES, JsonTokenizer, parts
from jaxformer.data.tokenizers.marian import MarianTokenizer
from jaxformer.data.tokenizers.metaspace import MetaspaceTokenizer
from jaxformer.data.tokenizers.phonemes import PhonemeTokenizer, load_phonemes
from jaxformer.data.tokenizers.sentence_piece import SPACE, SentencePieceTokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError
from jaxformer.limits import one_line, parse_json

KINDS = (SentencePieceTokenizer, MarianTokenizer, JsonTokenizer, CharacterTokenizer, PhonemeTokenizer)


def load_tokenizer(folder: str) -> Tokenizer:
    """Loads the tokenizer that `Tokenizer.save` wrote to a folder. Raises InputError if there is none."""
    for kind in (SentencePieceTokenizer, MarianTokenizer):
        path = os.path.join(folder, kind.file)
        if storage.path(path).exists():
            return load(kind, path)
    path = os.path.join(folder, JsonTokenizer.file)
    if storage.path(path).exists():
        return load_json(path, _roles(folder))
    path = os.path.join(folder, CharacterTokenizer.file)
    if storage.path(path).exists():
        return load_characters(path, read)
    path = os.path.join(folder, PhonemeTokenizer.file)
    if storage.path(path).exists():
        return load_phonemes(path, read)
    names = [kind.file for kind in KINDS]
    raise InputError(f"{folder}: holds no tokenizer; expected {', '.join(names[:-1])} or {names[-1]}")


def saved(folder: str) -> bool:
    """Returns whether the folder contains a saved tokenizer."""
    return any(storage.path(os.path.join(folder, kind.file)).exists() for kind in KINDS)


SentencePieceKind = TypeVar("SentencePieceKind", bound=SentencePieceTokenizer | MarianTokenizer)


def load(kind: type[SentencePieceKind], path: str) -> SentencePieceKind:
    """Loads a SentencePiece tokenizer from its model file, or a Marian tokenizer from its folder.

    Args:
      kind: class of the tokenizer.
      path: path of the model file. For Marian, path of `source.spm`; `target.spm` and `vocab.json` are read from the
        same folder.
    """
    if kind is MarianTokenizer:
        folder = os.path.dirname(os.path.expanduser(path))
        contents = [read(os.path.join(folder, name)) for name in MarianTokenizer.FILES]
    else:
        contents = [read(path)]
    try:
        return kind(*contents)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception or RuntimeError
        raise InputError(f"{path}: not a SentencePiece model ({training.reason(error)})") from error


def load_json(path: str, roles: Mapping[str, str] | None = None) -> JsonTokenizer:
    """Loads the tokenizer that a tokenizer.json defines.

    Args:
      path: path of the file.
      roles: names of special tokens; see `JsonTokenizer`.

    Raises:
      InputError: If the file is not a tokenizer.json, or its kind of tokenizer is not supported.
    """
    text = read(path)
    try:
        config = parse_json(text, "its content")
        kind = kind_of(config)
        tokenizer = kind(text.decode(), roles) if kind else None
    except BaseException as error:  # The library raises bare Exception, and one that is not an Exception if it panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path}: not a tokenizer.json ({one_line(error)})") from error
    if tokenizer is None:
        raise InputError(
            f"{path}: a {config['model'].get('type')} model whose pieces are not those of WordPiece, SentencePiece "
            "or byte-level BPE; expected one of these"
        )
    return tokenizer


def kind_of(config: Mapping[str, Any]) -> type[JsonTokenizer] | None:
    """Returns the tokenizer class for a tokenizer.json, which depends on how its vocabulary entries mark words: `##`
    (WordPiece), byte-level characters, or `▁` (SentencePiece).

    Args:
      config: parsed content of tokenizer.json.

    Returns:
      The class. None if the kind of tokenizer is not supported.
    """
    model, around = config["model"], list(parts(config, "normalizer", "pre_tokenizer", "decoder"))
    types = {part["type"] for part in around}
    # Old files do not name their model.
    if model.get("type") == "WordPiece" or "max_input_chars_per_word" in model:
        return WordPieceTokenizer
    if "merges" in model and "ByteLevel" in types:
        return ByteLevelTokenizer
    if "Metaspace" in types or any(SPACE in (part.get("content"), part.get("prepend")) for part in around):
        return MetaspaceTokenizer
    return None


def read(path: str) -> bytes:
    """Returns the content of a file. Raises InputError if the file cannot be read."""
    try:
        return storage.read_bytes(os.path.expanduser(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: {reason}; give the path of a tokenizer's file") from error


def _roles(folder: str) -> dict[str, str]:
    path = os.path.join(folder, ROLES)
    if not storage.path(path).exists():
        return {}
    roles = parse_json(read(path), path)
    if not isinstance(roles, dict):
        raise InputError(f"{path}: expected an object of special tokens by their role")
    return {key.removesuffix("_token"): name for key, name in roles.items()}
