import shutil
import subprocess

import pytest

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets.debian_descriptions import debian_descriptions_dataset_builder as descriptions
from jaxformer.errors import InputError

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")

PACKAGES = """\
Package: gcc-11
Source: gcc-11 (11.3-1)
Section: devel

Package: paint
Section: graphics
Tag: role::program,
 use::viewing
"""

ENGLISH = """\
Package: gcc-11
Description-md5: aa
Description-en: GNU C compiler
 Compiles C.
 .
 Version 11, which has:
  - a feature
  - another
 .
 Done.

Package: gcc-11-copy
Description-md5: aa
Description-en: GNU C compiler
 Compiles C.

Package: paint
Description-md5: bb
Description-en: paints   pictures
 Draws
 lines.
 * and circles

Package: old
Description-md5: cc
Description-en: transitional package
 Can be removed.

Package: short
Description-md5: dd
Description-en: has no more to say
"""

GERMAN = """\
Package: gcc-11
Description-md5: aa
Description-de: GNU-C-Compiler
 Übersetzt C.
 .
 Fertig.

Package: paint
Description-md5: bb
Description-de: malt Bilder
 Zeichnet Linien
 * und Kreise

Package: short
Description-md5: dd
Description-de: has no more to say

Package: gone
Description-md5: ee
Description-de: ist weg
"""


@pytest.fixture
def lists(tmp_path):
    for name, text in [("binary-amd64_Packages", PACKAGES), ("Translation-en", ENGLISH), ("Translation-de", GERMAN)]:
        (tmp_path / f"mirror_main_{name}").write_text(text, encoding="utf-8")
    return str(tmp_path)


def test_summaries(lists):
    examples = descriptions._with_origin(
        descriptions._summaries(descriptions._entries(lists, "en")), descriptions._origins(lists)
    )
    assert examples == [
        {
            "package": "gcc-11",
            "source": "gcc-11",
            "section": "devel",
            "summary": "GNU C compiler",
            "description": "Compiles C.\n\nVersion 11, which has:\n- a feature\n- another\n\nDone.",
        },
        {
            "package": "paint",
            "source": "paint",
            "section": "graphics",
            "summary": "paints pictures",
            "description": "Draws lines.\n* and circles",
        },
    ]


def test_pairs(lists):
    pairs = descriptions._pairs(*(descriptions._entries(lists, language) for language in ("en", "de")), "de")
    assert [(pair["en"], pair["de"]) for pair in pairs] == [
        ("GNU C compiler", "GNU-C-Compiler"),  # and no paragraphs; there are three and two
        ("paints pictures", "malt Bilder"),
        ("Draws lines.\n* and circles", "Zeichnet Linien\n* und Kreise"),
    ]


def test_near_duplicates_stay_together():
    names = [first + second for first in "abcdefghijklmnopqrstuvwxyz" for second in "abcdefghij"]
    examples = [
        {"package": "p", "source": f"{name}-{version}", "section": "s", "en": f"{name}, version {version}", "de": text}
        for name in names
        for version, text in [(1, f"von {name}"), (2, f"von {name}"), (3, "von allen")]
    ]
    splits = descriptions._split(examples)
    found = {split: {example["source"][:2] for example in examples} for split, examples in splits.items()}
    assert all(found.values()) and set().union(*found.values()) == set(names)
    assert sum(map(len, found.values())) == len(names)
    # Versions 1 and 2 differ in digits alone; the third text is in the training split too.
    texts = {split: [example["de"] for example in examples] for split, examples in splits.items()}
    assert texts["train"].count("von allen") == len(found["train"])
    for split in ("validation", "test"):
        assert texts[split] == [f"von {name}" for name in sorted(found[split])]


def test_the_splits_have_their_share():
    names = [descriptions._split_of(f"source{chr(97 + n % 26) * (n // 26 + 1)}") for n in range(3000)]
    assert 0.01 < names.count("validation") / 3000 < 0.03 and 0.01 < names.count("test") / 3000 < 0.03


@pytest.fixture(scope="session")
def read(tmp_path_factory):
    """Reads a split; fetched once in a folder of this session, with the real apt."""
    folder = str(tmp_path_factory.mktemp("descriptions"))

    def make(name, split):
        documents = Tfds(f"debian_descriptions/{name}", split, folder).open()
        return [documents[index] for index in range(len(documents))]

    return make


@needs_apt
@pytest.mark.slow
def test_real_lists(read):
    columns = ("en", "de")
    splits = {split: read("en-de", split) for split in ("train", "validation", "test")}
    assert len(splits["train"]) > 20_000 and all(len(splits[split]) > 200 for split in ("validation", "test"))
    sources = {split: {example["source"] for example in examples} for split, examples in splits.items()}
    assert not sources["train"] & (sources["validation"] | sources["test"])
    texts = {split: {e[column] for e in examples for column in columns} for split, examples in splits.items()}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    for examples in splits.values():
        for example in examples:
            assert all(example[column].strip() == example[column] != "" for column in (*columns, "package", "section"))


def test_a_machine_without_apt_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match="needs apt-get, which is not installed; prepare the data set on a Deb"
    ) as caught:
        Tfds("debian_descriptions/summaries", data_dir=str(tmp_path / "data")).open()
    assert "\n" not in str(caught.value)


def test_lists_that_do_not_come_are_one_line(monkeypatch, tmp_path):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 0, "Reading\n", "W: x\nW: Failed to fetch http://mirror\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(InputError, match="no Translation-en: W: Failed to fetch http://mirror; a mirror") as caught:
        Tfds("debian_descriptions/en-de", data_dir=str(tmp_path)).open()
    assert "\n" not in str(caught.value)
