"""Installs jaxformer: `pip install .`, or with extras such as `pip install '.[cuda]'`; see pyproject.toml."""

from setuptools import find_packages, setup

# The repository's configs are installed as data of the package, where `jaxformer train NAME` finds them.
setup(
    packages=[*find_packages(include=["jaxformer", "jaxformer.*"]), "jaxformer.configs"],
    package_dir={"jaxformer.configs": "configs"},
)
