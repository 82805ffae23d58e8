"""Tokenizers from Hugging Face folders and to them, with the ids that `AutoTokenizer` gives."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.data import special_tokens, tokenizer_training
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.configs import byte_level_of_files
from jaxformer.data.tokenizers.json_tokenizer import ROLES, JsonTokenizer
from jaxformer.data.tokenizers.loading import load, load_json, read
from jaxformer.data.tokenizers.marian import MarianTokenizer
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError
from jaxformer.interop.sentencepiece import to_json_tokenizer

SETTINGS = "tokenizer_config.json"
MODELS = ("spiece.model", "tokenizer.model")
"""SentencePiece models by their names in T5's and LLaMA's folders."""
ENCODERS = ("bert", "distilbert", "roberta")
ANSWERING = ("t5", "mt5", "marian", "bart")
"""Families whose inputs end in the end token."""
SENTINELS = 100
"""What T5's tokenizers have where they do not say."""


def import_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a Hugging Face folder.

    Reads tokenizer.json; or else Marian's source.spm, target.spm and vocab.json, a SentencePiece model, BERT's
    vocab.txt, or GPT-2's vocab.json and merges.txt, each with what tokenizer_config.json says of it.

    Raises:
      InputError: there is none, or one that cannot be read.
    """
    folder = Path(folder)
    settings = _settings(folder)
    path = str(folder / JsonTokenizer.file)
    if os.path.exists(path):
        return _with_roles(load_json(path), settings)
    if (folder / MarianTokenizer.file).exists():
        return load(MarianTokenizer, str(folder / MarianTokenizer.file))
    for name in MODELS:
        if (folder / name).exists():
            return _sentencepiece(folder, name, settings)
    if (folder / "vocab.txt").exists():
        return _with_roles(_wordpiece(folder, settings), settings)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        return _with_roles(byte_level_of_files(*files, bool(settings.get("add_prefix_space", False))), settings)
    names = ", ".join((JsonTokenizer.file, MarianTokenizer.file, *MODELS, "vocab.txt"))
    raise InputError(f"{folder}: holds no tokenizer; expected one of {names}, or vocab.json with merges.txt")


def export_tokenizer(
    tokenizer: Tokenizer, folder: str | os.PathLike, family: str | None = None, beginning: bool = False
) -> None:
    """Writes what `AutoTokenizer.from_pretrained(folder)` loads.

    An imported tokenizer adds to a text what it did; one of ours adds what the family's models are given here.

    Args:
      tokenizer: ours.
      folder: where to; it is there.
      family: as `model_type` has it, such as `bert`; by default that of the folder's config.json.
      beginning: whether texts begin with the beginning token, of a decoder.

    Raises:
      InputError: a tokenizer that the `tokenizers` library cannot be told of.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    family = family or str(config.get("model_type", ""))
    names = _special_names(tokenizer, family)
    settings: dict[str, Any] = {f"{key}_token": name for key, name in names.items()}
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions:
        settings["model_max_length"] = positions
    if isinstance(tokenizer, MarianTokenizer):
        files = tokenizer.files()
        settings |= {"tokenizer_class": "MarianTokenizer", "separate_vocabs": False}
    else:
        files = _files(tokenizer, _around(family, names, beginning), set(names.values()))
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        types = ["token_type_ids"] if family == "bert" else []
        settings["model_input_names"] = ["input_ids", *types, "attention_mask"]
        if family not in (*ENCODERS, *ANSWERING):
            settings["add_bos_token"] = beginning
    files[SETTINGS] = _text(settings)
    files[ROLES] = _text({f"{key}_token": name for key, name in names.items()})
    for name, content in files.items():
        (folder / name).write_bytes(content)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, folder: str | os.PathLike) -> None:
    """Raises InputError where the tokenizer has pieces beyond a model's vocabulary; that may well be larger."""
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} pieces, the model a vocabulary of {vocab_size:,}; "
            "expected a tokenizer that belongs to the model"
        )


def _settings(folder: Path) -> dict[str, Any]:
    """What a folder says about its tokenizer; of special tokens and the like, the text alone."""
    said = _json(folder / ROLES) | _json(folder / SETTINGS)
    return {name: value["content"] if _is_token(value) else value for name, value in said.items()}


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _json(path: Path) -> dict[str, Any]:
    """An object of JSON; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read(str(path)))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object of JSON")
    return value


def _with_roles(tokenizer: JsonTokenizer, settings: Mapping[str, Any]) -> JsonTokenizer:
    """The tokenizer with the special tokens that it would not find by their names."""
    roles = {}
    for key, names in special_tokens.NAMES.items():
        said = settings.get(f"{key}_token")
        found = next((name for name in names if name in tokenizer.pieces), None)
        if isinstance(said, str) and said in tokenizer.pieces and said != found:
            roles[key] = said
    return type(tokenizer)(tokenizer.serialize().decode(), roles) if roles else tokenizer


def _sentencepiece(folder: Path, name: str, settings: Mapping[str, Any]) -> Tokenizer:
    """A SentencePiece model with the tokens that its folder adds behind it."""
    tokenizer = load(SentencePieceTokenizer, str(folder / name))
    size = tokenizer.vocab_size
    added = {int(number): token["content"] for number, token in settings.get("added_tokens_decoder", {}).items()}
    added |= {number: token for token, number in _json(folder / "added_tokens.json").items()}
    behind = {number: token for number, token in added.items() if number >= size}
    if not behind and _json(folder / "config.json").get("model_type") in ("t5", "mt5"):
        count = int(settings.get("extra_ids", SENTINELS))
        return tokenizer if len(tokenizer.sentinel_ids) else tokenizer.with_sentinels(count)
    if sorted(behind) != list(range(size, size + len(behind))):
        raise InputError(f"{folder}: tokens are added with the ids {sorted(behind)}; expected {size} and on")
    names = [behind[number] for number in sorted(behind)]
    return SentencePieceTokenizer(tokenizer_training.with_pieces(tokenizer.serialize(), names)) if names else tokenizer


def _wordpiece(folder: Path, settings: Mapping[str, Any]) -> WordPieceTokenizer:
    """BERT's vocab.txt, and what its config says of letters."""
    vocab = tokenizer_training.vocab_of_lines(read(str(folder / "vocab.txt")))
    unk = settings.get("unk_token", special_tokens.UNK)
    if unk not in vocab:
        raise InputError(f"{folder / 'vocab.txt'}: the vocabulary has no {unk}; WordPiece needs one")
    letters = {"strip_accents": settings.get("strip_accents")}
    letters["handle_chinese_chars"] = bool(settings.get("tokenize_chinese_chars", True))
    tokenizer = tokenizer_training.wordpiece(vocab, bool(settings.get("do_lower_case", True)), unk, **letters)
    return WordPieceTokenizer(tokenizer.to_str())


def _special_names(tokenizer: Tokenizer, family: str) -> dict[str, str]:
    """The special tokens that a family has and the vocabulary too, by what they are for."""
    keys = ["pad", "unk"]
    keys += ["cls", "sep", "mask"] if family in ENCODERS else []
    keys += ["bos", "eos"] if family not in ("bert", "distilbert", "t5", "mt5", "marian") else []
    keys += ["eos"] if family in ("t5", "mt5", "marian") else []
    keys += ["cls", "sep", "mask"] if family == "bart" else []
    names = {}
    for key in keys:
        choices = [tokenizer.roles[key]] if key in tokenizer.roles else special_tokens.NAMES[key]
        found = next((name for name in choices if name in tokenizer.pieces), None)
        if found is not None:
            names[key] = found
    return names


def _around(family: str, names: Mapping[str, str], beginning: bool) -> tuple[str, str] | None:
    """What a family's models are given around one text, and around two."""
    if family in ENCODERS and {"cls", "sep"} <= names.keys():
        first, end = names["cls"], names["sep"]
        if family == "roberta":
            return f"{first} $A {end}", f"{first} $A {end} {end} $B {end}"
        return f"{first} $A {end}", f"{first} $A {end} $B:1 {end}:1"
    if family in ANSWERING and "eos" in names:
        return f"$A {names['eos']}", f"$A {names['eos']} $B {names['eos']}"
    if beginning and "bos" in names:
        return f"{names['bos']} $A", f"{names['bos']} $A $B"
    return None


def _files(tokenizer: Tokenizer, around: tuple[str, str] | None, special: set[str]) -> dict[str, bytes]:
    """tokenizer.json, and the files of older readers."""
    import tokenizers

    ours = tokenizer.config if isinstance(tokenizer, JsonTokenizer) else None
    if ours is not None:
        written = tokenizers.Tokenizer.from_str(tokenizer.serialize().decode())
        written.add_special_tokens([name for name in tokenizer.pieces if name in special])
    else:
        written = to_json_tokenizer(tokenizer.serialize())
    kept = ours and ours["post_processor"]
    if around and (kept is None or kept["type"] == "ByteLevel"):
        ids = [(name, written.token_to_id(name)) for name in special]
        written.post_processor = tokenizers.processors.TemplateProcessing(
            single=around[0], pair=around[1], special_tokens=ids
        )
    elif ours is not None and special <= {token["content"] for token in ours["added_tokens"]}:
        written = None  # As it came: the library rounds a score at times.
    content = tokenizer.serialize() if written is None else written.to_str(pretty=True).encode()
    files = {JsonTokenizer.file: content}
    if isinstance(tokenizer, WordPieceTokenizer):
        files["vocab.txt"] = "".join(f"{piece}\n" for piece in tokenizer.pieces).encode()
    elif isinstance(tokenizer, ByteLevelTokenizer):
        model = tokenizer.config["model"]
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        files["vocab.json"] = json.dumps(model["vocab"], ensure_ascii=False).encode()
        files["merges.txt"] = "\n".join(["#version: 0.2", *lines, ""]).encode()
    elif isinstance(tokenizer, SentencePieceTokenizer):
        files["tokenizer.model"] = tokenizer.serialize()
    return files


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
