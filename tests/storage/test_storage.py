"""Paths in buckets: what is read and listed, copies on this machine, and requests that fail, stall or are throttled."""

import asyncio
import contextlib
import gzip
import importlib.util
import io
import re
import types

import numpy as np
import object_stores
import pytest
from PIL import Image
from small_config import message

from jaxformer import storage
from jaxformer.data.sources import tfds_builders
from jaxformer.data.sources.pictures import ImageFolders, images_in, read_picture
from jaxformer.data.sources.sources import JsonLines, TextFiles, Tfds
from jaxformer.data.sources.tables import ClassFolders, Csv
from jaxformer.data.tokenizers import WordPiece, load_tokenizer


@pytest.fixture(autouse=True)
def copies_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(level):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_sources_read_objects_by_glob(bucket):
    for key, text in {"a/1.txt": "One.\n\nTwo.\n", "a/2.txt": "Three.", "a/b/3.txt": "Four.", "a/no.md": "No."}.items():
        bucket.put(key, text.encode())
    bucket.put("a/b/rows.jsonl.gz", gzip.compress(b'{"text": "Five."}\n'))
    bucket.put("rows.csv", b"text,label\nSix.,x\n")
    documents = TextFiles((bucket.path("a/*.txt"), bucket.path("a/b/3.txt"))).open()
    assert [one["text"] for one in documents] == ["One.", "Two.", "Three.", "Four."]
    assert documents.place(2).endswith("2.txt: line 1") and documents.place(2).startswith(bucket.path("a"))
    assert len(TextFiles((bucket.path("**/*.txt"),)).open()) == 4
    assert JsonLines((bucket.path("a/*/*.jsonl.gz"),)).open()[0] == {"text": "Five."}
    assert Csv((bucket.path("rows.csv"),)).open()[0] == {"text": "Six.", "label": "x"}
    assert "no file matches" in message(TextFiles((bucket.path("a/*.rtf"),)).open)
    assert "no such object" in message(TextFiles((bucket.path("a/none.txt"),)).open)


def test_folders_of_classes_are_read(bucket):
    for key in ("data/good/1.txt", "data/good/2.txt", "data/bad/1.txt", "data/bad/.hidden", "data/readme.txt"):
        bucket.put(key, key.encode())
    bucket.put("data/bad/empty.txt", b"")
    found = list(ClassFolders(bucket.path("data")).open())
    assert [(one["label"], one["text"]) for one in found] == [
        ("bad", "data/bad/1.txt"),
        ("good", "data/good/1.txt"),
        ("good", "data/good/2.txt"),
    ]


def test_images_are_read(bucket):
    for key, level in {"p/cat/1.png": 10, "p/cat/deep/2.png": 20, "p/ape/3.PNG": 30}.items():
        bucket.put(key, picture(level))
    bucket.put("p/cat/notes.txt", b"")
    source = ImageFolders(bucket.path("p/"))
    found = list(source.open())
    assert source.labels == ("ape", "cat") and [one["label"] for one in found] == ["ape", "cat", "cat"]
    assert [int(np.asarray(read_picture(one["image"], 3)).mean()) for one in found] == [30, 10, 20]
    assert images_in(bucket.path("p/cat")) == [bucket.path("p/cat/1.png")]
    assert "no such object" in message(read_picture, bucket.path("p/none.png"), 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a data set that was prepared as array_record."""
    import tensorflow_datasets as tfds

    class Words(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.2")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("One.", "Two."), "test": self._generate_examples("Three.")}

        def _generate_examples(self, *texts):
            yield from ((text, {"text": text}) for text in texts)

    folder = tmp_path_factory.mktemp("tfds")
    with tfds_builders.quiet():
        Words(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def test_tfds_data_sets_are_read_where_they_were_prepared(bucket, prepared, tmp_path):
    storage.upload(prepared, bucket.path("tfds"))
    found = Tfds("words", "train", bucket.path("tfds")).open()
    assert sorted(found[index]["text"] for index in range(len(found))) == ["One.", "Two."]
    copies = [file.name for file in (tmp_path / "cache").rglob("*.array_record*")]
    assert len(copies) == 1 and "-train." in copies[0]  # Only the split that is read.
    assert len(Tfds(bucket.path("tfds/words/1.0.2"), "train[:50%]").open()) == 1
    assert Tfds("words:1.0.2", "test", bucket.path("tfds")).open()[0] == {"text": "Three."}
    assert "no split 'valid'" in message(Tfds("words", "valid", bucket.path("tfds")).open)
    assert "holds no prepared TFDS data set" in message(Tfds("none", "train", bucket.path("tfds")).open)


@pytest.mark.slow
def test_an_image_that_is_out_of_reach_is_not_skipped(bucket):
    bucket.put("p/1.png", picture(1))
    bucket.faults.add(lambda method, url: "1.png" in url, 403, times=20)
    line = message(read_picture, bucket.path("p/1.png"), 3)
    assert "p/1.png: cannot be read" in line and "access is denied" in line


def test_a_copy_is_made_once_for_each_version(bucket):
    bucket.put("a.txt", b"One.")
    copies = {storage.local_copy(bucket.path("a.txt")) for _ in range(2)}
    reads = [
        url for method, url in bucket.faults.requests if method == "GET" and url.partition("?")[0].endswith("a.txt")
    ]
    bucket.put("a.txt", b"Two.")
    copies.add(storage.local_copy(bucket.path("a.txt")))
    assert len(copies) == 2
    assert TextFiles((bucket.path("a.txt"),)).open()[0] == {"text": "Two."}
    assert len([url for url in reads if "alt=media" in url or bucket.scheme == "s3"]) == 1


def test_a_copy_that_does_not_fit_is_reported(bucket, tmp_path, monkeypatch):
    bucket.put("a.txt", b"One.")
    (tmp_path / "cache").write_text("A file where the folder is to be.")
    line = message(storage.local_copy, bucket.path("a.txt"))
    assert "cannot be copied" in line and "XDG_CACHE_HOME" in line


def test_a_tokenizer_is_saved_and_loaded(bucket):
    tokenizer = WordPiece(60).build(lambda: [{"text": "the dog ran to the sea"}] * 20, bucket.path("run/tokenizer"))
    again = load_tokenizer(bucket.path("run/tokenizer"))
    assert again.encode("the dog").tolist() == tokenizer.encode("the dog").tolist()
    bucket.put("vocab.txt", "\n".join(again.pieces).encode())
    assert WordPiece(path=bucket.path("vocab.txt")).build(list, bucket.path("other")).pieces == again.pieces


def test_throttled_requests_are_tried_again(bucket):
    bucket.put("a.txt", b"One.")
    bucket.faults.add(lambda method, url: method == "GET", 503, times=1)
    assert storage.read_bytes(bucket.path("a.txt")) == b"One."


@pytest.fixture
def impatient(bucket, monkeypatch):
    """The bucket of a client that waits for half a second only, tries at most six times and does so at once."""
    monkeypatch.setattr(storage, "STALLED", 0.5)
    monkeypatch.setattr(storage, "TRIES", 3)
    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=lambda _: asyncio.sleep(0)))
    storage._configure.cache_clear()
    configured = dict(storage_settings())
    storage_settings().clear()
    object_stores.forget_clients()
    yield bucket
    storage._configure.cache_clear()
    storage_settings().clear()
    storage_settings().update(configured)
    object_stores.forget_clients()


def storage_settings():
    from fsspec import config

    return config.conf


@pytest.mark.slow
def test_stalled_requests_are_tried_again(impatient):
    impatient.put("a.txt", b"One.")
    impatient.faults.add(lambda method, url: method == "GET", 2.0, times=1)
    assert storage.read_bytes(impatient.path("a.txt")) == b"One."


@pytest.mark.slow
def test_a_server_that_does_not_answer_ends_in_one_line(impatient):
    impatient.put("a.txt", b"One.")
    impatient.faults.add(lambda method, url: True, 503, times=1000)
    line = message(storage.read_bytes, impatient.path("a.txt"))
    assert line.startswith(f"{impatient.path('a.txt')}: cannot be read") and re.search("503|Service Unavailable", line)


@pytest.mark.parametrize("name", ["gs://bucket/a", "s3://bucket/a"])
def test_the_missing_extra_is_named(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    package, extra = storage.CLIENTS[name[:2]]
    assert (
        message(storage.path, name)
        == f"{name}: needs {package}, which is not installed; pip install 'jaxformer[{extra}]'"
    )


def test_other_schemes_and_missing_buckets_are_refused(bucket):
    assert "gs:// or s3://" in message(storage.path, "http://example.com/a")
    assert "the name of a bucket" in message(storage.path, f"{bucket.scheme}://")
    nowhere = f"{bucket.scheme}://nowhere/run"
    assert message(storage.check_bucket, nowhere).startswith(f"{nowhere}: there is no bucket nowhere")
    bucket.faults.add(lambda method, url: True, 403, times=20)
    assert "cannot be listed: access is denied" in message(storage.check_bucket, bucket.path("run"))


def test_local_paths_are_as_they_were(tmp_path):
    assert not storage.is_remote(tmp_path) and storage.absolute("a").is_absolute()
    with pytest.raises(OSError), storage.reported(tmp_path):
        raise OSError("not touched")
    with contextlib.suppress(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))
    assert storage.local_copy(str(tmp_path)) == str(tmp_path)
