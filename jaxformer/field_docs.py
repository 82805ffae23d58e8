"""Adds the docstrings of dataclass fields (the string after each field) to the docstring of the class, so that `help`
of the class shows what each field means.

The source of a class is read only when its `__doc__` is accessed.
"""

import ast
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType

PACKAGE = __name__.partition(".")[0]


class FieldDocs:
    """Descriptor that computes the `__doc__` of a dataclass: the docstring of the class, followed by the names of its
    fields and their docstrings.
    """

    def __init__(self, docstring: str | None):
        self._docstring = docstring

    def __get__(self, instance: object, owner: type) -> str | None:
        fields = field_docs(owner)
        if not fields:
            return self._docstring
        wrap = functools.partial(textwrap.fill, width=100, initial_indent=" " * 4, subsequent_indent=" " * 8)
        attributes = [wrap(f"{name}: {meaning}") for name, meaning in fields.items()]
        return "\n".join([inspect.cleandoc(self._docstring or owner.__name__), "", "Attributes:", *attributes])


def field_docs(cls: type) -> dict[str, str]:
    """Returns the docstrings of the documented fields of a dataclass, including inherited fields, keyed by field
    name.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _strings_after_fields(base)
    return {name: found[name] for name in cls.__dataclass_fields__ if name in found}


def install() -> None:
    """Makes `help` of dataclasses show their field docstrings, for all modules of this package that are imported
    afterwards.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attach(module: ModuleType) -> None:
    """Replaces the docstring of each dataclass that is defined in a module with a `FieldDocs`, which adds the
    docstrings of the fields.
    """
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__ and dataclasses.is_dataclass(cls):
            setattr(cls, "__doc__", FieldDocs(vars(cls).get("__doc__")))  # noqa: B010 (a descriptor, not a str)


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        attach(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


@functools.cache
def _strings_after_fields(cls: type) -> dict[str, str]:
    """Returns the string literal that follows each field in the source code of a class, keyed by field name. Empty if
    the source cannot be read.
    """
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    if not isinstance(definition, ast.ClassDef):
        return {}
    found = {}
    for field, string in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(string, ast.Expr):
            value = getattr(string.value, "value", None)
            if isinstance(value, str):
                found[field.target.id] = " ".join(value.split())
    return found
