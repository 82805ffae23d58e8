import gzip
import json
import sys
from collections import Counter

import numpy as np
import pytest

from jaxformer.data.sources.columns import sentences, split_sentences
from jaxformer.data.sources.order import in_order, shuffled
from jaxformer.data.sources.sources import (
    Columns,
    JsonLines,
    Mixture,
    ParallelFiles,
    TextFiles,
    Tfds,
    random_index,
)
from jaxformer.errors import InputError


def texts(source):
    opened = source.open()
    return [opened[index]["text"] for index in range(len(opened))]


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return make


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_files_separate_documents(write, name):
    path = write(name, "\ufeffone\ntwo\r\n\r\n \n\nthree é\n")
    assert texts(TextFiles((path,))) == ["one\ntwo", "three é"]
    assert texts(TextFiles((path,), "line")) == ["one", "two", "three é"]
    assert texts(TextFiles((path,), "file")) == ["one\ntwo\r\n\r\n \n\nthree é"]


def test_globs_are_sorted_and_read_each_file_once(write, tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        write(name, name)
    pattern = str(tmp_path / "*.txt")
    assert texts(TextFiles((pattern, str(tmp_path / "a.txt"), pattern))) == ["a.txt", "b.txt"]


def test_json_lines_yield_their_objects(write):
    path = write("a.jsonl.gz", '{"text": "é", "n": 1}\n\n{"sentences": ["a", "b"]}')
    opened = JsonLines((path,)).open()
    assert [opened[0], opened[1]] == [{"text": "é", "n": 1}, {"sentences": ["a", "b"]}]
    assert len(opened) == 2


@pytest.mark.parametrize("kind", [TextFiles, JsonLines])
@pytest.mark.parametrize(
    "content, words",
    [(b"", "empty"), (b" \n\n", "empty"), (b"{}\n   \xf6n", "not UTF-8 at byte 6")],
)
def test_bad_text_is_named(write, kind, content, words):
    with pytest.raises(InputError, match=f"bad.txt: .*{words}") as caught:
        kind((write("bad.txt", content),)).open()
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.txt: no such file"):
        TextFiles((str(tmp_path / "none.txt"),)).open()
    with pytest.raises(InputError, match=r"\*.txt: no file matches"):
        TextFiles((str(tmp_path / "*.txt"),)).open()
    with pytest.raises(InputError, match="is a directory"):
        JsonLines((str(tmp_path),)).open()
    with pytest.raises(InputError, match="at least one"):
        TextFiles().open()


def test_bad_gzip_is_named(write, tmp_path):
    whole = gzip.compress(bytes(np.random.default_rng(0).integers(65, 90, 9999, np.uint8)))
    (tmp_path / "cut.gz").write_bytes(whole[:-100])
    (tmp_path / "not.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match=r"cut.gz: .*cut off"):
        TextFiles((str(tmp_path / "cut.gz"),)).open()
    with pytest.raises(InputError, match=r"not.gz: not a valid gzip"):
        TextFiles((str(tmp_path / "not.gz"),)).open()


@pytest.mark.parametrize("line, words", [("{", "not valid JSON"), ("[1]", "is list, not an object")])
def test_bad_json_is_named_with_its_line(write, line, words):
    path = write("bad.jsonl", '{"text": "a"}\n\n' + line)
    with pytest.raises(InputError, match=f"bad.jsonl: line 3 {words}|bad.jsonl: line 3 is {words}"):
        JsonLines((path,)).open()


def test_sentences_of_an_example():
    assert sentences({"sentences": ["a", " ", "b "]}) == ["a", "b"]
    assert sentences({"text": "One. Two\n\nthree"}) == ["One. Two", "three"]
    assert sentences({"text": "One. Two?"}) == ["One.", "Two?"]
    assert sentences({"text": "\n"}) == []
    assert sentences({"body": "One. Two", "text": "x"}, "body") == ["One.", "Two"]
    with pytest.raises(InputError, match=r"data.task.column='body': no such column; the columns are 'title', 'n'"):
        sentences({"title": "a", "n": 1}, "body")


def test_split_sentences():
    text = 'Mr. J. Smith came... late. "Why?" he said. "So!" 3 left. 你好。他来了。'
    expected = ["Mr. J. Smith came... late.", '"Why?" he said.', '"So!"', "3 left."]
    assert split_sentences(text) == [*expected, "你好。", "他来了。"]


class Range:
    """A source for the order alone: documents are their own numbers."""

    def __init__(self, count):
        self.count = count

    def open(self):
        return range(self.count)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 70_000])
def test_shuffled_visits_each_document_once_an_epoch(count):
    order = shuffled(range(count), seed=3)
    epochs = [[int(order[e * count + i]) for i in range(count)] for e in range(1 if count > 100 else 3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 7 or len({tuple(epoch) for epoch in [*epochs, range(count)]}) == len(epochs) + 1
    again, other = (shuffled(range(count), seed=seed) for seed in (3, 4))
    some = range(min(count, 50))
    assert epochs[0][:50] == [int(again[i]) for i in some]
    assert count < 7 or epochs[0][:50] != [int(other[i]) for i in some]


def test_in_order():
    assert [int(index) for index in in_order(range(7))] == list(range(7))


def test_in_order_spreads_components_evenly():
    inner = Mixture((Range(2), Range(4)), (1, 1))
    order = [int(index) for index in in_order(Mixture((Range(3), inner), (9, 1)).open())]
    assert sorted(order) == list(range(9))
    # The inner mixture is 3, 4 and 5 to 8; each component keeps its order.
    assert [index for index in order if index < 3] == [0, 1, 2]
    assert [index for index in order if index >= 3] == [5, 3, 6, 7, 4, 8]
    assert all(len({index < 3 for index in order[start : start + 3]}) == 2 for start in (0, 3, 6))


def test_mixture_keeps_weights_and_epochs():
    mixed = Mixture((Range(10), Range(1000), Range(5)), (1, 3, 0)).open()
    assert len(mixed) == 1010 and mixed[9] == 9 and mixed[10] == 0 and mixed[1009] == 999
    order = shuffled(mixed, seed=0)
    visits = [int(order[index]) for index in range(4096)]
    small = [visit for visit in visits if visit < 10]
    assert len(small) == 1024
    assert set(Counter(small).values()) <= {102, 103}
    assert max(Counter(visit for visit in visits if visit >= 10).values()) <= 4


def test_every_lane_of_a_mixture_sees_every_component():
    order = shuffled(Mixture((Range(50), Range(50)), (1, 1)).open(), seed=0)
    for lane in range(4):
        share = np.mean([int(order[lane + 4 * n]) < 50 for n in range(400)])
        assert 0.4 < share < 0.6


def test_nested_mixtures():
    inner = Mixture((Range(10), Range(20)), (1, 1))
    order = shuffled(Mixture((inner, Range(30)), (1, 1)).open(), seed=0)
    counts = np.bincount([int(order[index]) for index in range(8192)], minlength=60)
    assert counts[:10].sum() == counts[10:30].sum() == 2048 and counts[30:].sum() == 4096


def test_random_documents_come_by_weight():
    mixed = Mixture((Range(2), Range(1000)), (1, 1)).open()
    rng = np.random.default_rng(0)
    drawn = np.array([random_index(mixed, rng) for _ in range(2000)])
    assert 0.45 < np.mean(drawn < 2) < 0.55 and drawn.max() > 950


@pytest.mark.parametrize("count, weights", [(2, (1,)), (0, ()), (2, (0, 0)), (2, (1, -1)), (1, (float("nan"),))])
def test_mixture_refuses(count, weights):
    with pytest.raises(InputError, match=r"data\.train\.weights="):
        Mixture((Range(1),) * count, weights)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small data set with a builder of its own, prepared as array_record."""
    folder = tmp_path_factory.mktemp("tiny")
    package = folder / "tiny_builders"
    package.mkdir()
    (package / "tiny_dataset_builder.py").write_text("""
import numpy as np
import tensorflow_datasets as tfds
class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        text = tfds.features.Text()
        features = {"title": text, "sentences": tfds.features.Sequence(text), "n": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for n in range(4):
            yield n, {"title": f"Größe {n}", "sentences": [f"a {n}", "b"], "n": n}
""")
    sys.path.insert(0, str(package))
    import tiny_dataset_builder  # noqa: F401

    yield folder / "data"
    sys.path.remove(str(package))


def test_tfds_prepares_and_reads_without_tensorflow(tiny, capfd):
    opened = Tfds("tiny", data_dir=str(tiny)).open()
    assert sorted(opened[i]["title"] for i in range(len(opened))) == [f"Größe {n}" for n in range(4)]
    assert opened[0]["sentences"] == [f"a {opened[0]['n']}", "b"]
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_tfds_reads_a_prepared_folder(tiny):
    Tfds("tiny", data_dir=str(tiny)).open()
    opened = Tfds(str(tiny / "tiny" / "1.0.0"), "train[:50%]").open()
    assert len(opened) == 2 and isinstance(opened[0]["title"], str)


def test_tfds_errors_are_one_line(tiny, tmp_path):
    Tfds("tiny", data_dir=str(tiny)).open()
    for source, words in [
        (Tfds("tiny", "valid", str(tiny)), "tiny: no split 'valid'; there are: train"),
        (Tfds("no_such_set", data_dir=str(tmp_path)), "no TFDS data set 'no_such_set'"),
        (Tfds("bad name/", data_dir=str(tmp_path)), "no TFDS data set 'bad name/'"),
        (Tfds(str(tmp_path)), "holds no prepared TFDS data set"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            source.open()
        assert "\n" not in str(caught.value)


def test_json_stays_json(write):
    values = [{"text": "a\nb", "deep": {"x": [1, None]}}, {"text": "c"}]
    path = write("a.jsonl", "\n".join(map(json.dumps, values)) + "\n")
    opened = JsonLines((path,)).open()
    assert [opened[i] for i in range(2)] == values


def read(source):
    opened = source.open()
    return [opened[index] for index in range(len(opened))]


def test_parallel_files_are_pairs_by_line(write):
    english, german = write("a.en", "one\n\ntwo \nthree\nfour"), write("a.de", "eins\nnull\n zwei\n \nvier\n")
    assert read(ParallelFiles(english, german)) == [
        {"inputs": "one", "targets": "eins"},
        {"inputs": "two", "targets": "zwei"},
        {"inputs": "four", "targets": "vier"},
    ]


def test_parallel_files_must_have_as_many_lines(write, tmp_path):
    english, german, none = write("a.en", "one\ntwo\n"), write("a.de", "eins\nzwei\n\n"), write("a.fr", "\n\n")
    with pytest.raises(InputError, match=r"a.en has 2 lines, .*a.de has 3: line n of one file") as caught:
        ParallelFiles(english, german).open()
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"a.en and .*a.fr: no line has text in both"):
        ParallelFiles(english, none).open()
    with pytest.raises(InputError, match=r"a.it: no such file"):
        ParallelFiles(english, str(tmp_path / "a.it")).open()


def test_columns_are_renamed(write):
    path = write("a.jsonl", '{"en": " one ", "de": ["eins", "zwei"], "n": 1}\n{"en": "", "de": "x"}')
    columns = Columns(JsonLines((path,)), "en", "de", "translate: ")
    assert read(columns) == [
        {"inputs": "translate: one", "targets": "eins\nzwei"},
        {"inputs": "", "targets": "x"},
    ]
    words = r"Columns.targets='fr': no such column; the columns are 'en', 'de', 'n'"
    with pytest.raises(InputError, match=words) as caught:
        read(Columns(JsonLines((path,)), "en", "fr"))
    assert "\n" not in str(caught.value)


def test_columns_of_a_mixture_keep_its_weights(write):
    sources = [JsonLines((write(f"{name}.jsonl", f'{{"en": "{name}", "de": "x"}}'),)) for name in "abc"]
    inner = Mixture((sources[0], sources[1]), (3, 1))
    opened = Columns(Mixture((inner, sources[2]), (1, 1)), "en", "de").open()
    order = shuffled(opened, seed=0)
    counts = Counter(opened[int(order[index])]["inputs"] for index in range(8192))
    assert counts == {"a": 3072, "b": 1024, "c": 4096}
