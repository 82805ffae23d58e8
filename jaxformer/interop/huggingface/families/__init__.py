"""The families, and the one map from what a config.json says to them."""

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
    dinov2,
    distilbert,
    gemma3,
    gpt2,
    llama,
    marian,
    modern_bert,
    roberta,
    t5,
    vit,
    vit_mae,
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
    gemma3.FAMILY,
    t5.T5_FAMILY,
    t5.MT5_FAMILY,
    marian.FAMILY,
    bart.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    dinov2.WITH_REGISTERS,
    vit_mae.FAMILY,
    clip.CLIP,
    clip.SIGLIP,
    *classifiers.FAMILIES,
    *modern_bert.CLASSIFIERS,
)
"""In the order in which they are tried on a model: LLaMA before Mistral."""
ARCHITECTURES: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
MODEL_TYPES: Mapping[str, Family] = {family.model_type: family for family in reversed(FAMILIES)}


def families_of(model: Model) -> list[Family]:
    """The families of a model's class, the most specific ones first: of its own `interop` module and of the library."""
    own = importlib.import_module(model.interop).FAMILIES if model.interop else ()
    found = [family for family in (*own, *FAMILIES) if isinstance(model, family.module)]
    return sorted(found, key=lambda family: type(model) is not family.module)


def bridge_of(model: Model) -> Bridge:
    """The bridge of a model's class."""
    return next((family.bridge for family in families_of(model)), Bridge())


def family_of_config(
    config: Mapping[str, Any], names: Collection[str], where: str, families: Sequence[Family] = ()
) -> tuple[Family, str]:
    """Finds the family of a config.json.

    Old files name no architecture; then the names of the tensors decide, if they have the prefix of one family.

    Args:
      config: the content of the file.
      names: of the tensors.
      where: the file, for messages.
      families: families that are not among the library's, which come first.

    Returns:
      The family, and the architecture that the file names.

    Raises:
      InputError: it is none of the families.
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
    """Finds a family that computes what a model does.

    Args:
      model: the model.
      architecture: the preferred class of transformers, if several would do.

    Returns:
      The family, and its config of the model.

    Raises:
      InputError: there is none; says what the nearest does not support.
    """
    offered = families_of(model)
    if not offered:
        raise InputError(f"model={type(model).__name__}: no family of transformers has its form")
    offered.sort(key=lambda family: architecture not in family.architectures)
    refusals: list[tuple[float, str]] = []
    for family in offered:
        try:
            config = dict(family.describe(model))
            reader = ConfigReader(config, family.model_type)
            found = differences(model, family.build(reader, _head_names(family, model)))
        except (AttributeError, KeyError, InputError) as error:
            # The model has parts that this family does not know.
            refusals.append((math.inf, f"{type(model).__name__}: {error}"))
            continue
        if not found:
            return family, config
        refusals.append((len(found), found[0].describe("here", f"in {family.model_type}")))
    _, nearest = min(refusals, key=lambda refusal: refusal[0])
    raise InputError(f"no family of transformers computes what this model does: {nearest}")


def _head_names(family: Family, model: Model) -> list[str]:
    """Names of the tensors that the model has, by which a family knows its heads."""
    paths = abstract(model)
    return [row.theirs for row in family.table.rows if row.applies(paths)]
