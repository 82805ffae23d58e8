"""Selects parameters by their path, such as `transformer/blocks/attention/query/kernel`."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from jaxformer.errors import InputError

UNDECAYED = ("bias", "scale", "mean", "variance")
"""Last components of the paths of parameters without weight decay. `mean` and `variance` are the statistics of a frozen
batch norm.
"""


def map_paths(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """Applies `function(path, parameter, ...)` to each parameter of a tree. Returns a tree of the same structure with
    the results.

    Args:
      function: called with the path, such as `transformer/norm/scale`, the parameter, and the leaves of `others` at the
        same path.
      params: tree of arrays, or of `metadata.Boxed` (arrays with the names of their axes), each of which is one leaf.
      *others: trees of the same structure.
    """

    def named(keys, *leaves):
        return function(jax.tree_util.keystr(keys, simple=True, separator="/"), *leaves)

    return jax.tree_util.tree_map_with_path(named, params, *others, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def is_embedding(path: str) -> bool:
    """Returns whether a parameter belongs to the embeddings of tokens or patches, judging by its path."""
    return "embeddings" in path.split("/")


def decay_mask(params: Any) -> Any:
    """Returns a tree of booleans that is True for each parameter to which weight decay applies: all except biases,
    scales of norms, and the statistics of batch norms. They are recognized by their names (`UNDECAYED`).
    """
    return map_paths(lambda path, _: path.rpartition("/")[2] not in UNDECAYED, params)


def found_in(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether one of the regular expressions `patterns` matches anywhere in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def check_pattern(field: str, pattern: str) -> None:
    """Raises InputError if `pattern` is not a valid regular expression. `field` is the name of the config field that
    contains it, for the error message.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{field}={pattern!r}: expected a regular expression: {error}") from error


def frozen_mask(params: Any, patterns: Sequence[str]) -> Any:
    """Returns a tree of booleans that is True for each frozen parameter: its path contains a match of one of the
    regular expressions in `patterns`.

    Raises:
      InputError: If a pattern matches no parameter, or the patterns together match all parameters.
    """
    paths = jax.tree.leaves(map_paths(lambda path, _: path, params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            problem = f"optimizer.freeze={pattern!r}: matches no parameter's path"
            raise InputError(f"{problem}; a path is for example {paths[0]}")
    mask = map_paths(lambda path, _: found_in(path, patterns), params)
    if all(jax.tree.leaves(mask)):
        raise InputError(f"optimizer.freeze={patterns}: all parameters are frozen")
    return mask


def split(params: Any, is_held: Callable[[str], bool]) -> tuple[Any, Any]:
    """Splits nested dicts of parameters into two: the parameters to train, and those that are held constant, such as
    frozen ones. `is_held` is called with the path of each parameter, and returns whether it is held constant.
    """
    trained, held = {}, {}
    for keys, leaf in flax.traverse_util.flatten_dict(params).items():
        (held if is_held("/".join(keys)) else trained)[keys] = leaf
    return flax.traverse_util.unflatten_dict(trained), flax.traverse_util.unflatten_dict(held)


def join(params: Any, others: Any) -> Any:
    """Merges two trees of parameters: returns a copy of `others` in which the parameters of `params` are added, or
    replace those with the same paths. Inverse of `split`.
    """
    own, rest = flax.traverse_util.flatten_dict(params), flax.traverse_util.flatten_dict(others)
    return params if own.keys() >= rest.keys() else flax.traverse_util.unflatten_dict(rest | own)
