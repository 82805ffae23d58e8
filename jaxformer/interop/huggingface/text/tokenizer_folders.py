"""Exports tokenizers to Hugging Face folders. `AutoTokenizer` of the transformers library loads an exported tokenizer
and gives the same token ids.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.characters import CharacterTokenizer
from jaxformer.data.tokenizers.json_tokenizer import ROLES, JsonTokenizer
from jaxformer.data.tokenizers.marian import MarianTokenizer
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.data.tokenizers.template import PLAIN, Element, Template, decoder_template, to_processor
from jaxformer.data.tokenizers.word_piece import WordPieceTokenizer
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.families import MODEL_TYPES
from jaxformer.interop.huggingface.families.family import Family, Layout
from jaxformer.interop.huggingface.text.sentence_piece_json import to_json_tokenizer
from jaxformer.interop.huggingface.text.tokenizer_files import LETTERS, SETTINGS, import_tokenizer, read_json

__all__ = ["check_vocabulary", "export_tokenizer", "import_tokenizer"]


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: str | os.PathLike,
    family: str | None = None,
    beginning: bool = False,
    template: Template | None = None,
) -> None:
    """Writes the files that `AutoTokenizer.from_pretrained(folder)` loads.

    If the tokenizer was imported and has its own template of special tokens, this template is written, and `template`
    is not used.

    Args:
      tokenizer: Tokenizer to export.
      folder: Existing folder to write to.
      family: Model family as named by `model_type`, such as `bert`. Defaults to the `model_type` of config.json in the
        folder.
      beginning: Whether the model expects texts that start with a BOS token.
      template: Template of the special tokens that are added around texts. Defaults to the template of the model
        family.

    Raises:
      InputError: If the `tokenizers` library cannot represent the tokenizer.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    family = family or str(config.get("model_type", ""))
    names = _special_names(tokenizer, family, beginning)
    settings: dict[str, Any] = {f"{key}_token": name for key, name in names.items()}
    sizes = config.get("text_config", config)
    positions = sizes.get("max_position_embeddings", sizes.get("n_positions"))
    if positions:
        settings["model_max_length"] = positions
    if isinstance(tokenizer, MarianTokenizer):
        files = tokenizer.files()
        settings |= {"tokenizer_class": "MarianTokenizer", "separate_vocabs": False}
    elif isinstance(tokenizer, CharacterTokenizer):
        files = {tokenizer.file: tokenizer.serialize()}
        settings |= tokenizer.settings
    elif family == "speecht5" and isinstance(tokenizer, SentencePieceTokenizer):
        files = {LETTERS: tokenizer.serialize()}
        settings |= {"tokenizer_class": "SpeechT5Tokenizer", "normalize": False}
    else:
        template = tokenizer.own_template or template or _family_template(tokenizer, family, beginning)
        files = _files(tokenizer, template, set(names.values()))
        kind = MODEL_TYPES[family].tokenizer_class if family in MODEL_TYPES else Family.tokenizer_class
        settings |= {"tokenizer_class": kind, "clean_up_tokenization_spaces": False}
        types = ["token_type_ids"] if family == "bert" else []
        settings["model_input_names"] = ["input_ids", *types, "attention_mask"]
        if _layout(family) == "plain":
            settings["add_bos_token"] = beginning
    files[SETTINGS] = _text(settings)
    files[ROLES] = _text({f"{key}_token": name for key, name in names.items()})
    for name, content in files.items():
        (folder / name).write_bytes(content)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, folder: str | os.PathLike) -> None:
    """Raises InputError if the tokenizer has more tokens than the vocabulary of the model. It may have fewer. `folder`
    is named in the message.
    """
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} pieces, the model has a vocabulary "
            f"of {vocab_size:,}; expected a tokenizer that belongs to the model"
        )


def _special_names(tokenizer: Tokenizer, family: str, beginning: bool) -> dict[str, str]:
    """Returns the special tokens to declare in the exported tokenizer files, keyed by role, such as `eos`: those that
    the model family uses and the vocabulary contains.
    """
    keys = MODEL_TYPES[family].special_tokens if family in MODEL_TYPES else Family.special_tokens
    found = {key: tokenizer.special_id(key) for key in keys}
    if _layout(family) != "encoder" and not names_beginning(tokenizer, beginning):
        found.pop("bos", None)
    return {key: tokenizer.pieces[number] for key, number in found.items() if number is not None}


def _layout(family: str) -> Layout:
    """Returns the name of the arrangement of special tokens that models of a family expect around texts. Returns
    `plain` (no special tokens) if the family is unknown.
    """
    return MODEL_TYPES[family].layout if family in MODEL_TYPES else "plain"


def names_beginning(tokenizer: Tokenizer, beginning: bool) -> bool:
    """Returns whether the exported tokenizer files declare a BOS token.

    They declare one if texts start with a BOS token, if the imported folder declared one, or if the same token is both
    BOS and EOS, as in GPT-2. Otherwise declaring it would make other programs add it to texts, although the model was
    trained without it.
    """
    if beginning or tokenizer.roles:
        return beginning or "bos" in tokenizer.roles
    return tokenizer.special_id("bos") == tokenizer.special_id("eos")


def _family_template(tokenizer: Tokenizer, family: str, beginning: bool) -> Template:
    """Returns the template of special tokens that models of a family expect around a text and around a pair of
    texts.
    """
    bos, eos = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    layout = _layout(family)
    if layout == "encoder" and None not in (tokenizer.special_id("cls"), tokenizer.special_id("sep")):
        return tokenizer.template("encoder")
    template = decoder_template(eos) if layout == "ended" and eos is not None else PLAIN
    if not beginning or bos is None:
        return template
    return Template((Element(bos), *template.single), (Element(bos), *template.pair))


def _files(tokenizer: Tokenizer, template: Template, special: set[str]) -> dict[str, bytes]:
    """Returns the content of tokenizer.json, and of the vocabulary files that older programs read instead (such as
    vocab.txt), keyed by file name.
    """
    files = {JsonTokenizer.file: _json_file(tokenizer, template, special)}
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


def _json_file(tokenizer: Tokenizer, template: Template, special: set[str]) -> bytes:
    """Returns the content of tokenizer.json with the given template. The tokens whose names are in `special` become
    special tokens.
    """
    import tokenizers

    if not isinstance(tokenizer, JsonTokenizer):
        written = to_json_tokenizer(tokenizer.serialize())
        written.add_special_tokens([name for name in tokenizer.pieces if name in special])
        config = json.loads(written.to_str())
    else:
        config = tokenizer.config
        if missing := special - {token["content"] for token in config["added_tokens"] if token["special"]}:
            written = tokenizers.Tokenizer.from_str(tokenizer.serialize().decode())
            written.add_special_tokens([name for name in tokenizer.pieces if name in missing])
            config["added_tokens"] = json.loads(written.to_str())["added_tokens"]
        elif tokenizer.own_template is not None:
            return tokenizer.serialize()
        if isinstance(tokenizer, ByteLevelTokenizer):
            masks = {
                tokenizer.pieces[number]
                for number in (tokenizer.special_id("mask"), *tokenizer.sentinel_ids)
                if number is not None
            }
            config["added_tokens"] = [
                token | {"lstrip": token["lstrip"] or token["content"] in masks} for token in config["added_tokens"]
            ]
    if tokenizer.own_template is None:
        config["post_processor"] = to_processor(template, tokenizer.pieces, config["post_processor"])
    return (json.dumps(config, indent=2, ensure_ascii=False)).encode()


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
