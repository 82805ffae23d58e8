"""Reads and writes Hugging Face folders. A folder is written completely or not at all."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxformer import limits, storage, strict_json
from jaxformer.errors import InputError
from jaxformer.interop.formats.flax_msgpack import open_flax
from jaxformer.interop.formats.safetensors_file import open_safetensors, size_of, write_safetensors
from jaxformer.interop.formats.stored import LazyTensor, ahead
from jaxformer.interop.formats.torch_pickle import open_pytorch
from jaxformer.interop.huggingface.sentence_modules import MODULES

CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"
READERS = {
    "model.safetensors": open_safetensors,
    "pytorch_model.bin": open_pytorch,
    "flax_model.msgpack": open_flax,
}
"""Maps names of weight files to functions that open them, in order of preference. A file may be divided into shards,
which are listed in an index: a file with the same name plus `.index.json`.
"""
ADAPTER_READERS = {"adapter_model.safetensors": open_safetensors, "adapter_model.bin": open_pytorch}
"""Maps names of a PEFT adapter's weight files to functions that open them."""
SHARD = 5_000_000_000
"""Maximum size of a weight file in bytes. A tensor that is larger is written to a separate file."""
RENAMED = {".gamma": ".weight", ".beta": ".bias"}
"""Maps old suffixes of normalisation parameters, which come from TensorFlow, to the current ones."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Content of a Hugging Face folder. The values of the tensors are read only when they are needed."""

    path: Path
    """Path of the folder, which contains config.json and weights, or a PEFT adapter."""
    config: Mapping[str, Any]
    """Parsed content of config.json."""
    generation: Mapping[str, Any]
    """Parsed generation_config.json. Empty if the file does not exist."""
    tensors: Mapping[str, LazyTensor]
    """Tensors, keyed by name."""
    base: Path | None = None
    """Path of the base model's folder, if the folder contains an adapter."""
    sentence_transformers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parsed config_sentence_transformers.json. Empty if the file does not exist."""


def is_model_folder(path: Path) -> bool:
    """Returns whether `adapters.open_folder` can open a folder: it has config.json, a PEFT adapter or modules.json."""
    return any((path / name).is_file() for name in (CONFIG, ADAPTER, MODULES))


def open_model(path: Path, sentence_transformers: Mapping[str, Any]) -> Folder:
    """Opens the config and tensors of a folder with config.json and weights. `sentence_transformers` is the content of
    its config_sentence_transformers.json, or empty.

    Raises:
      InputError: If a file is missing, truncated or invalid.
    """
    if not (path / CONFIG).is_file():
        if (path / "experiment.json").is_file():
            raise InputError(f"{path}: a run of jaxformer, not a Hugging Face folder; open it with open_run")
        raise InputError(f"{path}: has no {CONFIG}; expected a Hugging Face folder")
    generation = read_json(path / GENERATION) if (path / GENERATION).is_file() else {}
    return Folder(
        path, read_json(path / CONFIG), generation, _tensors(path), sentence_transformers=sentence_transformers
    )


def adapter_tensors(path: Path) -> dict[str, LazyTensor]:
    """Opens the tensors of a PEFT adapter. Returns them keyed by name."""
    for name, reader in ADAPTER_READERS.items():
        if (path / name).is_file():
            return reader(path / name)
    raise InputError(f"{path}: has no weights of an adapter; expected {' or '.join(ADAPTER_READERS)}")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises InputError if the file cannot be read or does not contain an object."""
    limits.JSON.check(limits.check_file(path), str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON: {limits.one_line(error)}") from error
    value = limits.parse_json(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def _tensors(path: Path) -> dict[str, LazyTensor]:
    for name, reader in READERS.items():
        if (path / name).is_file():
            parts = {name: reader(path / name)}
        elif (path / f"{name}.index.json").is_file():
            parts = _parts(path, f"{name}.index.json", reader)
        else:
            continue
        found: dict[str, LazyTensor] = {}
        for file, tensors in parts.items():
            for stored_name, tensor in tensors.items():
                modern = _modern(stored_name)
                if modern in found:
                    raise InputError(f"{path / file}: {stored_name} occurs twice, or in several files")
                found[modern] = tensor
        return found
    raise InputError(f"{path}: has no weights; expected {', '.join(READERS)}, or an index of one")


def _parts(path: Path, index: str, reader) -> dict[str, dict[str, LazyTensor]]:
    """Opens the weight files that an index lists, and checks that they contain the tensors of the index. Returns a dict
    that maps each file name to a dict of its tensors, keyed by tensor name.

    Args:
      path: folder of the files.
      index: name of the index file.
      reader: function that opens a weight file.
    """
    where = path / index
    files = read_json(where).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{where}: expected a weight_map of files by tensor")
    parts = {}
    for file in sorted(set(files.values())):
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise InputError(f"{where}: names {file!r}, which is outside of the folder; refused")
        if not (path / file).is_file():
            raise InputError(f"{where}: names {file}, which does not exist")
        parts[file] = reader(path / file)
    for name, file in files.items():
        if name not in parts[file]:
            raise InputError(f"{where}: {name} is missing in {file}")
    return parts


def _modern(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager that creates a folder completely or not at all. Yields the path of a temporary folder.

    The block fills the temporary folder, which is renamed to `path` at the end if there was no error.

    Raises:
      InputError: If `path` exists or cannot be written.
    """
    if storage.is_remote(path):
        with _new_in_bucket(storage.path(path)) as folder:
            yield folder
        return
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: already exists; expected the name of a new folder")
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, InputError):
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        raise


@contextlib.contextmanager
def _new_in_bucket(path: Path) -> Iterator[Path]:
    """Does the same as `new_folder` for a path in a bucket (cloud storage). The block fills a local folder, whose files
    are copied to the bucket at the end.
    """
    storage.check_bucket(path)
    if path.exists():
        raise InputError(f"{path}: already exists; expected the name of a new folder")
    with tempfile.TemporaryDirectory(prefix="jaxformer-") as temporary:
        yield Path(temporary)
        storage.upload(Path(temporary), path, last=(CONFIG, "experiment.json"))


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # Another process may have added files.
            folder.rmdir()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object in the format of Hugging Face: indented, with sorted keys."""
    text = strict_json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: Mapping[str, tuple], arrays: Iterator, shard: int = SHARD) -> None:
    """Writes model.safetensors, or several shards and their index, to a folder.

    Args:
      path: Folder to write to.
      tensors: Dtype and shape of each tensor, keyed by name.
      arrays: Iterator that computes the tensors in that order.
      shard: Maximum shard size in bytes.
    """
    arrays = ahead(arrays)
    parts: list[dict[str, tuple]] = [{}]
    used = 0
    for name, (dtype, shape) in tensors.items():
        size = size_of(dtype, shape)
        if parts[-1] and used + size > shard:
            parts.append({})
            used = 0
        parts[-1][name] = (dtype, shape)
        used += size
    if len(parts) == 1:
        write_safetensors(path / "model.safetensors", parts[0], arrays)
        return
    files = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_safetensors(path / file, part, (next(arrays) for _ in part))
        files |= dict.fromkeys(part, file)
    total = sum(size_of(dtype, shape) for dtype, shape in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
