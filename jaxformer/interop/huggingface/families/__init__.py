"""Supported model families of Hugging Face transformers, and functions that find the family of a config.json or of a
model.
"""

import importlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families import (
    bart,
    bert,
    classifiers,
    clip,
    detr,
    dinov2,
    distilbert,
    gemma3,
    gpt2,
    hifi_gan,
    llama,
    marian,
    modern_bert,
    moe,
    roberta,
    segformer,
    speech_pretraining,
    speech_t5,
    t5,
    video_mae,
    vit,
    vit_mae,
    vivit,
    wav2vec2,
    whisper,
    yolos,
)
from jaxformer.interop.huggingface.families.bridge import Bridge
from jaxformer.interop.huggingface.families.family import Family, differences
from jaxformer.interop.huggingface.parameters import abstract
from jaxformer.models.base import Model

FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    distilbert.FAMILY,
    roberta.FAMILY,
    modern_bert.FAMILY,
    gpt2.FAMILY,
    llama.LLAMA,
    llama.QWEN3,
    llama.MISTRAL,
    moe.MIXTRAL,
    moe.QWEN3_MOE,
    gemma3.FAMILY,
    t5.T5_FAMILY,
    t5.MT5_FAMILY,
    marian.FAMILY,
    bart.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    dinov2.WITH_REGISTERS,
    vit_mae.FAMILY,
    video_mae.FAMILY,
    video_mae.AUTOENCODER,
    vivit.FAMILY,
    segformer.FAMILY,
    clip.CLIP,
    clip.SIGLIP,
    detr.FAMILY,
    yolos.FAMILY,
    whisper.FAMILY,
    hifi_gan.FAMILY,
    wav2vec2.WAV2VEC2,
    wav2vec2.HUBERT,
    speech_pretraining.FAMILY,
    speech_t5.FAMILY,
    *classifiers.FAMILIES,
    *modern_bert.CLASSIFIERS,
)
"""All supported families, in the order in which an export tries them. LLaMA comes before Mistral, because some models
can be exported as either.
"""
ARCHITECTURES: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
MODEL_TYPES: Mapping[str, Family] = {family.model_type: family for family in reversed(FAMILIES)}


def families_of(model: Model) -> list[Family]:
    """Returns the families whose JAX model class is the class of the model or one of its base classes, most specific
    first.

    Includes the families of a model that is defined outside of the library: those in the module whose name is
    `model.interop`, if it is set.
    """
    own = importlib.import_module(model.interop).FAMILIES if model.interop else ()
    found = [family for family in (*own, *FAMILIES) if isinstance(model, family.module)]
    return sorted(found, key=lambda family: type(model) is not family.module)


def bridge_of(model: Model) -> Bridge:
    """Returns the `Bridge` for the class of a model. The bridge chooses the training objective and the data task of an
    imported model, and converts its outputs to those of the corresponding class of the transformers library.
    """
    return next((family.bridge for family in families_of(model)), Bridge())


def family_of_config(
    config: Mapping[str, Any], names: Collection[str], where: str, families: Sequence[Family] = ()
) -> tuple[Family, str]:
    """Finds the family of a config.json.

    Old files may name neither an architecture nor a model type. In that case, the family is found by the prefix of the
    tensor names.

    Args:
      config: Content of the file.
      names: Names of the tensors.
      where: Path of the file, for messages.
      families: Additional families, which take precedence over those of the library.

    Returns:
      The family, and the name of the class in the transformers library (the architecture).

    Raises:
      InputError: If no family matches.
    """
    families = (*families, *FAMILIES)
    architectures = {name: family for family in reversed(families) for name in family.architectures}
    model_types = {family.model_type: family for family in reversed(families)}
    named = config.get("architectures") or []
    for name in named:
        if name in architectures:
            return architectures[name], name
    kind = config.get("model_type")
    if not named and kind in model_types:
        return model_types[kind], model_types[kind].architectures[0]
    if not named and kind is None:
        for family in families:
            prefix = f"{family.model_type}."
            if family.table.prefix == prefix and any(name.startswith(prefix) for name in names):
                return family, family.architectures[0]
    found = f"architectures={named}" if named else f"model_type={kind!r}"
    expected = ", ".join(name for family in families for name in family.architectures)
    raise InputError(f"{where}: {found} is not supported; expected one of {expected}")


def family_of_model(model: Model, architecture: str | None = None) -> tuple[Family, dict[str, Any]]:
    """Finds a family that can represent a model exactly.

    Args:
      model: Model to export.
      architecture: Name of the preferred class of the transformers library, if several are possible.

    Returns:
      The family, and the config of the model in that family.

    Raises:
      InputError: If no family can represent the model. The message names a setting of the model that the most similar
        family does not support.
    """
    offered = families_of(model)
    if not offered:
        raise InputError(f"model={type(model).__name__}: no family of transformers supports this class")
    offered.sort(key=lambda family: architecture not in family.architectures)
    refusals: list[tuple[float, str]] = []
    for family in offered:
        try:
            config = dict(family.describe(model))
            reader = ConfigReader(config, family.model_type)
            found = differences(model, family.build(reader, _head_names(family, model)))
        except (AttributeError, KeyError, InputError) as error:
            # The model has parts that this family does not support.
            refusals.append((math.inf, f"{type(model).__name__}: {error}"))
            continue
        if not found:
            return family, config
        refusals.append((len(found), found[0].describe("here", f"in {family.model_type}")))
    _, nearest = min(refusals, key=lambda refusal: refusal[0])
    raise InputError(f"no family of transformers represents this model exactly: {nearest}")


def _head_names(family: Family, model: Model) -> list[str]:
    """Returns the names of the tensors that an export of the model to this family would contain. `Family.build`
    determines from these names which heads the model has.
    """
    paths = abstract(model)
    return [row.theirs for row in family.table.rows if row.applies(paths)]
