"""First parameters from another run, or from weights as Hugging Face has them, matched by path."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from jaxformer import config
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import explicit
from jaxformer.interop.huggingface.folders import is_model_folder
from jaxformer.interop.huggingface.locations import locate
from jaxformer.runs import run

BACKBONE = "backbone/"
"""What a classifier puts before the paths of the model that it is made of."""
ENCODING = ("embeddings", "transformer", "encoder")
"""Parts that a model and the weights must have alike; all others are heads, which may be new or left over."""
BESIDE = ("prediction_heads", "labels", "pooler", "pooling", "mask_rate")
"""Fields of a model that say nothing about these parts."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters to begin with."""

    params: Any
    """Of the whole model, on the mesh."""
    told: str
    """How many came from the weights, which are new, and which of the weights are not used; a line."""


def start_from(name: str, model: nn.Module, params: Any, mesh: jax.sharding.Mesh) -> Start:
    """The parameters of a model, of which those that the weights have are theirs.

    Args:
      name: a run's folder, or what `locate` takes.
      model: what is to begin.
      params: its parameters drawn at random, on the mesh: kept where the weights have nothing.
      mesh: where the parameters lie.

    Raises:
      InputError: there are no such weights, or they are those of another model.
    """
    folder = locate(name)
    if is_model_folder(folder):
        from jaxformer.interop.huggingface.models import load  # All families: only who needs them waits for them.

        imported = load(open_folder(folder))
        check_model(name, imported.model, model)
        return match(name, imported.params, params, _labels(imported.model) == _labels(model))
    other = run.read_experiment(folder)
    check_model(name, other.model, model)  # Before anything large is read.
    found = run.read_params(folder, other, mesh)[1]
    return match(name, found, params, _labels(other.model) == _labels(model))


def check_model(name: str, model: nn.Module, wanted: nn.Module) -> None:
    """Raises InputError where two models differ in more than their heads and what acts in training alone."""
    theirs, ours = (getattr(each, "backbone", each) for each in (model, wanted))
    path = "model" if ours is wanted else "model.backbone"
    theirs, ours = explicit(theirs), explicit(ours)
    if type(theirs) is type(ours):
        lines = config.differences(theirs, ours, path)
        beside = tuple(f"{path}.{field}{end}" for field in BESIDE for end in ".:")
        lines = [line for line in lines if not line.startswith(beside)]
    elif hasattr(theirs, "transformer") and hasattr(ours, "transformer"):
        lines = config.differences(theirs.transformer, ours.transformer, f"{path}.transformer")
    else:
        lines = [f"{path}: {type(theirs).__name__} in the run, {type(ours).__name__} now"]
    if lines:
        raise InputError(f"init={name}: another model: {lines[0]}")


def match(name: str, found: Any, params: Any, same_labels: bool = True) -> Start:
    """Parameters by path; those of what a classifier is made of by the path behind `backbone/`.

    Args:
      name: of the weights, for messages.
      found: theirs, a tree.
      params: ours, a tree; kept where there are none of theirs.
      same_labels: whether a head of theirs, which has a vector for each label, has them for our labels.
    """
    ours = parameters.flat(params)
    theirs = {path.removeprefix(BACKBONE): value for path, value in parameters.flat(found).items()}
    matched, new = {}, []
    for path, old in ours.items():
        source = path.removeprefix(BACKBONE)
        value = theirs.get(source)
        if value is None or (source.startswith("head/") and not same_labels):
            new.append(source)
        elif value.shape != old.shape:
            raise InputError(f"init={name}: {source} is {list(value.shape)} there and {list(old.shape)} in the model")
        else:
            matched[source] = path, jax.device_put(value.astype(old.dtype), old.sharding)
    unused = [path for path in theirs if path not in matched]
    for paths, problem in ((new, "it lacks"), (unused, "this one lacks")):
        if lacking := [path for path in paths if path.split("/")[0] in ENCODING]:
            raise InputError(f"init={name}: another model: {problem} {lacking[0]}")
    told = f"{len(matched)} of {len(ours)} parameters are those of {name}"
    told += "".join(f"; {what}: {_parts(paths)}" for what, paths in (("new", new), ("unused", unused)) if paths)
    return Start(parameters.nested(ours | dict(matched.values())), told)


def _labels(model: nn.Module) -> Any:
    return getattr(model, "labels", None)


def _parts(paths: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(path.split("/")[0] for path in paths))
