"""Warm start: initialises parameters from another run or from a Hugging Face folder. Parameters are matched by their
paths.
"""

import dataclasses
from collections.abc import Container
from typing import Any

import jax

from jaxformer.differences import Difference, differences
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import explicit
from jaxformer.interop.huggingface.folders import is_model_folder
from jaxformer.interop.huggingface.locations import locate
from jaxformer.models.base import Model
from jaxformer.runs import writing
from jaxformer.runs.parameters import read_params

LAST_NORM = "last_norm"
"""Name of a field of a Transformer stack: whether it normalises its output. A warm start accepts another value, because
the norm may be in the head in one model and in the stack in the other.
"""


@dataclasses.dataclass(frozen=True)
class Start:
    """Result of a warm start: initial parameters, and a summary."""

    params: Any
    """Parameters of the whole model, on the mesh."""
    summary: str
    """One line of text: how many parameters were initialised from the weights, which were not, and which weights were
    not used.
    """


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model and its parameters. A warm start copies parameters from one `Weights` to another if their paths match."""

    model: Model
    params: Any
    """Parameters of the model, a tree of arrays."""

    @property
    def labels(self) -> Any:
        """Class names that the model's head predicts. None for a model without such a head."""
        return getattr(self.model, "labels", None)

    def by_path(self) -> dict[str, tuple[str, Any]]:
        """Returns a dict that maps the path of each parameter, without the prefix of the pretrained part of the model
        such as `backbone/`, to its full path and its array.
        """
        prefix, _ = self.model.pretrained()
        return {path.removeprefix(prefix): (path, array) for path, array in parameters.flat(self.params).items()}


def start_from(name: str, model: Model, params: Any, mesh: jax.sharding.Mesh) -> Start:
    """Replaces random parameters of a model by pretrained weights.

    Args:
      name: folder of a run, Hugging Face folder, or another name that `locate` accepts.
      model: model to initialise.
      params: random parameters of the model, on the mesh. A parameter keeps its random value if there is no pretrained
        weight for it.
      mesh: mesh of the parameters.

    Raises:
      InputError: If the weights do not exist or belong to a different model.
    """
    folder = locate(name)
    if is_model_folder(folder):
        from jaxformer.interop.huggingface.models import load  # Slow: imports all model families.

        imported = load(open_folder(folder))
        check_model(name, imported.model, model)
        return match(name, Weights(imported.model, imported.params), Weights(model, params))
    other = writing.read_experiment(folder)
    check_model(name, other.model, model)  # Before anything large is read.
    found = read_params(folder, other, mesh)[1]
    return match(name, Weights(other.model, found), Weights(model, params))


def check_model(name: str, model: Model, wanted: Model) -> None:
    """Raises InputError if a pretrained model does not fit the model to initialise. They may differ only in their heads
    and in settings that affect only training.

    Args:
      name: name of the weights, for error messages.
      model: pretrained model.
      wanted: model to initialise.
    """
    prefix, inner = wanted.pretrained()
    path = ".".join(["model", *filter(None, prefix.split("/"))])
    theirs, ours = explicit(model.pretrained()[1]), explicit(inner)
    (their_stack, *_), (our_stack, *_) = theirs.stacks().items(), ours.stacks().items()
    if type(theirs) is type(ours):
        found = differences(theirs, ours, path)
        shorter = [field for field in ours.position_tables if getattr(theirs, field) > getattr(ours, field)]
        fields = (*ours.head_fields, *shorter, f"{our_stack[0]}.{LAST_NORM}")
        found = [one for one in found if not one.within(*(f"{path}.{field}" for field in fields))]
    elif their_stack[0] == our_stack[0]:
        stack = f"{path}.{our_stack[0]}"
        found = differences(their_stack[1], our_stack[1], stack)
        found = [one for one in found if not one.within(f"{stack}.{LAST_NORM}")]
    else:
        found = [Difference(path, theirs, ours)]
    if found:
        raise InputError(f"init={name}: another model: {found[0]}")


def match(name: str, found: Weights, wanted: Weights) -> Start:
    """Initialises each parameter of a model from the weight with the same path. The path of a parameter in a
    classifier's backbone does not include the prefix of the backbone.

    Args:
      name: name of the weights, for error messages.
      found: the weights. Their head is not used if it predicts other labels.
      wanted: the model to initialise, and its parameters on the mesh. A parameter for which there is no weight keeps
        its value.

    Raises:
      InputError: If a weight has another shape than the parameter, or one of the two models lacks a parameter of the
        backbone.
    """
    ours, theirs = wanted.by_path(), found.by_path()
    same_labels = found.labels == wanted.labels
    tables = wanted.model.pretrained()[1].position_tables.values()
    matched, new, used = {}, [], set()
    for source, (path, old) in ours.items():
        origin = _origin(source, theirs, wanted.model)
        _, value = theirs.get(origin, (None, None))
        if source in tables and value is not None and value.shape[1:] == old.shape[1:]:
            value = value[: len(old)]
        if value is None or (source.startswith("head/") and not same_labels):
            new.append(source)
        elif value.shape != old.shape:
            raise InputError(f"init={name}: {origin} is {list(value.shape)} there and {list(old.shape)} in the model")
        else:
            matched[source] = path, jax.device_put(value.astype(old.dtype), old.sharding)
            used.add(origin)
    unused = [path for path in theirs if path not in used]
    for weights, paths, problem in ((wanted, new, "it lacks"), (found, unused, "this one lacks")):
        model = weights.model.pretrained()[1]
        if lacking := [path for path in paths if _part(path, model) in model.backbone_parts]:
            raise InputError(f"init={name}: another model: {problem} {lacking[0]}")
    summary = f"{len(matched)} of {len(ours)} parameters are those of {name}"
    for what, weights, paths in (("new", wanted, new), ("unused", found, unused)):
        parts = dict.fromkeys(_part(path, weights.model.pretrained()[1]) for path in paths)
        summary += f"; {what}: {', '.join(parts)}" if parts else ""
    return Start(parameters.nested(dict(ours.values()) | dict(matched.values())), summary)


def _origin(source: str, theirs: Container[str], wanted: Model) -> str:
    """Returns the path of the weight that initialises a parameter. It is the path of the parameter, or of a weight with
    another name (`Model.warm_start_names`) if the weights do not contain the former.

    Args:
      source: path of the parameter.
      theirs: paths of the weights.
      wanted: model to initialise.
    """
    first, _, rest = source.partition("/")
    other = f"{wanted.warm_start_names.get(first, first)}/{rest}"
    return other if source not in theirs and other in theirs else source


def _part(path: str, model: Model) -> str:
    """Returns the name of the part of a model that a parameter belongs to: the first component of its path.

    Exception: the last norm of a stack is a part by itself, such as `encoder/norm`, because it may belong to the head.
    """
    norms = [f"{stack}/norm" for stack in model.stacks()]
    return next((norm for norm in norms if path.startswith(f"{norm}/")), path.split("/")[0])
