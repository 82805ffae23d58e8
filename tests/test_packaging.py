"""The source distribution and the wheel that is built from it: what they hold, and that the wheel works in an
environment of its own, away from the repository.
"""

import email
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tiny

import jaxformer as jf

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://host.example/owner/jaxformer"
AT_THE_ROOT = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
FEW = "--steps 2 --log.every 1 --optimizer.schedule.warmup 1 --evaluation.batches 1"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, built from a copy, since a build writes to the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", *AT_THE_ROOT):
        shutil.copy(ROOT / name, copy)
    for name in ("jaxformer", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_sdist('out')"
    run(sys.executable, "-c", build, cwd=copy, env=os.environ | {"JAXFORMER_REPOSITORY": f"{REPOSITORY}.git"})
    (found,) = (copy / "out").glob("jaxformer-*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, built from the source distribution."""
    out = tmp_path_factory.mktemp("wheel")
    environment = os.environ | {"JAXFORMER_REPOSITORY": REPOSITORY}
    options = ("-q", "--no-deps", "--no-build-isolation", "-w", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=out, env=environment)
    (wheel,) = out.glob("jaxformer-*.whl")
    return wheel


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of an environment that has this one's packages, but jaxformer from the wheel."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    (packages,) = home.glob("lib/python*/site-packages")
    # A folder in a .pth file is searched, but .pth files in it, such as that of an editable jaxformer, are not read.
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    run(sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "-q", "--no-deps", wheel)
    return home / "bin"


@pytest.mark.slow
def test_the_wheel_has_the_package_its_configs_and_its_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(archive.read(metadata))
    for folder, inside in (("jaxformer", "jaxformer"), ("configs", "jaxformer/configs")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / folder)}" in names
    assert "jaxformer/py.typed" in names
    for path in (ROOT / "jaxformer").rglob("*.js"):
        assert f"jaxformer/{path.relative_to(ROOT / 'jaxformer')}" in names
    assert {name.split("/")[0] for name in names} == {"jaxformer", metadata.split("/")[0]}
    assert fields["Version"] == jf.__version__ and fields["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in fields.get_all("Classifier")
    assert f"Source, {REPOSITORY}" in fields.get_all("Project-URL")
    assert fields["Description-Content-Type"] == "text/markdown"
    description = fields.get_payload()
    assert f"]({REPOSITORY}/blob/main/docs/recipes.md)" in description and "](docs/" not in description


@pytest.mark.slow
def test_the_source_distribution_has_the_files_at_the_root(source):
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*AT_THE_ROOT, "pyproject.toml", "setup.py", "configs/bert_quickstart.py"} <= names


def test_the_address_of_the_repository_has_no_password(monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        setup = runpy.run_path(str(ROOT / "setup.py"))
    for given, found in (
        ("https://name:secret@host.example/owner/jaxformer.git", REPOSITORY),
        ("git@host.example:owner/jaxformer.git", REPOSITORY),
        ("/srv/git/jaxformer", None),
    ):
        monkeypatch.setenv("JAXFORMER_REPOSITORY", given)
        assert setup["repository"]() == found
    assert setup["readme"](None) == (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_wheel_trains_a_config_by_name(programs, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | tiny.flags()
    where = run(programs / "python", "-c", "import jaxformer; print(jaxformer.__file__)", cwd=tmp_path, env=environment)
    assert Path(where).is_relative_to(programs.parent)
    command = [programs / "jaxformer", "train", "bert_quickstart", *FEW.split()]
    printed = run(*command, cwd=tmp_path, env=environment)
    assert "The run is in runs/bert_quickstart" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    answer = run(programs / "jaxformer", "predict", "runs/bert_quickstart", "the [MASK]", cwd=tmp_path, env=environment)
    assert "%" in answer
