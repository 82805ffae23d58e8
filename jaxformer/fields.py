"""Operations on the tree of fields of a config value: listing and checking fields, parsing values from the command
line, and conversion to JSON.

A config value is a frozen dataclass or a Linen module, which is a dataclass too. Its fields hold other config values,
tuples, strings, numbers, bools and None.
"""

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxformer import classes
from jaxformer.errors import FieldError, InputError, under
from jaxformer.suggestions import nearest


def check(value: Any) -> None:
    """Raises InputError if a field of a config value, or of a config value inside it, has a value that its type
    annotation does not allow.
    """
    for path, hint, child in walk(value):
        if not _accepts(hint, child):
            raise FieldError(path, f"={child!r}: expected {_describe(hint)}", owner="")


def at_least(path: str, value: float | None, least: float) -> None:
    """Raises FieldError if `value` is less than `least`. `path` is the dotted path of the field. None is allowed as the
    value.
    """
    if value is not None and not value >= least:
        raise FieldError(path, f"={value}: expected at least {least}")


def within(path: str, value: float | None, low: float, high: float, below: bool = False) -> None:
    """Raises FieldError if a value is outside the interval [low, high], or [low, high) if `below`. None is allowed.

    Args:
      path: dotted path of the field.
      value: value of the field.
      low: minimum.
      high: maximum.
      below: whether the maximum itself is not allowed.
    """
    if value is not None and not (low <= value < high or (value == high and not below)):
        raise FieldError(path, f"={value}: expected {low} to {high}" + (f", below {high}" if below else ""))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, type, value) of every field of a config value (an instance of a frozen dataclass or Linen module),
    and of the config values inside it, parents before their children.
    """
    for name, hint, child in children(value):
        yield join(path, name), hint, child
        yield from walk(child, join(path, name))


def children(value: Any) -> list[tuple[str, Any, Any]]:
    """Returns (name, type, value) of each field of a config value (an instance of a frozen dataclass or Linen module).
    For a tuple that contains config values, returns (index as a string, Any, item) of each item. Returns an empty list
    for any other value.
    """
    if is_config(value):
        return [(name, hint, getattr(value, name)) for name, hint in hints(type(value)).items()]
    if isinstance(value, tuple) and any(map(is_config, value)):
        return [(str(index), Any, item) for index, item in enumerate(value)]
    return []


def is_config(value: Any) -> bool:
    """Returns whether `value` is a config value: an instance of a frozen dataclass or Linen module, not a class."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def join(path: str, name: str) -> str:
    """Returns the dotted path of the field `name` of a config value at `path`, such as `data.task`. An empty path is
    that of the outermost value.
    """
    return f"{path}.{name}" if path else name


def show(value: Any) -> str:
    """Returns a short description of a value for error messages: the class name of a config value (an instance of a
    frozen dataclass or Linen module), or the repr of any other value.
    """
    return type(value).__name__ if is_config(value) else repr(value)


def replace(value: Any, overrides: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns a config value in which some fields at any depth are replaced. Fields that depend on each other can be
    replaced together.

    Args:
      value: a config value (an instance of a frozen dataclass or Linen module).
      overrides: maps dotted field paths to new values. A string, or a list of strings, is parsed as on the command
        line.
      prefix: text before a path in error messages, `--` on a command line.

    Raises:
      InputError: If there is no such field, or its new value is of a wrong type or is refused by the config value that
        has the field.
    """
    nodes = {path: (hint, child) for path, hint, child in walk(value)}
    changes = {}
    for path, new in overrides.items():
        if path not in nodes:
            perhaps = nearest(path, [*nodes, *(["workdir"] if prefix == "--" else [])])
            suggestion = f"; perhaps {prefix}{perhaps}" if perhaps else ""
            raise InputError(f"{prefix}{path}: no such field{suggestion}")
        for whole in overrides:
            if path.startswith(f"{whole}."):
                raise InputError(f"{prefix}{path}: {prefix}{whole} is set too; set only one of the two")
        changes[tuple(path.split("."))] = converted(prefix + path, *nodes[path], new)
    return _rebuild(value, changes, "") if changes else value


def converted(name: str, hint: Any, current: Any, new: Any) -> Any:
    """Converts a new value to the type of a field.

    Args:
      name: name of the field in error messages.
      hint: type of the field.
      current: current value of the field.
      new: the new value, or the words of a command line.

    Raises:
      InputError: If it cannot be converted to that type.
    """
    words = [new] if isinstance(new, str) else new
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        new = tuple(new) if isinstance(new, list) else new
        if not _accepts(hint, new):
            raise InputError(f"{name}={new!r}: expected {_describe(hint)}")
        return new
    try:
        return _read(hint, words)
    except ValueError:
        if is_config(current):
            names = ", ".join(child for child, _, _ in children(current)) or "none"
            expected = f"one of the fields of {show(current)}: {names}"
        else:
            expected = _describe(hint)
        given = " ".join([name, *words]) if words else f"{name} with no value"
        raise InputError(f"{given}: expected {expected}") from None


def _rebuild(value: Any, changes: Mapping[tuple[str, ...], Any], path: str) -> Any:
    """Returns a config value with all changes applied. Builds each object only once, so that fields that depend on each
    other can change together.

    Args:
      value: the config value (an instance of a frozen dataclass or Linen module).
      changes: maps field paths, as tuples of names, to new values.
      path: dotted path of the value, for error messages.
    """
    new = {}
    for name, _, child in children(value):
        below = {parts[1:]: change for parts, change in changes.items() if parts[0] == name}
        if below:
            new[name] = below[()] if () in below else _rebuild(child, below, join(path, name))
    if isinstance(value, tuple):
        return tuple(new.get(str(index), item) for index, item in enumerate(value))
    try:
        with under(path):
            return dataclasses.replace(value, **new)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{path or type(value).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Returns the message of an exception on one line."""
    return " ".join(str(getattr(error, "msg", error)).split())


# Types: checking values, parsing them from words, and describing them in messages.


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Returns the type annotations of those fields of a config class that a user can set, keyed by field name."""
    linen = sys.modules.get("flax.linen")  # Not imported here: if it is not imported yet, no class is a Linen module.
    hidden = {"parent", "name"} if linen is not None and issubclass(cls, linen.Module) else ()
    annotated = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: annotated[name] for name in names if name not in hidden}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _items(hint: Any, count: int) -> list[Any]:
    """Returns the types of the items of a tuple with `count` items. `hint` is the type of the tuple."""
    arguments = typing.get_args(hint)
    return [arguments[0]] * count if arguments[1:] == (...,) else list(arguments)


def _choices(hint: Any) -> Sequence[Any]:
    """Returns all values of a type that has only a few values, such as a Literal. Empty for other types."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if hint is bool:
        return (True, False)
    return (None,) if hint is type(None) else ()


def _accepts(hint: Any, value: Any) -> bool:
    """Returns whether a value matches a type annotation. For a protocol, checks only that the value has its members. An
    annotation that is not a class, such as `Callable[...]`, allows any value.
    """
    if _is_union(hint):
        return any(_accepts(choice, value) for choice in typing.get_args(hint))
    if choices := _choices(hint):
        return any(value == choice and type(value) is type(choice) for choice in choices)
    if typing.get_origin(hint) is tuple:
        items = _items(hint, len(value)) if isinstance(value, tuple) else None
        return items is not None and len(items) == len(value) and all(map(_accepts, items, value))
    if hint is Any or not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        members = [name for name in vars(hint) if name == "__call__" or not name.startswith("_")]
        return not isinstance(value, type) and all(hasattr(value, name) for name in members)
    allowed = (int, float) if hint is float else hint
    return isinstance(value, allowed) and not isinstance(value, bool)


def _read(hint: Any, words: Sequence[str]) -> Any:
    """Parses `words`, the command line arguments after `--field`, as a value of the type `hint`. Raises ValueError if
    that is not possible.
    """
    if _is_union(hint):
        # Any word is a valid str, so str is tried last.
        for choice in sorted(typing.get_args(hint), key=lambda choice: choice is str):
            try:
                return _read(choice, words)
            except ValueError:
                pass
        raise ValueError
    if typing.get_origin(hint) is tuple:
        items = _items(hint, len(words))
        return tuple(_read(item, [word]) for item, word in zip(items, words, strict=True))
    (word,) = words
    if hint in (int, float):
        return hint(word)
    if hint in (str, Any):
        return word
    for choice in _choices(hint):
        if str(choice) == word or (hint is bool and str(choice).lower() == word):
            return choice
    raise ValueError


def _describe(hint: Any) -> str:
    """Describes which values a type annotation allows, for error messages, such as "an int or None"."""
    if _is_union(hint):
        return " or ".join(map(_describe, typing.get_args(hint)))
    if choices := _choices(hint):
        words = list(map(str, choices))
        return " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words)
    if typing.get_origin(hint) is tuple:
        first, *rest = typing.get_args(hint)
        return f"values, each {_describe(first)}" if rest == [...] else f"{len(rest) + 1} values"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


# JSON: {"class": "module.Class", field: value, ...} for a config value, a list for a tuple.


def encode(value: Any, path: str = "") -> Any:
    """Converts a config value (an instance of a frozen dataclass or Linen module) to dicts, lists, strings, numbers,
    bools and None, which `json.dumps` accepts. Raises InputError if a part of it has a type that `decode` could not
    restore.
    """
    if is_config(value):
        fields = {name: encode(child, join(path, name)) for name, _, child in children(value)}
        return {"class": classes.class_name(type(value)), **fields}
    if type(value) is tuple:
        return [encode(item, join(path, str(index))) for index, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InputError(
        f"{path}={value!r}: a {type(value).__name__} cannot be kept in JSON; "
        "expected a dataclass, a tuple, a str, a number, a bool or None"
    )


def decode(value: Any, path: str = "", known: Mapping[str, type] = types.MappingProxyType({})) -> Any:
    """Converts the result of `encode` back to a config value (an instance of a frozen dataclass or Linen module).
    Missing fields have their default.

    Args:
      value: result of `json.loads`.
      path: dotted path of the value, for error messages.
      known: classes that are accepted even if their packages are not allowed, keyed by name, as returned by
        `classes_in`.

    Raises:
      InputError: If a class is not in an allowed package, cannot be imported, does not have one of the given fields, or
        refuses a value.
    """
    if isinstance(value, list):
        return tuple(decode(item, join(path, str(index)), known) for index, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    name = value.get("class")
    cls = known.get(str(name)) or classes.dataclass_named(name, join(path, "class"))
    given = {key: decode(item, join(path, key), known) for key, item in value.items() if key != "class"}
    for key in given.keys() - hints(cls).keys():
        expected = ", ".join(hints(cls))
        raise InputError(f"{join(path, key)}: {name} has no such field; expected {expected}")
    try:
        with under(path):
            return cls(**given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{path or name}: {one_line(error)}") from error


def classes_in(value: Any) -> dict[str, type]:
    """Returns the classes of a config value (an instance of a frozen dataclass or Linen module) and of all config
    values inside it, keyed by their names in the JSON form.
    """
    found = {type(child) for _, _, child in walk(value) if is_config(child)} | {type(value)}
    return {f"{cls.__module__}.{cls.__qualname__}": cls for cls in found}
