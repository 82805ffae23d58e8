"""modules.json: the modules of a sentence-transformers model, and their folders."""

import dataclasses
import json
from pathlib import Path

from jaxformer.errors import InputError

MODULES, SENTENCE_MODEL = "modules.json", "config_sentence_transformers.json"
TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"
SUPPORTED = (
    (TRANSFORMER, POOLING),
    (TRANSFORMER, POOLING, NORMALIZE),
    (TRANSFORMER,),
    (TRANSFORMER, NORMALIZE),
)
"""Without a pooling, the Transformer itself returns the model's pooler output."""
EXPECTED = "expected Transformer, Pooling and perhaps Normalize"


@dataclasses.dataclass(frozen=True)
class SentenceModule:
    """One entry of modules.json."""

    kind: str
    """The name of its class, such as `Pooling`."""
    folder: Path
    """The folder with its files."""


def read_modules(folder: Path) -> tuple[SentenceModule, ...]:
    """Reads modules.json.

    Raises:
      InputError: the file is not such a list, names a folder outside of `folder`, or has modules that are not
        supported in this order; names the first of them.
    """
    path, entries = folder / MODULES, _entries(folder)
    for kind, _ in entries:
        if not kind.startswith("sentence_transformers."):
            raise InputError(f"{path}: {kind} is code of its own, which is not run; {EXPECTED}")
    modules = tuple(SentenceModule(kind.rpartition(".")[2], folder / name) for kind, name in entries)
    kinds = tuple(module.kind for module in modules)
    if kinds not in SUPPORTED:
        allowed = (TRANSFORMER, POOLING, NORMALIZE)
        wrong = next((module for module in modules if module.kind not in allowed), None)
        shown = f"{wrong.kind} (in {wrong.folder.name})" if wrong else f"the order {', '.join(kinds) or 'of none'}"
        raise InputError(f"{path}: {shown} is not supported; {EXPECTED}")
    return modules


def transformer_folder(folder: Path) -> Path:
    """The folder with the encoder's config.json: that of the module Transformer, or else `folder`."""
    entries = _entries(folder) if (folder / MODULES).is_file() else []
    names = [name for kind, name in entries if kind.rpartition(".")[2] == TRANSFORMER]
    return folder / names[0] if names else folder


def _entries(folder: Path) -> list[tuple[str, str]]:
    """Class and folder of each module."""
    path = folder / MODULES
    try:
        entries = [(str(entry["type"]), str(entry["path"])) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of modules, each with type and path") from error
    for _, name in entries:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{path}: names {name!r}, which is outside of the folder; refused")
    return entries
