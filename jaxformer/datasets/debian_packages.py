"""Reads files from Debian packages, which are downloaded with apt and unpacked without being installed."""

import glob
import os
import shutil
import subprocess
from collections.abc import Sequence

from jaxformer.errors import InputError

_CONFIG = """
#clear Acquire::Languages;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
APT::Sandbox::User "";
APT::Update::Post-Invoke {{ }};
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""


def apt_config(folder: str, languages: Sequence[str] = ("none",)) -> str:
    """Writes an apt configuration file and returns its path.

    With this configuration, apt keeps its package lists and its cache in `folder`, so that it needs no root privileges
    and does not change the system.

    Args:
      folder: folder for the configuration, the lists and the cache.
      languages: codes of the languages in which package descriptions are downloaded.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    path = os.path.join(folder, "apt.conf")
    with open(path, "w") as file:
        file.write(_CONFIG.format(languages=" ".join(f'"{code}";' for code in languages), folder=folder))
    return path


def package_file(name: str, member: str, folder: str) -> str:
    """Extracts a file from a Debian package and returns the path of the file.

    Downloads the package with apt unless the file is already in `folder`. This needs no root privileges and does not
    change the system.

    Args:
      name: name of the package.
      member: path of the file in the package, such as `usr/share/doc/opencv-doc/...`.
      folder: folder for the package and the file.

    Raises:
      InputError: If apt-get or dpkg-deb is missing or fails, or the package does not contain the file.
    """
    path = os.path.join(folder, member)
    if os.path.isfile(path):
        return path
    _check_tools(name, f"put the file at {path}")
    archive = _archive(name, folder)
    # The package is unpacked to a separate folder, and only the file is kept.
    unpacked = os.path.join(folder, "unpacked")
    _run(["dpkg-deb", "--extract", archive, unpacked], folder)
    found = os.path.join(unpacked, member)
    if not os.path.isfile(found):
        raise InputError(
            f"{name}: {os.path.basename(archive)} has no {member}; another version of the package is needed"
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.replace(found, path)
    shutil.rmtree(unpacked)
    os.remove(archive)
    return path


def package_folder(name: str, folder: str) -> str:
    """Unpacks a Debian package into a subfolder of `folder` and returns the path of the subfolder.

    Downloads the package with apt unless it is already unpacked. This needs no root privileges and does not change the
    system.

    Args:
      name: name of the package.
      folder: folder for the package and its files.

    Raises:
      InputError: If apt-get or dpkg-deb is missing or fails.
    """
    unpacked = os.path.join(folder, f"{name}.unpacked")
    if os.path.isdir(unpacked):
        return unpacked
    _check_tools(name, f"unpack the package to {unpacked}")
    os.makedirs(folder, exist_ok=True)
    archive, temporary = _archive(name, folder), f"{unpacked}.tmp-{os.getpid()}"
    _run(["dpkg-deb", "--extract", archive, temporary], folder)
    os.replace(temporary, unpacked)
    os.remove(archive)
    return unpacked


def _check_tools(name: str, instead: str) -> None:
    """Raises InputError if apt-get or dpkg-deb is not installed. The message says which package (`name`) needs it, and
    `instead` what the user can do by hand.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise InputError(
            f"{name}: needs {missing[0]}, which is not installed; prepare the data set on a Debian or Ubuntu "
            f"system and give the path of its folder, or {instead}"
        )


def _archive(name: str, folder: str) -> str:
    pattern = os.path.join(folder, f"{name}_*.deb")
    if not glob.glob(pattern):
        config = apt_config(folder)
        _run(["apt-get", "update", "-q", "-c", config], folder)
        _run(["apt-get", "download", "-q", "-c", config, name], folder)
    return glob.glob(pattern)[0]


def _run(command: list[str], folder: str) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
        shown = " ".join([command[0], command[1], command[-1]])
        raise InputError(f"'{shown}' failed: {lines[-1]}; a mirror of the distribution must be reachable once")
