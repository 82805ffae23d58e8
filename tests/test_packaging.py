"""The wheel: what it holds, and that it works in an environment of its own, away from the repository."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny

import jaxformer as jf

ROOT = Path(__file__).parent.parent
FEW = "--steps 2 --log.every 1 --optimizer.schedule.warmup 1 --evaluation.batches 1"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build writes to the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("jaxformer", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = copy / "wheel"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ".", cwd=copy)
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
    assert {name.split("/")[0] for name in names} == {"jaxformer", metadata.split("/")[0]}
    assert fields["Version"] == jf.__version__ and fields["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in fields.get_all("Classifier")


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
