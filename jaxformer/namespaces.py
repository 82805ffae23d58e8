"""Lazy namespaces: after `import jaxformer as jf`, `jf.models.Bert` imports its module when it is first used.

Processes that only prepare data import `jaxformer.data` without JAX, so a package must not import all its modules.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = __name__.partition(".")[0]

_homes: dict[str, str] = {}
"""Maps each public name of any namespace to its module."""


def attach(
    namespace: str, modules: Mapping[str, Sequence[str]], namespaces: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes the public names of a module importable on first use.

    The module repeats the names as imports under `TYPE_CHECKING`, which type checkers and editors read; a test compares
    the two lists.

    Args:
      namespace: the `__name__` of the module.
      modules: maps each module, relative to jaxformer, to the public names that it defines:
        `{"models.bert": ("Bert",)}`.
      namespaces: submodules that are public themselves.

    Returns:
      The `__getattr__`, `__dir__` and `__all__` of the module.
    """
    homes = {name: f"{ROOT}.{module}" for module, names in modules.items() for name in names}
    public = sorted({*homes, *namespaces})
    _homes.update(homes)

    def getattribute(name: str) -> Any:
        if name in namespaces:
            return importlib.import_module(f"{namespace}.{name}")
        if name not in homes:
            nearest = difflib.get_close_matches(name, public, 1)
            perhaps = f"; perhaps {nearest[0]}" if nearest and not name.startswith("_") else ""
            raise AttributeError(f"module {namespace!r} has no attribute {name!r}{perhaps}")
        return getattr(importlib.import_module(homes[name]), name)

    def directory() -> list[str]:
        return sorted({*public, *(name for name in vars(sys.modules[namespace]) if name.startswith("__"))})

    return getattribute, directory, public


def find(name: str) -> Any:
    """Returns the object with a public name, such as `Bert`, from any namespace imported so far. None if there
    is none.
    """
    return getattr(importlib.import_module(_homes[name]), name) if name in _homes else None
