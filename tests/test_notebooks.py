"""The notebooks of colab/ are their sources, and run from top to bottom: with fewer steps, in a folder of their own."""

import os
import sys
from pathlib import Path

import jupytext
import nbclient
import pytest
import tiny

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "colab").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_its_source(source):
    """Where it is not: `jupytext --to ipynb colab/NAME.py`."""
    made, kept = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (made, kept)]
    assert cells[0] == cells[1]
    assert not any(cell.get("outputs") for cell in kept.cells)
    assert {path.stem for path in source.parent.glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.slow
def test_pretrain_and_export_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "4")
    monkeypatch.setenv("XLA_FLAGS", tiny.flags()["XLA_FLAGS"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(ROOT / "colab" / "pretrain_and_export.ipynb")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "comparisons with transformers" in printed and printed.count("And God said") == 2
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
    notebook = jupytext.read(ROOT / "colab" / "pretrain_and_export.ipynb")
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    if wanted is None:
        with pytest.raises(SystemExit, match="set SOURCE"):
            exec(first, {})
    else:
        exec(first, {})
        assert commands == [[sys.executable, "-m", "pip", "install", "-q", wanted.format(here=tmp_path)]]
