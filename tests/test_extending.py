"""The guides in docs/extending/: the Python of each page runs in order and prints what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
SLOW = ("mesh_axis", "model", "objective")
"""Pages that take more than ten seconds."""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def write_script(page, folder):
    """Writes the blocks that start with a file's name to that file, and returns the script made of the others."""
    script, files = [], {}
    for block in blocks(page, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            files.setdefault(name[1], []).append(block)
        else:
            script.append(block)
    for name, parts in files.items():
        (folder / name).write_text("\n".join(parts), encoding="utf-8")
    return "\n".join(script)


def parameters():
    return [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES]


@pytest.mark.parametrize("page", parameters())
def test_page_runs_and_prints_what_it_shows(page, tmp_path):
    (tmp_path / "page.py").write_text(write_script(page, tmp_path), encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = tiny.flags() | {"PYTHONPATH": path}
    command = [sys.executable, "page.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | flags, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(blocks(page, "text"))


def test_every_guide_is_linked():
    readme, contributing = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    for page in PAGES:
        assert f"](docs/extending/{page.name})" in contributing
    assert "](docs/extending/" in readme
