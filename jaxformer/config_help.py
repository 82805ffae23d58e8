"""Help of `train CONFIG --help`, which lists every field of an experiment with its default and its meaning."""

import dataclasses
import typing
import warnings
from typing import Any

import tyro

from jaxformer import fields


def print_help(experiment: Any, docstring: str, command: str) -> None:
    """Prints every field of the experiment with its default and meaning, and exits."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_fields_of_default)
    with warnings.catch_warnings():
        # tyro compares a default with its annotation by isinstance, which a protocol such as `Objective` cannot answer.
        warnings.filterwarnings("ignore", "The field .* is annotated with type")
        tyro.cli(
            type(experiment),
            default=experiment,
            args=["--help"],
            prog=command,
            description=docstring,
            use_underscores=True,
            # Every field is set in the same way: `--path value`.
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            registry=registry,
        )


def _fields_of_default(info: tyro.constructors.StructTypeInfo) -> Any:
    """Rule for tyro, the library that prints the help. Makes the help list the fields of a default value's own class,
    instead of the fields of the annotated type, which may be a protocol without fields. Returns None for values that
    are not configs: tyro then uses its own rules.
    """
    default = info.default
    if isinstance(default, tuple) and any(map(fields.is_config, default)):
        items = [(str(index), item) for index, item in enumerate(default)]
        specs = tuple(tyro.constructors.StructFieldSpec(name, type(item), item) for name, item in items)
        return tyro.constructors.StructConstructorSpec(instantiate=tuple, fields=specs)
    if fields.is_config(default) and _EXACT not in info.markers:
        exact = dataclasses.replace(info, type=type(default), markers=(*info.markers, _EXACT))
        spec: Any = tyro.constructors.ConstructorRegistry.get_struct_spec(exact)
        return dataclasses.replace(spec, fields=tuple(map(_with_plain_none, spec.fields)))
    return None


_EXACT = "exact"
"""Marker in tyro's description of a value, by which `_fields_of_default` recognizes that it has already replaced the
type of this value.
"""


def _with_plain_none(field):
    """Returns tyro's description of a field, changed so that a config field whose default is None or () takes one line
    in the help, instead of one line per field of the config that it could hold. Other fields are returned unchanged.
    """
    structs = any(map(dataclasses.is_dataclass, typing.get_args(field.type)))
    if field.default is None and structs:
        return dataclasses.replace(field, type=type(None))
    if field.default == () and structs:
        return dataclasses.replace(field, type=tuple[str, ...])
    return field
