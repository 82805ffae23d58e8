"""Determines which classes the JSON files of a run may name: those of jaxformer, and of packages that the user allows.

Importing a module runs its code. A run may come from an untrusted source, so the JSON in its folder does not decide
which modules are imported.
"""

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from jaxformer.errors import InputError

OWN = "jaxformer"
PACKAGE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

_allowed: set[str] = set()


def allow(*packages: str) -> None:
    """Allows runs that this process loads to use classes of the given packages.

    Args:
      packages: import names, such as `"my_models"`. The modules are imported when a run names one of their classes, but
        never from the current directory or from the folder of the run.

    Raises:
      InputError: If one of them is not a package name.
    """
    for package in packages:
        if not PACKAGE.fullmatch(package):
            raise InputError(f"--allow {package}: expected the name of a package, as import takes it")
    _allowed.update(packages)


def foreign_packages(names: Iterable[str]) -> list[str]:
    """Returns the sorted names of the top-level packages, other than jaxformer, that define classes with the given
    names (such as `package.module.Class`).
    """
    return sorted({name.partition(".")[0] for name in names} - {OWN})


def class_name(cls: type) -> str:
    """Returns the name by which a class can be imported, such as `module.Class`. Raises InputError if another process
    could not import it.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    # `__main__` and config files are modules of this process only.
    if cls.__module__.startswith("__") or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise InputError(
            f"class {cls.__qualname__}: cannot be imported by name; move it to a module of its own, in a package that "
            "is installed, and name the package with --allow where the run is read"
        )
    return name


def dataclass_named(name: Any, path: str) -> type:
    """Returns the dataclass that a JSON value names, such as `package.module.Class`. Imports its module if that is
    allowed (see `allow`).

    Args:
      name: the JSON value.
      path: dotted path of the value in the JSON, for error messages.

    Raises:
      InputError: If the class is not of an allowed package, or the dataclass does not exist.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    package = module.partition(".")[0]
    if PACKAGE.fullmatch(module) and not is_allowed(module):
        raise InputError(
            f"{path}={name!r}: package {package} is neither jaxformer nor allowed; if you trust it, add --allow "
            f'{package}, in Python jf.allow("{package}")'
        )
    cls = getattr(_imported(module, f"{path}={name!r}"), attribute, None) if is_allowed(module) else None
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        other = "; this version of jaxformer has none of this name" if package == "jaxformer" else ""
        raise InputError(f"{path}={name!r}: expected the name of a dataclass{other}")
    return cls


@contextlib.contextmanager
def installed_only(*folders: str | os.PathLike) -> Iterator[None]:
    """Context manager that excludes the current directory and the given folders from imports, by removing them from
    `sys.path`.

    Without it, a file in these folders could be imported instead of an installed module, because `python -m` and
    PYTHONPATH put such folders before all others.
    """
    excluded = {os.path.realpath(folder) for folder in (os.getcwd(), *folders)}
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if os.path.realpath(entry) not in excluded]
    try:
        yield
    finally:
        sys.path[:] = before + [entry for entry in sys.path if entry not in before]


def is_allowed(module: str) -> bool:
    """Returns whether runs may name classes of a module (see `allow`)."""
    parts = module.split(".")
    # A private module of jaxformer, such as __main__, may do something when it is imported.
    own = parts[0] == OWN and not any(part.startswith("_") for part in parts)
    return own or any(".".join(parts[:count]) in _allowed for count in range(1, len(parts) + 1))


def _imported(module: str, what: str) -> Any:
    """Imports a module. Returns None if it is a module of jaxformer that does not exist.

    Args:
      module: full name of the module.
      what: start of the error message: the config field that names the module.

    Raises:
      InputError: If a module of another package does not exist, or is only in the current directory or the run's
        folder, or the import fails.
    """
    if module in sys.modules:
        return sys.modules[module]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if package == OWN:
            return None
        raise InputError(
            f"{what}: no module {error.name} is installed; the current directory and the run's folder are never "
            "imported from"
        ) from error
    except Exception as error:
        raise InputError(f"{what}: importing {module} failed: {type(error).__name__}: {error}") from error
