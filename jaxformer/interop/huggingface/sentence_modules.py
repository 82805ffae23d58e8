"""Reads modules.json: the modules of a sentence-transformers model, and their folders."""

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
"""Supported sequences of sentence-transformers modules. If Pooling is missing, the sentence vector is the output of the
encoder's own pooler.
"""
EXPECTED = "expected Transformer, Pooling and optionally Normalize"


@dataclasses.dataclass(frozen=True)
class SentenceModule:
    """Module of a sentence-transformers model, as listed in modules.json."""

    kind: str
    """Class name of the module, such as `Pooling`."""
    folder: Path
    """Folder with the files of the module."""


def read_modules(folder: Path) -> tuple[SentenceModule, ...]:
    """Reads modules.json of a sentence-transformers folder. Returns the modules in the order in which they are applied.

    Raises:
      InputError: If the file is not a list of modules, names a folder outside of `folder`, or lists modules that are
        not supported or in an unsupported order. The message names the first problem.
    """
    path, entries = folder / MODULES, _entries(folder)
    for kind, _ in entries:
        if not kind.startswith("sentence_transformers."):
            raise InputError(f"{path}: {kind} is custom code, which is not run; {EXPECTED}")
    modules = tuple(SentenceModule(kind.rpartition(".")[2], folder / name) for kind, name in entries)
    kinds = tuple(module.kind for module in modules)
    if kinds not in SUPPORTED:
        allowed = (TRANSFORMER, POOLING, NORMALIZE)
        wrong = next((module for module in modules if module.kind not in allowed), None)
        shown = f"{wrong.kind} (in {wrong.folder.name})" if wrong else f"the order {', '.join(kinds) or 'of none'}"
        raise InputError(f"{path}: {shown} is not supported; {EXPECTED}")
    return modules


def transformer_folder(folder: Path) -> Path:
    """Returns the folder with the encoder's config.json: the folder of the sentence-transformers module `Transformer`,
    or `folder` if there is no modules.json.
    """
    entries = _entries(folder) if (folder / MODULES).is_file() else []
    names = [name for kind, name in entries if kind.rpartition(".")[2] == TRANSFORMER]
    return folder / names[0] if names else folder


def _entries(folder: Path) -> list[tuple[str, str]]:
    """Reads modules.json. Returns a (class name, subfolder) pair for each module. Raises InputError if a subfolder is
    outside of `folder`.
    """
    path = folder / MODULES
    try:
        entries = [(str(entry["type"]), str(entry["path"])) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of modules, each with type and path") from error
    for _, name in entries:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{path}: names {name!r}, which is outside of the folder; refused")
    return entries
