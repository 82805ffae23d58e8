"""Installs jaxformer: `pip install .`, or with extras such as `pip install '.[cuda]'`; see pyproject.toml."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from setuptools import find_packages, setup

HOME = Path(__file__).parent
PAGES = {"Source": "", "Documentation": "/blob/main/docs/index.md", "Changelog": "/blob/main/CHANGELOG.md"}
"""Maps the names of the links of the package to paths in the repository's web pages."""


def repository() -> str | None:
    """Returns the web address of the repository: that of `JAXFORMER_REPOSITORY`, or of the clone's remote `origin`,
    without a user and a password. None if there is none.
    """
    address = os.environ.get("JAXFORMER_REPOSITORY") or _origin()
    address = (
        re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", address.strip()).removesuffix("/").removesuffix(".git")
    )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"https://{parts.hostname}{port}{parts.path}"


def _origin() -> str:
    if not (HOME / ".git").exists():  # Git would look for a repository around this folder.
        return ""
    try:
        command = ["git", "-C", str(HOME), "config", "--get", "remote.origin.url"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:  # There is no git.
        return ""


def readme(address: str | None) -> str:
    """Returns the README, whose links to files lead to the repository if it has an address."""
    text = (HOME / "README.md").read_text(encoding="utf-8")
    if address is None:
        return text
    return re.sub(r"(?<=\]\()(?![a-z]+:|#)([^)\s]+)(?=\))", rf"{address}/blob/main/\1", text)


address = repository()

# The repository's configs are installed as data of the package, where `jaxformer train NAME` finds them.
setup(
    packages=[*find_packages(include=["jaxformer", "jaxformer.*"]), "jaxformer.configs"],
    package_dir={"jaxformer.configs": "configs"},
    long_description=readme(address),
    long_description_content_type="text/markdown",
    project_urls={name: f"{address}{path}" for name, path in PAGES.items()} if address else {},
)
