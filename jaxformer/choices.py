"""Replaces parts of an experiment by instances of other classes, which are given by class name, as in `--optimizer
Lion` or `--model.transformer.norm RMSNorm` on the command line.
"""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Mapping
from typing import Any

from jaxformer import fields
from jaxformer.classes import is_allowed
from jaxformer.errors import InputError, under

PACKAGE = __name__.partition(".")[0]


def choose(value: Any, overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Replaces class names among the override values, as in `{"optimizer": "Lion"}`, by instances of these classes.
    Returns the resulting overrides.

    A new instance copies the field values of the object that it replaces, except for default values and for fields that
    its class does not have. Overrides of the new instance's fields, such as `optimizer.b1`, are applied to the
    instance, and are not in the returned dict.

    Args:
      value: the config value to override.
      overrides: maps dotted field paths to new values, as in `fields.replace`.
      prefix: text before a path in error messages, `--` on a command line.

    Raises:
      InputError: If a field cannot hold an instance of the named class, or a required field of the class is not given.
    """
    nodes = {path: (hint, child) for path, hint, child in fields.walk(value)}
    chosen = {}
    for path in sorted(overrides):  # Parents before their children.
        word = _class_name(overrides[path])
        if not word or path not in nodes or any(path.startswith(f"{parent}.") for parent in chosen):
            continue
        hint, current = nodes[path]
        known = candidates(hint, current)
        if word in known:
            start = f"{path}."
            inner = {name.removeprefix(start): new for name, new in overrides.items() if name.startswith(start)}
            with under(path):
                part = _replacement(known[word], current, inner, prefix + path)
                chosen[path] = fields.replace(part, choose(part, inner, prefix + start), prefix + start)
        elif known:
            names = ", ".join(sorted(known))
            also = f", or one of the fields of {fields.show(current)}: {_names(current)}" if _names(current) else ""
            raise InputError(f"{prefix}{path} {word}: expected a class, one of {names}{also}")
    parents = tuple(f"{path}." for path in chosen)
    return {path: new for path, new in overrides.items() if not path.startswith(parents)} | chosen


def candidates(hint: Any, current: Any) -> dict[str, type]:
    """Returns the dataclasses whose instances a config field can hold, keyed by class name.

    They match the type annotation of the field, and are defined in modules that runs may import (see `classes.allow`)
    or in the module that defines the class of the current value, such as a config file.

    Args:
      hint: type annotation of the field.
      current: current value of the field.
    """
    types = [one for one in typing.get_args(hint) or (hint,) if isinstance(one, type)]
    found = [cls for one in types if one.__module__.startswith(f"{PACKAGE}.") for cls in _subclasses(one)]
    found = [cls for cls in found if is_allowed(cls.__module__)]
    if fields.is_config(current):
        beside = list(vars(sys.modules[type(current).__module__]).values())
        found += [cls for cls in beside if getattr(cls, "__module__", None) == type(current).__module__]
    bases = [one for one in types if one.__subclasses__()]
    usable = [cls for cls in found if _usable(cls) and cls not in bases]
    return {cls.__name__: cls for cls in usable if any(_fits(cls, one) for one in types)}


def _replacement(cls: type, current: Any, field_overrides: Mapping[str, Any], path: str) -> Any:
    """Creates an instance of `cls` to replace the config value `current`.

    Args:
      cls: class of the new instance.
      current: the value to replace. Its field values that differ from their defaults are copied to the new instance if
        `cls` has a field of the same name.
      field_overrides: overrides of the new instance's fields, keyed by field path. Only those of required fields that
        cannot be copied are used.
      path: dotted path of the value, for error messages.

    Raises:
      InputError: If a required field cannot be copied and is not in `field_overrides`.
    """
    hints, defaults = fields.hints(cls), _defaults(type(current))
    kept = {name: value for name, _, value in fields.children(current) if name in hints}
    kept = {name: value for name, value in kept.items() if name not in defaults or value != defaults[name]}
    for name in hints.keys() - kept.keys() - _defaults(cls).keys():
        if name not in field_overrides:
            raise InputError(f"{path} {cls.__name__}: needs {path}.{name} too")
        kept[name] = fields.converted(f"{path}.{name}", hints[name], None, field_overrides[name])
    return cls(**kept)


def _class_name(new: Any) -> str | None:
    """Returns the class name that an override of a config field consists of, such as `AdamW`, or None if the override
    `new` does not look like a class name. `new` is a value, or the list of words after a command line flag.
    """
    words = [new] if isinstance(new, str) else new
    if isinstance(words, list | tuple) and len(words) == 1 and isinstance(words[0], str):
        word = words[0]
        return word if word.isidentifier() and word[0].isupper() and word not in ("None", "True", "False") else None
    return None


def _subclasses(cls: type) -> list[type]:
    """Returns all direct and indirect subclasses of a class, or only the class itself if it has none."""
    return [leaf for child in cls.__subclasses__() for leaf in {child, *_subclasses(child)}] or [cls]


def _usable(cls: Any) -> bool:
    public = isinstance(cls, type) and not cls.__name__.startswith("_")
    return public and dataclasses.is_dataclass(cls) and not inspect.isabstract(cls)


def _fits(cls: type, wanted: type) -> bool:
    if getattr(wanted, "_is_protocol", False):
        return all(hasattr(cls, name) for name in vars(wanted) if name == "__call__" or not name.startswith("_"))
    return issubclass(cls, wanted)


def _defaults(cls: type) -> dict[str, Any]:
    """Returns the default values of the fields of a dataclass, keyed by field name. Fields without a default are left
    out.
    """
    found = {}
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _names(value: Any) -> str:
    return ", ".join(name for name, _, _ in fields.children(value))
