"""The notebooks of colab/ are their sources, and run from top to bottom on small settings, in a kernel whose
environment has only the packages that the first cell installs.
"""

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbclient
import pytest
import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "colab").glob("*.py"))
NAMES = [path.stem for path in SOURCES]
STACK = {"width": 16, "depth": 1, "heads": 2}
FEW = {"steps": 4, "data.batch": 8, "evaluation.every": 4, "evaluation.batches": 1, "log.every": 1}
FEW |= {"optimizer.schedule.warmup": 1}


def small(*paths, **fields):
    """Overrides that leave one narrow block of each stack, and four steps."""
    return FEW | {f"{path}.{name}": size for path in paths for name, size in STACK.items()} | fields


GPT = small("model.transformer", **{"data.task.length": 32, "objective.decoding.max_new_tokens": 8})
SMALL = {
    "01_pretrain_bert": {"bert": small("model.transformer")},
    "04_export_to_pytorch": {"llama": GPT},
    "05_plan_a_pod": {"config": "gpt_quickstart", "shapes": ["2x2x1", "2x2x2"]},
}
"""Settings of each notebook for the test."""
SHOWN = {
    "01_pretrain_bert": ("<svg", "<iframe", "[MASK]"),
    "04_export_to_pytorch": ("comparisons with transformers", "And God said"),
    "05_plan_a_pod": ("candidates on v5p:4x4x4", "<svg", "thousand dollars"),
}
"""Parts of what each notebook shows."""


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_is_its_source(source):
    """Where it is not: `jupytext --to ipynb colab/NAME.py`."""
    made, kept = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (made, kept)]
    assert cells[0] == cells[1]
    assert not any(cell.get("outputs") for cell in kept.cells)
    assert {path.stem for path in source.parent.glob("*.ipynb")} == set(NAMES) == set(SMALL) == set(SHOWN)


def first_cell(name):
    notebook = jupytext.read(ROOT / "colab" / f"{name}.ipynb")
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def extras_of(name):
    """The extras that a notebook installs."""
    return re.search(r'^EXTRAS = "(?:\[(.*)\])?"$', first_cell(name), re.MULTILINE)[1] or ""


def test_all_notebooks_install_in_the_same_way():
    assert len({re.sub(r'EXTRAS = ".*"', "", first_cell(name)) for name in NAMES}) == 1


def closure(package, extra="", found=None):
    """The names of a package with an extra and of all packages that it requires, in this environment."""
    found = {} if found is None else found
    key = (canonicalize_name(package), extra)
    if key in found:
        return set()
    try:
        found[key] = lines = importlib.metadata.requires(package) or ()
    except importlib.metadata.PackageNotFoundError:  # One for another system.
        return set()
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for more in ("", *requirement.extras):
                closure(requirement.name, more, found)
    return {name for name, _ in found}


def kernel(folder, extras):
    """Makes an environment with a kernel and what `pip install jaxformer[extras]` would install, as links to the
    packages of this environment. Returns its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted = closure("ipykernel")
    for extra in ("", *filter(None, extras.split(","))):
        wanted |= closure("jaxformer", extra)
    for name in wanted - {"jaxformer"}:
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            place = Path(importlib.metadata.distribution(name).locate_file(top))
            if top not in ("..", "__pycache__") and place.exists() and not (packages / top).exists():
                (packages / top).symlink_to(place)
    (packages / "jaxformer.pth").write_text(str(ROOT))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Returns the Python of an environment with some extras. There is one environment for each set of extras."""
    return functools.cache(lambda extras: kernel(tmp_path_factory.mktemp("environment") / "venv", extras))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, kernels, tmp_path, monkeypatch):
    if name == "04_export_to_pytorch":
        pytest.importorskip("torch")
    for variable, value in ({"SMALL": json.dumps(SMALL[name])} | tiny.flags()).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = kernels(extras_of(name))
    specification = tmp_path / "kernels" / "own"
    specification.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (specification / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "own", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = jupytext.read(ROOT / "colab" / f"{name}.ipynb")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="own", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "".join(json.dumps(output, ensure_ascii=False) for output in outputs)
    for part in SHOWN[name]:
        assert part in shown, part
    if name == "04_export_to_pytorch":
        assert (tmp_path / "hf" / "llama" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "source, files, wanted",
    [
        ("git+https://host/jaxformer", [], "jaxformer[torch] @ git+https://host/jaxformer"),
        ("", ["jaxformer-0.1.0-py3-none-any.whl"], "{here}/jaxformer-0.1.0-py3-none-any.whl[torch]"),
        ("", ["jaxformer/setup.py", "jaxformer/jaxformer/__init__.py"], "{here}/jaxformer[torch]"),
        ("{here}/clone", ["clone/setup.py", "clone/jaxformer/__init__.py"], "{here}/clone[torch]"),
        ("", [], None),
    ],
    ids=["an address", "a wheel", "a clone", "a clone elsewhere", "nothing"],
)
def test_the_first_cell_installs_what_it_finds(source, files, wanted, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setenv("SOURCE", source.format(here=tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    first = first_cell("04_export_to_pytorch")
    if wanted is None:
        with pytest.raises(SystemExit, match="set SOURCE"):
            exec(first, {})
    else:
        exec(first, {})
        assert commands == [[sys.executable, "-m", "pip", "install", "-q", wanted.format(here=tmp_path)]]
