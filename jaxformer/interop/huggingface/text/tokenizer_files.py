"""Loads tokenizers from the files of a Hugging Face folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.data.tokenizers import Tokenizer, special_tokens, training
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.characters import CharacterTokenizer, load_characters
from jaxformer.data.tokenizers.configs import byte_level_of_files
from jaxformer.data.tokenizers.json_tokenizer import ROLES, JsonTokenizer
from jaxformer.data.tokenizers.loading import load, load_json, read
from jaxformer.data.tokenizers.marian import MarianTokenizer
from jaxformer.data.tokenizers.metaspace import MetaspaceTokenizer
from jaxformer.data.tokenizers.sentence_piece import SPACE, SentencePieceTokenizer
from jaxformer.data.tokenizers.template import (
    Element,
    Template,
    decoder_template,
    encoder_template,
    roberta_template,
    to_processor,
)
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.text.sentence_piece_json import to_json_tokenizer
from jaxformer.limits import parse_json

SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"
LETTERS = "spm_char.model"
"""File name of the SentencePiece model of SpeechT5, whose tokens are single characters."""
MODELS = ("spiece.model", "tokenizer.model", LETTERS)
"""File names of SentencePiece models in Hugging Face folders: those of T5, LLaMA and SpeechT5."""
SENTINELS = 100
"""Default number of sentinel tokens (`<extra_id_0>`, ...) in T5 tokenizers."""
BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
GPT2: dict[str, str] = dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>")
QWEN2: dict[str, str] = dict.fromkeys(("unk", "eos", "pad"), "<|endoftext|>")
LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
GEMMA = {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<mask>"}
T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
SPEECH_T5 = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression by which Qwen tokenizers divide a text into words. Each digit is a separate word."""
CLASSES: Mapping[str, Mapping[str, str]] = {
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "RobertaTokenizer": ROBERTA,
    "BartTokenizer": ROBERTA,
    "GPT2Tokenizer": GPT2,
    "Qwen2Tokenizer": QWEN2,
    "LlamaTokenizer": LLAMA,
    "GemmaTokenizer": GEMMA,
    "T5Tokenizer": T5,
    "WhisperTokenizer": GPT2,
    "SpeechT5Tokenizer": SPEECH_T5,
}
"""Maps tokenizer classes of the transformers library to their default special tokens, which apply if a folder does not
name its special tokens.
"""
MODEL_CLASSES: Mapping[str, str] = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "gpt2": "GPT2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "whisper": "WhisperTokenizer",
    "speecht5": "SpeechT5Tokenizer",
}
"""Maps each model type to its default tokenizer class, which applies if tokenizer_config.json does not name one."""
BEGINNING = ("LlamaTokenizer", "GemmaTokenizer")
"""Tokenizer classes that add a BOS token to texts by default, unless `add_bos_token` in tokenizer_config.json is false.
"""


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder contains tokenizer files."""
    names = (JsonTokenizer.file, MarianTokenizer.file, *MODELS, "vocab.txt", "vocab.json")
    return any((folder / name).is_file() for name in names)


def import_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder.

    Reads tokenizer.json if it exists. Otherwise reads the source.spm, target.spm and vocab.json of Marian, a
    SentencePiece model, the vocab.txt of BERT, the vocab.json and merges.txt of GPT-2, or the vocab.json of wav2vec2.
    Added and special tokens are read from tokenizer_config.json, special_tokens_map.json and added_tokens.json. If
    tokenizer.json does not define which special tokens are added around a text, the tokenizer class does.

    Raises:
      InputError: If there is no tokenizer, or it cannot be read.
    """
    folder = Path(folder)
    settings = _settings(folder)
    path = str(folder / JsonTokenizer.file)
    if os.path.exists(path):
        # As in transformers 5, tokenizer.json defines the tokens at the start of a text, if it exists.
        return _completed(load_json(path), settings | {"add_bos_token": False, "add_eos_token": False})
    if (folder / MarianTokenizer.file).exists():
        return load(MarianTokenizer, str(folder / MarianTokenizer.file))
    for name in MODELS:
        if (folder / name).exists():
            return _sentencepiece(folder, name, settings)
    if (folder / "vocab.txt").exists():
        settings["tokenizer_class"] = _class(settings) or "BertTokenizer"
        return _completed(_wordpiece(folder, settings), settings)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _completed(_byte_level(folder, settings), settings)
    if (folder / CharacterTokenizer.file).exists():
        return load_characters(folder / CharacterTokenizer.file, read)
    names = ", ".join((JsonTokenizer.file, MarianTokenizer.file, *MODELS, "vocab.txt"))
    raise InputError(f"{folder}: no tokenizer in the folder; expected one of {names}, or vocab.json with merges.txt")


def begins_texts(tokenizer: Tokenizer | None, folder: str | os.PathLike) -> bool:
    """Returns whether the model of a folder expects texts that start with a BOS token.

    If the tokenizer defines which special tokens are added around a text, returns whether the first one is the BOS
    token. If not, as in SentencePiece models, returns the field `add_bos_token` of tokenizer_config.json. If that is
    missing, returns True for the tokenizer classes of LLaMA and Gemma, and False otherwise.
    """
    if tokenizer is not None and (template := tokenizer.own_template) is not None:
        return template.single[0].content == tokenizer.special_id("bos")
    settings = _settings(Path(folder))
    return bool(settings.get("add_bos_token", _class(settings) in BEGINNING))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Returns an empty dict if the file does not exist."""
    if not path.exists():
        return {}
    value = parse_json(read(str(path)), str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def _settings(folder: Path) -> dict[str, Any]:
    """Reads tokenizer_config.json and special_tokens_map.json of a folder. Descriptions of special tokens are replaced
    by the text of the token.

    The returned dict also has the `model_type` of config.json, the tokens of added_tokens.json (in
    `added_tokens_decoder`), and `has_json`: whether the folder contains tokenizer.json.
    """
    said = read_json(folder / ROLES) | read_json(folder / SETTINGS)
    settings = {name: value["content"] if _is_token(value) else value for name, value in said.items()}
    settings.setdefault("model_type", read_json(folder / "config.json").get("model_type"))
    special = {value for name, value in settings.items() if name.endswith("_token")} | _more_special(settings)
    added = {int(number): dict(token) for number, token in settings.get("added_tokens_decoder", {}).items()}
    for content, number in read_json(folder / ADDED).items():
        is_special = content in special
        added.setdefault(number, {"content": content, "special": is_special, "normalized": not is_special})
    return settings | {"added_tokens_decoder": added, "has_json": (folder / JsonTokenizer.file).exists()}


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _more_special(settings: Mapping[str, Any]) -> set[str]:
    """Returns the texts of the additional special tokens: those that have no role such as BOS or EOS."""
    names = set()
    for field in ("extra_special_tokens", "additional_special_tokens"):
        said = settings.get(field) or []
        tokens = said.values() if isinstance(said, dict) else said
        names |= {token["content"] if _is_token(token) else token for token in tokens}
    return {name for name in names if isinstance(name, str)}


def _class(settings: Mapping[str, Any]) -> str | None:
    """Returns the name of the tokenizer class (without `Fast`) that version 5 of the transformers library would use:
    `tokenizer_class` in the settings, or the default class of the model type.

    Returns None if the class is not supported, or if the model type has no default.
    """
    said = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    return said if said in CLASSES else None if said else MODEL_CLASSES.get(settings["model_type"])


def _roles(settings: Mapping[str, Any], pieces: list[str]) -> dict[str, str]:
    """Maps roles, such as `eos`, to the texts of the special tokens that have them. Roles whose token is not in the
    vocabulary are left out.

    If the settings do not name the token of a role, it is the default of the tokenizer class.

    Args:
      settings: settings of the tokenizer, as returned by `_settings`.
      pieces: vocabulary of the tokenizer.
    """
    names = {key: settings.get(f"{key}_token", ...) for key in special_tokens.NAMES}
    default = CLASSES.get(_class(settings) or "", {})
    found = {key: default.get(key) if name is ... else name for key, name in names.items()}
    known = set(pieces)
    return {key: name for key, name in found.items() if isinstance(name, str) and name in known}


def _completed(tokenizer: JsonTokenizer, settings: Mapping[str, Any]) -> JsonTokenizer:
    """Adds to a tokenizer what tokenizer.json lacks but other files of the folder define: added tokens, special tokens,
    and the template of special tokens around a text. `settings` is the content of these files, as returned by
    `_settings`. Returns the new tokenizer.
    """
    config, kind, changed = tokenizer.config, type(tokenizer), False
    known = {token["content"] for token in config.get("added_tokens") or []}
    added = [token for _, token in sorted(settings["added_tokens_decoder"].items()) if token["content"] not in known]
    if added:
        config["added_tokens"] = _with_added(tokenizer.serialize(), added)
        tokenizer = kind(json.dumps(config, ensure_ascii=False))
    roles = _roles(settings, tokenizer.pieces)
    special = {*roles.values(), *_more_special(settings)}
    for token in config.get("added_tokens") or []:
        changed |= token["content"] in special and not token["special"]
        token["special"] |= token["content"] in special
    if tokenizer.own_template is None and (settings["has_json"] or _class(settings) is not None):
        template = _class_template(settings, roles, tokenizer)
        config["post_processor"] = to_processor(template, tokenizer.pieces, config.get("post_processor"))
        changed = True
    return kind(json.dumps(config, ensure_ascii=False) if changed else tokenizer.serialize().decode(), roles)


def _class_template(settings: Mapping[str, Any], roles: Mapping[str, str], tokenizer: Tokenizer) -> Template:
    """Returns the template of the special tokens that the tokenizer class of the transformers library adds around a
    text and around a pair of texts.
    """
    ids = {key: tokenizer.pieces.index(name) for key, name in roles.items()}
    special, has_marks = CLASSES.get(_class(settings) or ""), {"cls", "sep"} <= ids.keys()
    if special is BERT and has_marks:
        return encoder_template(ids["cls"], ids["sep"])
    if special is ROBERTA and has_marks:
        return roberta_template(ids["cls"], ids["sep"])
    if special is T5 and "eos" in ids:
        return decoder_template(ids["eos"])
    before = (
        (Element(ids["bos"]),) if settings.get("add_bos_token", _class(settings) in BEGINNING) and "bos" in ids else ()
    )
    after = (Element(ids["eos"]),) if settings.get("add_eos_token", False) and "eos" in ids else ()
    second = tuple(Element(slot.content, 1) for slot in (*before, Element("B"), *after))
    single = (*before, Element("A"), *after)
    return Template(single, (*single, *second))


def _with_added(model: bytes, added: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds tokens to a tokenizer.json. Returns the new value of its field `added_tokens`, with all old and new tokens.
    The `tokenizers` library assigns the ids of the new tokens.

    Args:
      model: Content of the tokenizer.json.
      added: Descriptions of the new tokens, as in `added_tokens_decoder` of tokenizer_config.json.
    """
    import tokenizers

    written = tokenizers.Tokenizer.from_str(model.decode())
    written.add_tokens([_token(token) for token in added])
    return json.loads(written.to_str())["added_tokens"]


def _token(said: Mapping[str, Any]) -> Any:
    """Creates a `tokenizers.AddedToken` from the description of a token in tokenizer_config.json."""
    import tokenizers

    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return tokenizers.AddedToken(**{name: said[name] for name in names if name in said})


def _sentencepiece(folder: Path, name: str, settings: Mapping[str, Any]) -> Tokenizer:
    """Loads a SentencePiece model, and adds the tokens that the other files of the folder define. The ids of the added
    tokens follow those of the model.

    If all added tokens are special, or the model is that of SpeechT5, which adds a mask and the blank of CTC, they
    become control symbols of the model, which never match a text. Otherwise, added tokens must be found in a text
    before the model is applied, so the result is a tokenizer of the `tokenizers` library.

    Args:
      folder: Hugging Face folder.
      name: file name of the model.
      settings: settings of the tokenizer, as returned by `_settings`.
    """
    tokenizer = load(SentencePieceTokenizer, str(folder / name))
    size, added = tokenizer.vocab_size, settings["added_tokens_decoder"]
    after = {number: token for number, token in added.items() if number >= size}
    t5 = settings["model_type"] in ("t5", "mt5")
    if not after and t5:
        count = int(settings.get("extra_ids", SENTINELS))
        return tokenizer if len(tokenizer.sentinel_ids) else tokenizer.with_sentinels(count)
    if sorted(after) != list(range(size, size + len(after))):
        raise InputError(
            f"{folder}: added tokens have the ids {sorted(after)}; expected consecutive ids from {size} on"
        )
    ordered = [after[number] for number in sorted(after)]
    if name == LETTERS or all(_is_special(token, settings) for token in ordered):
        names = [token["content"] for token in ordered]
        with_names = training.with_pieces(tokenizer.serialize(), names)
        return SentencePieceTokenizer(with_names) if names else tokenizer
    return _with_ordinary(tokenizer, ordered, settings)


def _is_special(token: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Returns whether an added token is a special token: because it is marked as one, or has the name of one."""
    named = {name for names in special_tokens.NAMES.values() for name in names} | _more_special(settings)
    sentinels = special_tokens.sentinel(0).removesuffix("0>")
    return token.get("special", False) or token["content"] in named or token["content"].startswith(sentinels)


def _with_ordinary(
    tokenizer: SentencePieceTokenizer, added: list[dict[str, Any]], settings: Mapping[str, Any]
) -> MetaspaceTokenizer:
    """Converts a SentencePiece tokenizer to one of the `tokenizers` library and adds the tokens `added`. SentencePiece
    itself cannot represent added tokens that are not special.
    """
    written, t5 = to_json_tokenizer(tokenizer.serialize()), _class(settings) == "T5Tokenizer"
    # LLaMA's added tokens are matched before normalization, so that a preceding space is kept.
    flags = {} if t5 else {"normalized": False}
    written.add_tokens([_token(token | flags | {"special": _is_special(token, settings)}) for token in added])
    config = json.loads(written.to_str())
    if t5:
        # A new word also starts after an added token, and a space before the token is dropped.
        words = dict(config["pre_tokenizer"], prepend_scheme="always")
        config["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, words]}
    elif not settings.get("legacy", "tokenizer_class" not in settings):
        _prefix_once(config)
    roles = _roles(settings, list(written.get_vocab(with_added_tokens=True)))
    made = MetaspaceTokenizer(json.dumps(config, ensure_ascii=False))
    config["post_processor"] = to_processor(_class_template(settings, roles, made), made.pieces)
    return MetaspaceTokenizer(json.dumps(config, ensure_ascii=False), roles)


def _prefix_once(config: dict[str, Any]) -> None:
    """Changes the content of a tokenizer.json in place so that a space is added only at the start of a text, and not
    after each added token.
    """
    steps = config["normalizer"]["normalizers"]
    kept = [step for step in steps if step["type"] != "Prepend"]
    if len(kept) < len(steps):
        config["normalizer"]["normalizers"] = kept
        config["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "first",
            "split": False,
        }


def _wordpiece(folder: Path, settings: Mapping[str, Any]) -> WordPieceTokenizer:
    """Loads a WordPiece tokenizer from BERT's vocab.txt. `settings` (see `_settings`) determine the lowercasing and
    other normalization.
    """
    vocab = training.vocab_of_lines(read(str(folder / "vocab.txt")))
    unk = settings.get("unk_token", special_tokens.UNK)
    if unk not in vocab:
        raise InputError(f"{folder / 'vocab.txt'}: the vocabulary has no {unk}; WordPiece needs one")
    tokenizer = training.wordpiece(
        vocab,
        bool(settings.get("do_lower_case", True)),
        unk,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    tokenizer.add_special_tokens(list(dict.fromkeys(_roles(settings, list(vocab)).values())))
    return WordPieceTokenizer(tokenizer.to_str())


def _byte_level(folder: Path, settings: Mapping[str, Any]) -> ByteLevelTokenizer:
    """Loads a byte-level BPE tokenizer from GPT-2's vocab.json and merges.txt. The tokenizer class in `settings` (see
    `_settings`) determines how texts are divided into words.
    """
    prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer = byte_level_of_files(str(folder / "vocab.json"), str(folder / "merges.txt"), prefix_space)
    config, known = tokenizer.config, _class(settings)
    if known is not None:  # Otherwise tokens are special if they have the name of a special token.
        roles = _roles(settings, tokenizer.pieces)
        config["added_tokens"] = [token for token in config["added_tokens"] if token["content"] in roles.values()]
        for token in config["added_tokens"]:
            # A mask includes the space before it, as in transformers 4. transformers 5 keeps the space here.
            token["lstrip"] |= token["content"] == roles.get("mask")
    if known == "Qwen2Tokenizer":
        config["normalizer"] = {"type": "NFC"}
        split = {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
        letters = config["pre_tokenizer"] | {"use_regex": False}
        config["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, letters]}
    return ByteLevelTokenizer(json.dumps(config, ensure_ascii=False))
