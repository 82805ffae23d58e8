"""Converts generation settings of the transformers library (generation_config.json, or config.json in old folders) to
`Decoding` and back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.folders import CONFIG, GENERATION, Folder
from jaxformer.predictors.text_to_text import Start

RENAMED = {"eos_token_ids": "eos_token_id", "forced_eos_token_ids": "forced_eos_token_id"}
"""Maps fields of `Decoding` to their names in generation_config.json, if these differ."""
NAMES = {field.name: RENAMED.get(field.name, field.name) for field in dataclasses.fields(Decoding)}
for name in ("seed", "timestamps"):  # transformers has no seed; Whisper's family converts the rules for timestamps.
    del NAMES[name]
DRAWING = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Names of `Decoding` fields that affect only sampling."""
TOP_K = 50
"""Default of `top_k` in the transformers library."""
REFUSED = {
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "token_healing": False,
    **dict.fromkeys(("constraints", "dola_layers", "force_words_ids", "max_time", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("top_h", "watermarking_config")),
}
"""Fields of generation_config.json that change the generated tokens and are not supported. Maps each field to its only
allowed value, which disables the feature.
"""
HARMLESS = frozenset(
    [
        "bos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "transformers_version",
        "_from_model_config",
        "remove_invalid_values",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "use_cache",
        "use_mtp",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "return_legacy_cache",
        "low_memory",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "assistant_ensemble_weight",
        "target_lookbehind",
        "speculation_type",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
    ]
)
"""Names of generation_config.json fields that do not change the generated tokens: special tokens that are read
elsewhere, selection of outputs, memory use, and speculative decoding.
"""
FIELDS = frozenset(NAMES.values()) | REFUSED.keys() | {"do_sample"}
"""Names of generation_config.json fields that control generation, except for special tokens."""


def read_decoding(folder: Folder, default: Decoding, tokenizer: Tokenizer) -> Decoding:
    """Reads the decoding settings of a folder from generation_config.json, or from config.json in older folders.

    If no file names an end token, outputs end with the tokenizer's EOS token. (The transformers library would generate
    up to the maximum length.) If no file limits the output length, the limits of `default` are used.

    Raises:
      InputError: If fields are not supported or have invalid values. The message lists all of them.
    """
    if folder.generation:
        fields, where = dict(folder.generation), folder.path / GENERATION
        fields.setdefault("eos_token_id", folder.config.get("eos_token_id"))
    else:
        fields, where = {name: folder.config[name] for name in FIELDS & folder.config.keys()}, folder.path / CONFIG
        if folder.config.get("force_bos_token_to_be_generated"):
            fields["forced_bos_token_id"] = folder.config.get("bos_token_id")
    try:
        decoding = decoding_of(fields, default)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    same = decoding.eos_token_ids is not None and decoding.eos_token_ids == default_ends(tokenizer)
    return dataclasses.replace(decoding, eos_token_ids=None) if same else decoding


def decoding_of(fields: Mapping[str, Any], default: Decoding) -> Decoding:
    """Converts generation_config.json fields to `Decoding`. If the fields do not limit the output length, the limits of
    `default` are used.

    Raises:
      InputError: If fields are not supported or have invalid values.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    draws, beams = bool(fields.get("do_sample")), fields.get("num_beams", 1)
    wrong = [
        f"{name}={value!r} is not supported; expected "
        + (f"{REFUSED[name]!r} or no such field" if name in REFUSED else "no such field")
        for name, value in sorted(fields.items())
        if name not in FIELDS | HARMLESS or (name in REFUSED and value != REFUSED[name])
    ]
    if draws and beams != 1:
        wrong.append(f"do_sample=True with num_beams={beams} is not supported; expected only one of them")
    if fields.get("early_stopping", False) not in (False, True, "never"):
        wrong.append(f"early_stopping={fields['early_stopping']!r}: expected true, false or 'never'")
    if wrong:
        raise InputError("; ".join(wrong))
    found = {ours: _ours(ours, fields[theirs]) for ours, theirs in NAMES.items() if theirs in fields}
    found["temperature"] = found.get("temperature", 1.0) if draws else 0.0
    found["top_k"] = found.get("top_k", TOP_K) or None
    if not draws:
        found = {name: value for name, value in found.items() if name not in DRAWING}
    if "max_new_tokens" not in found:
        found["max_new_tokens"] = None if "max_length" in found else default.max_new_tokens
    return Decoding(**found)


def generation_fields(decoding: Decoding) -> dict[str, Any]:
    """Converts `Decoding` to fields of generation_config.json.

    Omits fields that have their default in the transformers library, and fields without effect.
    """
    draws = decoding.temperature > 0
    plain = {field.name: field.default for field in dataclasses.fields(Decoding)}
    fields = {
        theirs: getattr(decoding, ours)
        for ours, theirs in NAMES.items()
        if (getattr(decoding, ours) != plain[ours] or ours in ("max_new_tokens", "num_beams"))
        and (draws or ours not in DRAWING)
    }
    fields |= {"do_sample": draws, "early_stopping": decoding.early_stopping}
    if draws:
        fields |= {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p}
    for name in ("eos_token_id", "forced_eos_token_id"):
        if len(fields.get(name, ())) == 1:
            (fields[name],) = fields[name]
    if not fields["early_stopping"]:
        del fields["early_stopping"]
    return {name: _listed(value) for name, value in fields.items() if value is not None}


def _listed(value: Any) -> Any:
    """Converts a value to a type that JSON has: tuples become lists."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def end_tokens(decoding: Decoding, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a dict with the generation_config.json field `eos_token_id`: the ids of the tokens that end an output.
    The value is a number if there is only one such token, and None if there is none.
    """
    ids = default_ends(tokenizer) if decoding.eos_token_ids is None else decoding.eos_token_ids
    return {"eos_token_id": ids[0] if len(ids) == 1 else list(ids) or None}


def default_ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns a tuple with the id of the tokenizer's EOS token, or an empty tuple if it has none."""
    try:
        return (int(tokenizer.eos_id),)
    except InputError:
        return ()


def start_token(folder: Folder, tokenizer: Tokenizer) -> Start:
    """Returns which special token the decoder of an imported encoder–decoder starts from: "padding", "end" or
    "beginning", as in `Seq2SeqLM.start`. If the configs do not name a token, returns "padding".

    Raises:
      InputError: If the decoder start token is none of the tokens that `Seq2SeqLM.start` can select.
    """
    said = {**folder.config, **folder.generation}
    start = said.get("decoder_start_token_id")
    if start is None:
        return "padding"
    kinds: dict[Start, str] = {"padding": "pad_id", "end": "eos_id", "beginning": "bos_id"}
    ids = {}
    for kind, attribute in kinds.items():
        try:
            ids[kind] = int(getattr(tokenizer, attribute))
        except InputError:
            continue
    for kind, number in ids.items():
        if number == start:
            return kind
    known = ", ".join(f"{number} ({kind})" for kind, number in ids.items())
    raise InputError(f"{folder.path}: decoder_start_token_id={start}: expected one of the tokenizer's {known}")


def _ours(name: str, value: Any) -> Any:
    """Converts the value of a generation_config.json field to the type of the `Decoding` field `name`: lists become
    tuples, and a single end token becomes a tuple.
    """
    if name in ("eos_token_ids", "forced_eos_token_ids") and not isinstance(value, list | tuple):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(tuple(item) if isinstance(item, list | tuple) else item for item in value)
    hint = Decoding.__dataclass_fields__[name].type
    return float(value) if hint is float and type(value) is int else value
