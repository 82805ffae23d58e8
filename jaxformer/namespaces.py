"""Lazy namespaces: after `import jaxformer as jf`, `jf.models.Bert` imports its module when it is first used.

Processes that only prepare data import `jaxformer.data` without JAX, so the `__init__.py` of a package must not import
all modules of the package.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = __name__.partition(".")[0]

_homes: dict[str, str] = {}
"""Maps each public name, such as `Bert`, to the full name of the module that defines it. Contains the names of all
namespaces that have been imported so far.
"""


def attach(
    namespace: str, modules: Mapping[str, Sequence[str]], namespaces: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes the public names of a module importable on first use.

    For type checkers and editors, the module must also import these names under `if TYPE_CHECKING:`. A test checks that
    both lists of names are the same.

    Args:
      namespace: the `__name__` of the module.
      modules: maps each module, relative to jaxformer, to the public names that it defines:
        `{"models.bert": ("Bert",)}`.
      namespaces: names of submodules that can also be used as attributes of the module, such as `models` in
        `jf.models`.

    Returns:
      The functions `__getattr__` and `__dir__`, and the list `__all__`, to be assigned in the module.
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


def home(name: str) -> str:
    """Returns the full name of the module that defines a public name, such as `jaxformer.models.bert` for `Bert`. Does
    not import the module. Raises KeyError if no namespace that has been imported so far has this name.
    """
    return _homes[name]


def find(name: str) -> Any:
    """Returns the object with a public name, such as `Bert`, or None if no namespace that has been imported so far has
    this name.
    """
    return getattr(importlib.import_module(_homes[name]), name) if name in _homes else None
