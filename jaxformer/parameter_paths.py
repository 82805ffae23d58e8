"""Selects parameters by their path, such as `transformer/blocks/attention/query/kernel`."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from jaxformer.errors import InputError

UNDECAYED = ("bias", "scale", "mean", "variance")
"""Names of parameters without weight decay. The last two are the statistics of a frozen batch norm."""


def map_paths(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """Applies `function(path, parameter, ...)` to each parameter of a tree. Returns the tree of the results.

    Args:
      function: function of a path such as `transformer/norm/scale`, the parameter, and the leaves of `others` there.
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
    """Returns a tree with True for each parameter that has weight decay: all except biases and the scales and
    statistics of norms, by name.
    """
    return map_paths(lambda path, _: path.rpartition("/")[2] not in UNDECAYED, params)


def found_in(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether one of the regular expressions `patterns` matches anywhere in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def check_pattern(field: str, pattern: str) -> None:
    """Raises InputError if a pattern is not a valid regular expression. `field` is the config field that contains
    it.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{field}={pattern!r}: expected a regular expression: {error}") from error


def frozen_mask(params: Any, patterns: Sequence[str]) -> Any:
    """Returns a tree with True for each parameter with a path that matches one of the regular expressions, and False
    for the others.

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
    """Splits the parameters into two trees of nested dicts: those to train, and those that are held constant, such as
    frozen parameters. `is_held` is a function of a path that returns whether the parameter is held.
    """
    trained, held = {}, {}
    for keys, leaf in flax.traverse_util.flatten_dict(params).items():
        (held if is_held("/".join(keys)) else trained)[keys] = leaf
    return flax.traverse_util.unflatten_dict(trained), flax.traverse_util.unflatten_dict(held)


def join(params: Any, others: Any) -> Any:
    """Merges two trees of parameters: returns `others` with the parameters in `params` inserted at their paths. Inverse
    of `split`.
    """
    own, rest = flax.traverse_util.flatten_dict(params), flax.traverse_util.flatten_dict(others)
    return params if own.keys() >= rest.keys() else flax.traverse_util.unflatten_dict(rest | own)
