"""The families, and the one map from what a config.json says to them."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import Settings
from jaxformer.interop.huggingface.families import (
    bart,
    bert,
    classifiers,
    dinov2,
    distilbert,
    gpt2,
    llama,
    marian,
    roberta,
    t5,
    vit,
    vit_mae,
)
from jaxformer.interop.huggingface.families.family import Family, differences
from jaxformer.interop.huggingface.parameters import abstract

FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    distilbert.FAMILY,
    roberta.FAMILY,
    gpt2.FAMILY,
    llama.LLAMA,
    llama.QWEN3,
    llama.MISTRAL,
    t5.T5_FAMILY,
    t5.MT5_FAMILY,
    marian.FAMILY,
    bart.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    dinov2.WITH_REGISTERS,
    vit_mae.FAMILY,
    *classifiers.FAMILIES,
)
"""In the order in which a model of ours is offered to them: a LLaMA is one before it is a Mistral."""
ARCHITECTURES: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
MODEL_TYPES: Mapping[str, Family] = {family.model_type: family for family in reversed(FAMILIES)}


def family_of_config(config: Mapping[str, Any], names: Collection[str], where: str) -> tuple[Family, str]:
    """The family of a config.json, and the architecture that it names.

    Old files name none; then the tensors' names tell, where they begin as one family's alone do.

    Raises:
      InputError: none of the families here.
    """
    named = config.get("architectures") or []
    for name in named:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name], name
    kind = config.get("model_type")
    if not named and kind in MODEL_TYPES:
        return MODEL_TYPES[kind], MODEL_TYPES[kind].architectures[0]
    if not named and kind is None:
        for family in FAMILIES:
            prefix = f"{family.model_type}."
            if family.table.prefix == prefix and any(name.startswith(prefix) for name in names):
                return family, family.architectures[0]
    told = f"architectures={named}" if named else f"model_type={kind!r}"
    raise InputError(f"{where}: {told} is not supported; expected one of {', '.join(ARCHITECTURES)}")


def family_of_model(model: nn.Module, architecture: str | None = None) -> tuple[Family, dict[str, Any]]:
    """A family that computes what a model of ours does, and its config of the model.

    Args:
      model: one of ours.
      architecture: the class that it should be, where several would do.

    Raises:
      InputError: none does; says what is in the way of the nearest.
    """
    offered = [family for family in FAMILIES if isinstance(model, family.module)]
    if architecture in ARCHITECTURES:
        offered.sort(key=lambda family: architecture not in family.architectures)
    if not offered:
        raise InputError(f"model={type(model).__name__}: no family of transformers has its form")
    refusals: list[tuple[float, str]] = []
    for family in offered:
        try:
            config = dict(family.describe(model))
            reader = Settings(config, family.model_type)
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


def _head_names(family: Family, model: nn.Module) -> list[str]:
    """Names of the tensors that the model has, by which a family knows its heads."""
    paths = abstract(model)
    return [row.theirs for row in family.table.rows if row.counts(paths)]
