"""Reads and writes the files of the sentence-transformers library, which define how encoder outputs become sentence
vectors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer, parts
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.folders import read_json, write_json
from jaxformer.interop.huggingface.sentence_modules import (
    MODULES,
    NORMALIZE,
    POOLING,
    SENTENCE_MODEL,
    TRANSFORMER,
    read_modules,
)
from jaxformer.layers.pooling import Pooling
from jaxformer.models.base import Model
from jaxformer.objectives.sentence_embedding import SentenceEmbedding

SENTENCES = "sentence_bert_config.json"
MODEL_TYPE = "SentenceTransformer"
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "first", "max": "max", "lasttoken": "last"}
"""Maps names of pooling methods in the sentence-transformers library to names in jaxformer."""
LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Maps boolean fields in older configs of the sentence-transformers module `Pooling` to the values of `pooling_mode`
that replace them in newer ones.
"""
HIDDEN = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}, "token_embeddings"
POOLED = {"text": {"method": "forward", "method_output_name": "pooler_output"}}, "sentence_embedding"
"""Expected values of `modality_config` and `module_output_name` in sentence_bert_config.json, the config of the module
`Transformer`: `HIDDEN` if the module `Pooling` follows, and `POOLED` if the output of the encoder's own pooler is the
sentence vector.
"""
UNLIMITED = 10**9
"""A `model_max_length` in tokenizer_config.json that is larger than this means that the length is not limited."""


def is_sentence_encoder(folder: Path) -> bool:
    """Returns whether a folder contains modules.json, which marks the format of the sentence-transformers library."""
    return (folder / MODULES).is_file()


def read(folder: Path, model: Model, encoder: Path | None = None) -> SentenceEmbedding:
    """Creates the objective that computes sentence vectors in the same way as the model in a sentence-transformers
    folder.

    If there is no modules.json, the objective uses mean pooling, as the sentence-transformers library does.

    Args:
      folder: Folder with modules.json.
      model: Encoder of the folder.
      encoder: Folder of the encoder's config.json. Defaults to `folder`.

    Raises:
      InputError: If modules, poolings or settings are not supported, or if the model generates text and is therefore
        not an encoder.
    """
    encoder = encoder or folder
    if not is_sentence_encoder(folder):
        return SentenceEmbedding(normalized=False, longest=_longest({}, encoder, model))
    if model.is_generative:
        raise InputError(
            f"{folder / MODULES}: sentence vectors of a {type(model).__name__} are not supported; expected an encoder"
        )
    modules = {module.kind: module.folder for module in read_modules(folder)}
    pooling: Pooling
    said = _sentences(modules[TRANSFORMER])
    if POOLING in modules:
        pooling, include_prompt = _pooling(modules[POOLING] / "config.json", model)
    else:
        pooling, include_prompt = "pooler", True
        if not model.has_pooler:
            raise InputError(
                f"{folder / MODULES}: has no Pooling module, and the model has no pooler; expected one of them"
            )
    _check_output(said, modules[TRANSFORMER] / SENTENCES, POOLED if pooling == "pooler" else HIDDEN)
    prompts, default = _prompts(folder / SENTENCE_MODEL)
    return SentenceEmbedding(
        pooling,
        NORMALIZE in modules,
        _longest(said, encoder, model),
        prompts=prompts,
        default_prompt_name=default,
        include_prompt=include_prompt,
    )


def with_case(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Adds lowercasing to a tokenizer, if the sentence-transformers folder `folder` sets `do_lower_case` in
    sentence_bert_config.json. Returns the tokenizer unchanged otherwise.

    Raises:
      InputError: If this kind of tokenizer cannot lowercase.
    """
    if not is_sentence_encoder(folder):
        return tokenizer
    encoder = read_modules(folder)[0].folder
    if not _sentences(encoder).get("do_lower_case"):
        return tokenizer
    if not isinstance(tokenizer, JsonTokenizer):
        kind = type(tokenizer).__name__
        raise InputError(f"{encoder / SENTENCES}: do_lower_case=true is not supported for a {kind}; expected false")
    config = tokenizer.config
    normalizers = list(parts(config, "normalizer"))
    if not any(part["type"] == "Lowercase" for part in normalizers):
        config["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *normalizers]}
    return type(tokenizer)(json.dumps(config, ensure_ascii=False), tokenizer.roles)


def write(folder: Path, objective: SentenceEmbedding, model: Model, origin: Mapping[str, Any] | None = None) -> None:
    """Writes the config files that make the sentence-transformers library compute the same vectors as the objective.

    Args:
      folder: Folder of the encoder, with config.json and weights.
      objective: Objective that defines how vectors are computed.
      model: Encoder.
      origin: Fields of config_sentence_transformers.json in the folder that the model was imported from, to copy to the
        new file. None if there are none.
    """
    kinds = [TRANSFORMER] + [POOLING] * (objective.pooling != "pooler") + [NORMALIZE] * objective.normalized
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    longest = min(objective.longest or model.max_length, model.max_length)
    sentences: dict[str, Any] = {"max_seq_length": longest, "do_lower_case": False}
    for number, kind in enumerate(kinds[1:], 1):
        (folder / f"{number}_{kind}").mkdir()
    if objective.pooling == "pooler":
        sentences |= dict(zip(("modality_config", "module_output_name"), POOLED, strict=True))
    else:
        write_json(folder / "1_Pooling" / "config.json", _pooling_fields(objective, model))
    write_json(folder / SENTENCES, sentences)
    named = {"model_type": MODEL_TYPE, "similarity_fn_name": "cosine", **(origin or {})}
    named |= {"prompts": dict(objective.prompts), "default_prompt_name": objective.default_prompt_name}
    write_json(folder / SENTENCE_MODEL, named)


def _sentences(encoder: Path) -> dict[str, Any]:
    """Reads sentence_bert_config.json, the settings of the sentence-transformers module `Transformer`, from the folder
    of an encoder. Returns an empty dict if the file does not exist.

    Raises:
      InputError: If a setting is not supported. The message names the first such setting.
    """
    path = encoder / SENTENCES
    said = _optional(path)
    known = {"max_seq_length", "do_lower_case", "modality_config", "module_output_name", "unpad_inputs"}
    for name, value in said.items():
        if name == "transformer_task" and value == "feature-extraction":
            continue
        if name not in known and value not in (None, {}, False):
            raise InputError(f"{path}: {name}={value!r} is not supported; expected none")
    return said


def _check_output(said: Mapping[str, Any], path: Path, expected: tuple[Mapping[str, Any], str]) -> None:
    """Raises InputError if the sentence-transformers module `Transformer` outputs anything other than expected: the
    token vectors if the module `Pooling` follows, or the output of the encoder's pooler.

    Args:
      said: Config of the module `Transformer`.
      path: Path of the config, for error messages.
      expected: Expected values of `modality_config` and `module_output_name`: `HIDDEN` or `POOLED`.
    """
    modalities, output = expected
    for name, value in {"modality_config": modalities, "module_output_name": output}.items():
        found = said.get(name)
        if name == "modality_config" and isinstance(found, dict):
            # Sentences are texts; other modalities of the encoder do not matter.
            found = {"text": {key: each for key, each in found.get("text", {}).items() if key in modalities["text"]}}
        if found != value and not (found is None and expected is HIDDEN):
            raise InputError(f"{path}: {name}={said.get(name)!r} is not supported; expected {value!r}")


def _longest(said: Mapping[str, Any], encoder: Path, model: Any) -> int | None:
    """Returns the maximum number of input tokens that the folder sets. None if it sets none, or none that is smaller
    than the maximum length of the model.

    Args:
      said: Settings in sentence_bert_config.json.
      encoder: Folder of the encoder. Its tokenizer_config.json may set a maximum if `said` does not.
      model: Encoder.
    """
    name, longest = "max_seq_length", said.get("max_seq_length")
    path = encoder / SENTENCES
    if longest is None:
        name, path = "model_max_length", encoder / "tokenizer_config.json"
        longest = _optional(path).get(name)
    if longest is None or (isinstance(longest, int | float) and longest > UNLIMITED):
        return None
    if type(longest) is not int or longest < 3:
        raise InputError(f"{path}: {name}={longest!r} is not supported; expected a whole number, at least 3")
    return longest if longest < model.max_length else None


def _pooling(path: Path, model: Model) -> tuple[Pooling, bool]:
    """Reads the config of the sentence-transformers module `Pooling`. Returns the pooling method in jaxformer, and
    whether the tokens of the prompt are pooled together with those of the sentence.
    """
    said = read_json(path)
    flags = [mode for flag, mode in LEGACY.items() if said.get(flag) is True]
    modes = said.get("pooling_mode", flags or "mean")
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        shown = " and ".join(map(str, modes))
        raise InputError(f"{path}: pooling_mode={shown} is not supported; expected one of {', '.join(POOLINGS)}")
    width = said.get("embedding_dimension", said.get("word_embedding_dimension", _width(model)))
    if width != _width(model):
        raise InputError(f"{path}: embedding_dimension={width}; expected the model's {_width(model)}")
    include = said.get("include_prompt", True)
    if not isinstance(include, bool):
        raise InputError(f"{path}: include_prompt={include!r}: expected true or false")
    return POOLINGS[modes[0]], include


def _width(model: Model) -> int:
    """Returns the width of the encoder's hidden vectors."""
    return list(model.stacks().values())[-1].width


def _pooling_fields(objective: SentenceEmbedding, model: Model) -> dict[str, Any]:
    """Returns the config of the sentence-transformers module `Pooling`. Its field names are the older ones, which all
    versions of the library can read.
    """
    mode = {ours: theirs for theirs, ours in POOLINGS.items()}[objective.pooling]
    fields: dict[str, Any] = {flag: theirs == mode for flag, theirs in LEGACY.items()}
    return fields | {
        "word_embedding_dimension": _width(model),
        "include_prompt": objective.include_prompt,
    }


def _prompts(path: Path) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Reads the prompts (texts that are put before sentences) in config_sentence_transformers.json. Returns (name,
    text) pairs, and the name of the default prompt or None.
    """
    said = _optional(path)
    if (kind := said.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
        raise InputError(f"{path}: model_type={kind!r} is not supported; expected {MODEL_TYPE}")
    if (size := said.get("truncate_dim")) is not None:
        raise InputError(f"{path}: truncate_dim={size} is not supported; expected none")
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    texts = prompts.values() if isinstance(prompts, dict) else [prompts]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise InputError(f"{path}: prompts={prompts!r}: expected a text for each name")
    if default is not None and default not in prompts:
        raise InputError(f"{path}: default_prompt_name={default!r}: expected one of {', '.join(prompts) or 'none'}")
    # sentence-transformers writes empty prompts for queries and documents if there are none.
    return tuple((name, text or "") for name, text in prompts.items() if text or name == default), default


def _optional(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Returns an empty dict if the file does not exist."""
    return read_json(path) if path.is_file() else {}
