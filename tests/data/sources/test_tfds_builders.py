"""Names of TFDS are found without a network; prepared folders of every layout are read."""

import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from jaxformer.data.sources import tfds_builders
from jaxformer.data.sources.sources import Tfds
from jaxformer.errors import InputError

ROOT = Path(__file__).parents[3]
NAMES = sorted(
    {name for path in ROOT.glob("configs/*.py") for name in re.findall(r'Tfds\("([^"]+)"', path.read_text())}
)
WITH_TENSORFLOW = {"librispeech"}
"""Names whose builders cannot be made without TensorFlow."""
SECONDS = 10


@pytest.fixture
def no_network(monkeypatch):
    """Every look at the network fails at once."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_names_of_all_configs_are_tried():
    assert {"wikipedia/20230601.en", "c4/en", "glue/mrpc", "cnn_dailymail", "wmt14_translate/de-en"} <= set(NAMES)
    calls = sum(len(re.findall(r"Tfds\(", path.read_text())) for path in ROOT.glob("configs/*.py"))
    assert calls == sum(len(re.findall(r'Tfds\("', path.read_text())) for path in ROOT.glob("configs/*.py"))


@pytest.mark.parametrize(
    "name",
    [*sorted(set(NAMES) - WITH_TENSORFLOW), "imdb_reviews", "glue/mrpc:2.0.0", "trivia_qa", "unified_qa", "mnist"],
)
def test_a_name_is_found_without_a_network_in_seconds(name, no_network, tmp_path):
    began = time.monotonic()
    builder = tfds_builders.find(name, str(tmp_path))
    base, *config = re.split("[/:]", name)
    assert builder.name == base and not builder.is_prepared()
    assert not config or name.endswith(":2.0.0") or builder.builder_config.name == config[0]
    assert time.monotonic() - began < SECONDS


def test_find_works_in_a_fresh_process():
    """In a process of its own, where no other test has imported a builder."""
    script = (
        "import sys; from jaxformer.data.sources import tfds_builders\n"
        "print([tfds_builders.find(name, '/nowhere').name for name in ('wikipedia/20230601.en', 'cnn_dailymail')])\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "['wikipedia', 'cnn_dailymail']\n", done.stderr


@pytest.mark.parametrize(
    "name, words",
    [
        ("imdb_reviews", r"imdb_reviews: could not be prepared: \S+ cannot be reached; prepare it on a machine"),
        (
            "glue/mrpc",
            r"could not be prepared: \S+ cannot be reached; .*tfds build glue/mrpc --file_format=array_record",
        ),
        (
            "wikipedia/20230601.en",
            r"needs Apache Beam for preparation, .*apache-beam; tfds build wikipedia/20230601.en",
        ),
        ("c4/en", "needs Apache Beam for preparation, .*copy DIR here and set data_dir to it"),
        ("imagenet2012", "could not be prepared: Manual directory .* should contain two files"),
        ("huggingface:imdb", "huggingface:imdb: "),
        ("glu", "no TFDS data set 'glu': .*; perhaps glue; give a name of its catalog"),
        ("glue/mrpx", "no TFDS data set 'glue/mrpx': .*; its configs are cola, sst2, mrpc, "),
        ("librispeech", r"librispeech: its builder needs tensorflow, .*copy a prepared data set to \S+/librispeech"),
        ("nobody:glue", "no TFDS data set 'nobody:glue': Namespace nobody not found"),
    ],
)
def test_unprepared_data_sets_say_what_to_do(name, words, no_network, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    find_spec = tfds_builders.importlib.util.find_spec
    monkeypatch.setattr(
        tfds_builders.importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find_spec(name)
    )
    began = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        Tfds(name, data_dir=str(tmp_path)).open()
    assert "\n" not in str(caught.value) and time.monotonic() - began < SECONDS
    assert "Retrying" not in "".join(capfd.readouterr())


BUILDER = """
import tensorflow_datasets as tfds
class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for n in range(3):
            yield n, {"text": f"Größe {n}"}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a data set that was prepared as array_record, and its builder's module."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "measures_dataset_builder.py").write_text(BUILDER)
    sys.path.insert(0, str(folder))
    import measures_dataset_builder  # noqa: F401

    Tfds("measures", data_dir=str(folder / "data")).open()
    sys.path.remove(str(folder))
    return folder / "data" / "measures" / "1.2.0"


def texts(name, data_dir=None):
    documents = Tfds(name, data_dir=data_dir and str(data_dir)).open()
    return sorted(documents[n]["text"] for n in range(len(documents)))


def copied(prepared, folder, name, version):
    """A copy of the prepared data set under another name and version, without code for it."""
    target = folder / name / version
    shutil.copytree(prepared, target)
    for path in target.glob("measures-*"):
        path.rename(target / path.name.replace("measures", name, 1))
    info = json.loads((target / "dataset_info.json").read_text()) | {"name": name, "version": version}
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


EXPECTED = [f"Größe {n}" for n in range(3)]


def test_a_prepared_folder_needs_no_code(prepared, tmp_path):
    folder = copied(prepared, tmp_path, "widths", "1.0.3")
    copied(prepared, tmp_path, "widths", "1.0.12")
    assert texts("widths", tmp_path) == texts("widths:1.0.3", tmp_path) == EXPECTED
    assert texts(str(folder)) == texts(str(folder.parent)) == EXPECTED
    assert tfds_builders.prepared(str(folder.parent), None).version == "1.0.12"


def test_a_prepared_data_set_is_read_without_the_packages_of_its_builder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "librispeech" / "1.1.0")
    assert texts("librispeech", tmp_path) == ["Größe 0", "Größe 1", "Größe 2"]


def test_another_prepared_version_is_read_with_a_note(prepared, tmp_path, capsys):
    copied(prepared, tmp_path, "measures", "0.9.0")
    assert texts("measures", tmp_path) == EXPECTED
    assert not (tmp_path / "measures" / "1.2.0").exists()
    assert "measures: version 1.2.0 is not prepared; version 0.9.0 in " in capsys.readouterr().err
    assert texts("measures:0.9.0", tmp_path) == EXPECTED


def test_a_folder_of_several_data_sets_lists_them(prepared, tmp_path):
    for name in ("widths", "heights"):
        copied(prepared, tmp_path, name, "1.0.0")
    with pytest.raises(InputError, match=r"give .* such as one of heights/1\.0\.0, widths/1\.0\.0 in it"):
        Tfds(str(tmp_path)).open()


def test_a_damaged_folder_is_named(prepared, tmp_path):
    folder = copied(prepared, tmp_path, "widths", "1.0.0")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"widths/1\.0\.0: holds no readable TFDS data set") as caught:
        Tfds(str(folder)).open()
    assert "\n" not in str(caught.value)


ARCHIVES = """
import tensorflow_datasets as tfds
class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("zip", "tar.gz", "gz")]
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))
    def _split_generators(self, dl_manager):
        kind = self.builder_config.name
        archive, name = f"{FOLDER}/a.{kind}", "" if kind == "gz" else "a.txt"
        parts = {"extracted": self._generate_examples([(dl_manager.extract(archive) / name).read_bytes()])}
        if name:
            parts["read"] = self._generate_examples([file.read() for _, file in dl_manager.iter_archive(archive)])
        return parts
    def _generate_examples(self, texts):
        for number, text in enumerate(texts):
            yield number, {"text": text.decode()}
"""


def test_archives_are_opened_without_tensorflow(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Größe")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.txt", "a.txt")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    (tmp_path / "a.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    (tmp_path / "archived_dataset_builder.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{ARCHIVES}")
    monkeypatch.syspath_prepend(tmp_path)
    import archived_dataset_builder  # noqa: F401

    for kind in ("zip", "tar.gz", "gz"):
        for split in ("extracted",) if kind == "gz" else ("extracted", "read"):
            assert Tfds(f"archived/{kind}", split, str(tmp_path / "data")).open()[0] == {"text": "Größe"}
    assert "tensorflow" not in sys.modules


def test_the_page_of_data_sets_says_which_need_beam():
    import tensorflow_datasets as tfds

    page = (ROOT / "docs" / "datasets.md").read_text()
    listed = re.search(r"need Apache Beam: (.*?)\. Some", page, re.DOTALL)[1]
    tfds_builders.import_builders()
    with_beam = set()
    for name in tfds.list_builders(with_community_datasets=False):
        try:
            if issubclass(tfds.builder_cls(name), tfds.core.BeamBasedBuilder):
                with_beam.add(name)
        except ImportError:  # A builder whose own dependency is not installed.
            continue
    assert set(re.findall(r"`(\w+)`", listed)) == with_beam
    table = page[page.index("| data sets") : page.index("These data sets")]
    assert set(re.findall(r"`(\w+)`", table)) == {re.split("[/:]", name)[0] for name in NAMES}
