"""TensorFlow Datasets (TFDS) builders: objects that describe, prepare and read a data set. Finds them by name and
prepares data sets on first use, without TensorFlow.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import pkgutil
import re
import socket
import sys
import types
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from jaxformer import storage
from jaxformer.data.messages import listed, note
from jaxformer.errors import InputError
from jaxformer.progress import phase

FORMAT = "array_record"
"""TFDS file format that allows reading examples in any order."""
_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NO_BUILDERS = ("core", "scripts", "testing", "proto")
_SECONDS = 5
"""Number of seconds to wait for a connection to a host before it counts as unreachable."""


def prepared(name: str, data_dir: str | None, split: str = "") -> Any:
    """Returns the TFDS builder of a prepared data set. Prepares the data set first if necessary.

    Args:
      name: catalog name, optionally with config and version, or the path of a prepared folder.
      data_dir: folder of prepared data sets. If None, uses the TFDS default.
      split: split to read. If the data set is in a bucket, this split is copied to this machine.

    Raises:
      InputError: If the data set does not exist or cannot be prepared. The message says what is missing and what to do.
    """
    if storage.is_remote(name):
        return _of_bucket(name, split)
    if data_dir is not None and storage.is_remote(data_dir):
        return _of_bucket(f"{data_dir.rstrip('/')}/{name.replace(':', '/')}", split)
    folder = os.path.expanduser(name)
    if os.path.isfile(os.path.join(folder, _INFO)) or os.path.isabs(folder) or name.startswith("."):
        return _of_folder(folder)
    with quiet():
        builder = find(name, data_dir)
        if builder.is_prepared():
            return _with_random_access(builder)
        if (other := _other_version(builder, name, data_dir)) is not None:
            return _with_random_access(other)
        with phase(f"preparing {name}"):
            _prepare(builder, name)
    return builder


def find(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a data set in the TFDS catalog, whether the data set is prepared or not. Does not
    download anything. Raises InputError if the builder cannot be found, or if it needs a package that is not installed
    and the data set is not prepared.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    base = re.split("[/:]", name)[0]
    if base.isidentifier() and importlib.util.find_spec(f"jaxformer.datasets.{base}"):
        importlib.import_module(f"jaxformer.datasets.{base}.{base}_dataset_builder")
    if base == "huggingface":
        _check_hub(name)
    make = functools.partial(tfds.builder, name, data_dir=data_dir, try_gcs=False)
    try:
        try:
            return make()
        except tfds.core.DatasetNotFoundError:
            # TFDS imports the packages of its older data sets one after the other, and stops at the first one that
            # fails.
            import_builders()
            return make()
    except ModuleNotFoundError as error:
        folder = os.path.join(os.path.expanduser(data_dir or constants.DATA_DIR), *re.split("[/:]", name))
        if _folders_with_info(folder):  # A prepared data set is read without the packages that prepare it.
            return _of_folder(folder)
        missing = error.name or getattr(error.__cause__, "name", None) or _first_line(error)  # TFDS drops the name.
        raise InputError(
            f"{name}: its builder needs {missing}, which is not installed; pip install {missing}, or copy a prepared "
            f"data set to {folder}"
        ) from error
    except Exception as error:
        raise InputError(
            f"no TFDS data set {name!r}: {_first_line(error)}{_suggestion(base, name)}; "
            "give a name of its catalog, such as bible/web, or the path of a prepared folder"
        ) from error


@functools.cache
def import_builders() -> None:
    """Imports all TFDS packages that define data sets, because a data set can be found by name only after its package
    is imported.

    Skips packages with missing dependencies.
    """
    import tensorflow_datasets as tfds

    names = [module.name for module in pkgutil.iter_modules(tfds.__path__) if module.ispkg]
    for name in (*names, "rlds.datasets"):
        if name not in _NO_BUILDERS:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{name}")


def _suggestion(base: str, name: str) -> str:
    """Returns a suggestion to append to an error message about a wrong data set name: a similar name, or the configs of
    the data set. Empty if there is nothing to suggest.
    """
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    if base in names:
        configs = list(tfds.builder_cls(base).builder_configs)
        return f"; its configs are {listed(configs)}" if configs and "/" in name else ""
    alike = difflib.get_close_matches(base, names, 1) if ":" not in name else []
    return f"; perhaps {alike[0]}" if alike else ""


def _of_folder(folder: str) -> Any:
    """Returns the TFDS builder of a prepared data set in a folder. If the folder contains several versions of the data
    set, chooses the latest.
    """
    import tensorflow_datasets as tfds

    found = _folders_with_info(folder)
    versions = [path for path in found if _VERSION.fullmatch(os.path.relpath(path, folder))]
    if folder not in found and len(versions) < max(len(found), 1):
        inside = [os.path.relpath(path, folder) for path in found]
        raise InputError(
            f"{folder}: this folder holds no prepared TFDS data set (no {_INFO}); give the folder of one version, such "
            f"as {f'one of {listed(inside)} in it' if inside else '.../web/1.0.0'}"
        )
    path = folder if folder in found else max(versions, key=_version_of)
    try:
        with quiet():
            return _with_random_access(tfds.builder_from_directory(path))
    except Exception as error:
        raise InputError(f"{path}: holds no readable TFDS data set: {_first_line(error)}") from error


def _of_bucket(folder: str, split: str) -> Any:
    """Copies a split of a prepared data set from a bucket to this machine. Returns the TFDS builder of the copy."""
    folder = folder.rstrip("/")
    found = [key.rpartition("/")[0] for key in storage.objects_below(folder) if key.rpartition("/")[2] == _INFO]
    versions = [key for key in found if _VERSION.fullmatch(key)]
    if "" not in found and not versions:
        raise InputError(
            f"{folder}: this folder holds no prepared TFDS data set (no {_INFO} in it or in a version below it); "
            f"tfds build --file_format={FORMAT} --data_dir=DIR prepares one to be copied there"
        )
    path = folder if "" in found else f"{folder}/{max(versions, key=_version_of)}"
    with phase(f"copying {path}"):
        copied = storage.local_folder(path, ["*.json", "*.txt", *(f"*-{name}.*" for name in re.findall(r"\w+", split))])
    return _of_folder(str(copied))


def _folders_with_info(folder: str) -> list[str]:
    """Finds the folders of prepared data sets. Returns `[folder]` if the folder itself is one, otherwise the sorted
    subfolders at the smallest depth (at most 3) at which there are any.
    """
    folders, found = [folder], []
    for _ in range(4):
        found += [path for path in folders if os.path.isfile(os.path.join(path, _INFO))]
        if found:
            break
        folders = [
            entry.path for path in folders if os.path.isdir(path) for entry in os.scandir(path) if entry.is_dir()
        ]
    return sorted(found)


def _version_of(path: str) -> tuple[int, ...]:
    return tuple(map(int, os.path.basename(path).split(".")))


def _with_random_access(builder: Any) -> Any:
    """Returns a TFDS builder that reads the array_record files of a data set. Returns `builder` itself if there are no
    such files, or if it reads them already.
    """
    from tensorflow_datasets.core import read_only_builder

    others = {other.value for other in builder.info.alternative_file_formats}
    if FORMAT in others and builder.info.file_format.value != FORMAT:
        return read_only_builder.builder_from_directory(builder.data_dir, file_format=FORMAT)
    return builder


def _other_version(builder: Any, name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of another version of the data set that is already prepared, and prints a note that this
    version is read. Returns None if there is none, or if `name` requires a certain version.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    if ":" in name:
        return None
    try:
        other = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        return None
    note(f"{name}: version {builder.version} is not prepared; version {other.version} in {other.data_dir} is read")
    return other


def _prepare(builder: Any, name: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    with_beam = isinstance(builder, tfds.core.BeamBasedBuilder)
    if with_beam and importlib.util.find_spec("apache_beam") is None:
        raise InputError(f"{name}: needs Apache Beam for preparation, which is not installed; {_elsewhere(name, True)}")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    retries = downloader.MAX_RETRIES
    # Without a network, TFDS would retry each file for 200 seconds.
    downloader.MAX_RETRIES = retries if _in_reach(builder.url_infos or ()) else 0
    try:
        with _without_tensorflow():
            builder.download_and_prepare(file_format=FORMAT, download_config=config)
    except InputError:
        raise
    except Exception as error:
        if builder.is_prepared():  # Another process may have prepared it in the meantime.
            return
        raise InputError(f"{name}: could not be prepared: {_reason(error)}; {_elsewhere(name, with_beam)}") from error
    finally:
        downloader.MAX_RETRIES = retries


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Context manager that lets TFDS open archives with Python's `open`, and keep all examples of a split in memory
    until they are written, if TensorFlow is not installed. TFDS would otherwise open archives, and the files to which
    it moves more than a gigabyte of examples, with TensorFlow.
    """
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import extractor

    if importlib.util.find_spec("tensorflow"):
        yield
        return
    before, most = extractor.tf, shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    gfile, compat = types.SimpleNamespace(GFile=open), types.SimpleNamespace(as_text=str)
    extractor.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), compat=compat)
    try:
        yield
    finally:
        extractor.tf, shuffle.MAX_MEM_BUFFER_SIZE = before, most


def _elsewhere(name: str, with_beam: bool) -> str:
    """Returns instructions for preparing a data set on another machine, for the end of an error message. `with_beam` is
    whether this requires Apache Beam.
    """
    packages = "tensorflow-datasets tensorflow apache-beam" if with_beam else "tensorflow-datasets tensorflow"
    return (
        f"prepare it on a machine where that is possible (pip install {packages}; tfds build {name} "
        f"--file_format={FORMAT} --data_dir=DIR), copy DIR here and set data_dir to it"
    )


def _reason(error: BaseException) -> str:
    """Explains on one line why preparing a data set failed: the missing package, the unreachable host, the files to
    download manually, or the first line of the error message.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in chain:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return f"it needs {cause.name.split('.')[0]}, which is not installed"
        url = getattr(getattr(cause, "request", None), "url", None)
        if url and isinstance(cause, OSError):
            return f"{urllib.parse.urlsplit(url).hostname} cannot be reached"
    if "MANUAL" in type(error).__name__.upper() or "Manual directory" in str(error):
        return " ".join(str(error).split()).rstrip(" .")
    return _first_line(error)


def _in_reach(urls: Iterable[str]) -> bool:
    """Returns whether at least one host of the URLs can be reached; tries up to three. True if there are no URLs, or if
    a proxy is configured.
    """
    parts = [urllib.parse.urlsplit(url) for url in urls]
    hosts = sorted({(part.hostname, 80 if part.scheme == "http" else 443) for part in parts if part.hostname})
    if not hosts or urllib.request.getproxies():
        return True
    for address in hosts[:3]:
        with contextlib.suppress(OSError), socket.create_connection(address, _SECONDS):
            return True
    return False


def _check_hub(name: str) -> None:
    """Raises InputError if the Hugging Face Hub cannot be reached. It is called for data sets whose TFDS name begins
    with `huggingface`, because TFDS reads them from the Hub.
    """
    try:
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        raise InputError(f"{name}: needs the packages datasets and huggingface_hub; pip install datasets") from None
    if not _in_reach([ENDPOINT]):
        host = urllib.parse.urlsplit(ENDPOINT).hostname
        raise InputError(
            f"{name}: {host} cannot be reached; save its texts on another machine and read them with JsonLines"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager that suppresses the output of TFDS, and warnings that do not matter when preparing a data set."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
