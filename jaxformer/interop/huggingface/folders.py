"""Hugging Face folders: finding what is in one, and writing one that is there whole or not at all."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxformer import strict_json
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
"""Files of weights, the best first; each may be cut into several, with an index of the same name and `.index.json`."""
ADAPTER_READERS = {"adapter_model.safetensors": open_safetensors, "adapter_model.bin": open_pytorch}
"""Files of a PEFT adapter's weights."""
SHARD = 5_000_000_000
"""Bytes of a file of weights, at most, unless one tensor has more."""
RENAMED = {".gamma": ".weight", ".beta": ".bias"}
"""Endings of names that norms had in TensorFlow's time."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of a folder; its tensors are not read yet."""

    path: Path
    """The folder with config.json and weights, or with a PEFT adapter."""
    config: Mapping[str, Any]
    """Its config.json."""
    generation: Mapping[str, Any]
    """Its generation_config.json; empty if it has none."""
    tensors: Mapping[str, LazyTensor]
    """Its tensors by name."""
    base: Path | None = None
    """The folder of the model that an adapter adapts."""
    sentence_transformers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Its config_sentence_transformers.json; empty if it has none."""


def is_model_folder(path: Path) -> bool:
    """Whether a folder is one that `adapters.open_folder` opens: with config.json, a PEFT adapter or modules.json."""
    return any((path / name).is_file() for name in (CONFIG, ADAPTER, MODULES))


def open_model(path: Path, sentence_transformers: Mapping[str, Any]) -> Folder:
    """Finds config and tensors in a folder with config.json and weights.

    Raises:
      InputError: something in it is missing, cut short or not what it should be.
    """
    if not (path / CONFIG).is_file():
        if (path / "experiment.json").is_file():
            raise InputError(f"{path}: a run of jaxformer, not a Hugging Face folder; open it with open_run")
        raise InputError(f"{path}: has no {CONFIG}; expected a folder as Hugging Face's are")
    generation = read_json(path / GENERATION) if (path / GENERATION).is_file() else {}
    return Folder(
        path, read_json(path / CONFIG), generation, _tensors(path), sentence_transformers=sentence_transformers
    )


def adapter_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a PEFT adapter by name."""
    for name, reader in ADAPTER_READERS.items():
        if (path / name).is_file():
            return reader(path / name)
    raise InputError(f"{path}: has no weights of an adapter; expected {' or '.join(ADAPTER_READERS)}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON: {' '.join(str(error).split())}") from error
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
                    raise InputError(f"{path / file}: {stored_name} is there twice, or in another file too")
                found[modern] = tensor
        return found
    raise InputError(f"{path}: has no weights; expected {', '.join(READERS)}, or an index of one")


def _parts(path: Path, index: str, reader) -> dict[str, dict[str, LazyTensor]]:
    """The tensors of each file of an index, which must be as it says."""
    where = path / index
    files = read_json(where).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{where}: expected a weight_map of files by tensor")
    parts = {}
    for file in sorted(set(files.values())):
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise InputError(f"{where}: names {file!r}, which is outside of the folder; refused")
        if not (path / file).is_file():
            raise InputError(f"{where}: names {file}, which is not there")
        parts[file] = reader(path / file)
    for name, file in files.items():
        if name not in parts[file]:
            raise InputError(f"{where}: {name} should be in {file} and is not")
    return parts


def _modern(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill under a temporary name beside `path`, which becomes its name at the end, if all went well.

    Raises:
      InputError: there is something of that name, or its parent cannot be written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: is there already; expected a new folder's name")
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


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # Somebody else may have put something there.
            folder.rmdir()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object as Hugging Face's are: indented, in the order of names."""
    text = strict_json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: Mapping[str, tuple], arrays: Iterator, shard: int = SHARD) -> None:
    """Writes model.safetensors into a folder, or several files and their index.

    Args:
      path: the folder.
      tensors: type and shape of each tensor by name.
      arrays: the tensors in that order, made when they are asked for.
      shard: bytes of a file, at most.
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
