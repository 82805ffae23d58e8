"""Descriptions of Debian packages: long ones with their summaries, and English ones with their translations."""

import collections
import dataclasses
import glob
import hashlib
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from jaxformer.datasets.debian_packages import apt_config
from jaxformer.errors import InputError

_DESCRIPTION = """
Descriptions of software packages, from the lists of the distribution that this machine's apt is set up for (Debian or
one made from it). They are fetched by `apt-get update` into a folder of their own, which needs no special rights and
changes nothing in the system. Debian 12 gives 61,000 summaries, 33,000 German pairs and 50,000 French ones.

`debian_descriptions/summaries` has each package's long description, its paragraphs separated by empty lines, and the
summary in a line. `debian_descriptions/topics` has summary and description as one text, and one of 16 sections as its
label, those that say what a package is about, not in what language it is written. `debian_descriptions/en-de` and
`en-fr` are pairs of a summary or a paragraph in two languages, as translated by volunteers (the Debian Description
Translation Project).

Of every hundred source packages two are for validation and two for testing, ten each of `topics`, chosen by name.
Digits do not count: gcc-12 is where gcc-11 is, texts that differ in nothing else are there once, and a text of the
training split is in no other. Of `topics`, sources of more than 20 packages are for training: their texts are alike,
and the 161 languages of one program would be an eighth of the validation split.

The texts are under the licences of their packages, free software all of them.
"""

TOPICS = (
    *("database", "editors", "electronics", "fonts", "games", "graphics", "hamradio", "localization"),
    *("mail", "math", "net", "science", "sound", "video", "web", "x11"),
)
"""The sections of `topics`."""
_LANGUAGES = {"de": "German", "fr": "French"}
_HELD_OUT = 2  # of every hundred source packages, in validation and again in test
_TOPICS_HELD_OUT = 10
_TOPICS_LARGEST = 20  # packages of a source that may be held out


@dataclasses.dataclass
class DescriptionsConfig(tfds.core.BuilderConfig):
    """Summaries, or translations."""

    language: str | None = None
    """Language beside English; None is English descriptions and summaries."""
    topics: bool = False
    """Whether each text has a label instead of a summary."""


@dataclasses.dataclass
class Entry:
    """The description of a package."""

    package: str
    key: str
    """Digest of the English description, the same in all languages."""
    summary: str
    paragraphs: list[str]


class Builder(tfds.core.GeneratorBasedBuilder):
    """See `_DESCRIPTION`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        DescriptionsConfig(name="summaries", description="Long descriptions and summaries, in English"),
        DescriptionsConfig(
            name="topics",
            description="Summaries with descriptions, by section",
            topics=True,
            version=tfds.core.Version("1.1.0"),
        ),
        *(
            DescriptionsConfig(name=f"en-{code}", description=f"English and {name}, by paragraph", language=code)
            for code, name in _LANGUAGES.items()
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        columns = ["en", self.builder_config.language] if self.builder_config.language else ["description", "summary"]
        columns = ["text"] if self.builder_config.topics else columns
        features = {name: tfds.features.Text() for name in ("package", "source", "section", *columns)}
        if self.builder_config.topics:
            features["label"] = tfds.features.ClassLabel(names=list(TOPICS))
        return tfds.core.DatasetInfo(
            builder=self, description=_DESCRIPTION, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict:
        lists = _fetch(os.path.join(os.path.abspath(str(dl_manager.download_dir)), "debian_descriptions"))
        language = self.builder_config.language
        english = _entries(lists, "en")
        examples = _pairs(english, _entries(lists, language), language) if language else _summaries(english)
        examples = _with_origin(examples, _origins(lists))
        if self.builder_config.topics:
            splits = _split(_topics(examples), _TOPICS_HELD_OUT, _TOPICS_LARGEST)
        else:
            splits = _split(examples)
        return {split: self._generate_examples(part) for split, part in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(examples)


def summaries(folder: str) -> dict[str, list[dict]]:
    """The examples of `debian_descriptions/summaries` by split; apt's lists are kept in `folder`."""
    lists = _fetch(folder)
    return _split(_with_origin(_summaries(_entries(lists, "en")), _origins(lists)))


def _fetch(folder: str) -> str:
    """The folder with apt's lists, fetched unless they are there."""
    lists = os.path.join(folder, "lists")
    if glob.glob(os.path.join(lists, "*Translation-en")):
        return lists
    if shutil.which("apt-get") is None:
        raise InputError(
            "debian_descriptions: needs apt-get, which this machine lacks; prepare the data set on a Debian or Ubuntu "
            "and give the path of its folder"
        )
    command = ["apt-get", "update", "-q", "-c", apt_config(folder, ("en", *_LANGUAGES))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    missing = [code for code in ("en", *_LANGUAGES) if not glob.glob(os.path.join(lists, f"*Translation-{code}"))]
    if missing:
        lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
        raise InputError(
            f"debian_descriptions: 'apt-get update' brought no Translation-{missing[0]}: {lines[-1]}; a mirror of the "
            "distribution is needed once"
        )
    return lists


def _stanzas(lists: str, pattern: str) -> Iterator[dict[str, list[str]]]:
    """The stanzas of the lists that match: the lines of each field by its name."""
    for path in sorted(glob.glob(os.path.join(lists, pattern))):
        stanza, name = {}, ""
        with open(path, encoding="utf-8") as file:
            for line in (line.rstrip("\n") for line in file):
                if line.startswith(" "):
                    stanza[name].append(line)
                elif line:
                    name, _, value = line.partition(": ")
                    stanza[name] = [value]
                elif stanza:
                    yield stanza
                    stanza = {}
        if stanza:
            yield stanza


def _origins(lists: str) -> dict[str, tuple[str, str]]:
    """(source package, section) of each package."""
    found = {}
    for stanza in _stanzas(lists, "*_Packages"):
        (package,) = stanza["Package"]
        source = stanza.get("Source", [package])[0].split(" ")[0]
        found[package] = (source, stanza.get("Section", ["unknown"])[0])
    return found


def _entries(lists: str, language: str) -> list[Entry]:
    """The descriptions in a language, each text once."""
    found = {}
    for stanza in _stanzas(lists, f"*_Translation-{language}"):
        summary, *lines = stanza.get(f"Description-{language}", [""])
        key = stanza["Description-md5"][0]
        found.setdefault(key, Entry(stanza["Package"][0], key, " ".join(summary.split()), _paragraphs(lines)))
    return list(found.values())


def _paragraphs(lines: list[str]) -> list[str]:
    """The paragraphs of a long description; items of lists and indented lines are paragraphs of their own."""
    paragraphs = [""]
    for line in lines:
        if line.strip() == ".":
            paragraphs.append("")
        else:
            apart = line.startswith(("  ", " * ", " - ", " + "))
            paragraphs[-1] += ("\n" if apart else " ") + " ".join(line.split())
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def _summaries(english: list[Entry]) -> list[dict]:
    """Long descriptions with their summaries, except for packages that only lead to another one."""
    return [
        {"package": entry.package, "description": "\n\n".join(entry.paragraphs), "summary": entry.summary}
        for entry in english
        if entry.summary and entry.paragraphs and not re.search("transitional|dummy", entry.summary, re.IGNORECASE)
    ]


def _pairs(english: list[Entry], other: list[Entry], language: str) -> list[dict]:
    """Summaries, and paragraphs where both languages have as many; each pair once, and none that is not translated."""
    by_key = {entry.key: entry for entry in english}
    found = {}
    for entry in other:
        original = by_key.get(entry.key)
        if original is None:
            continue
        pairs = [(original.summary, entry.summary)]
        if len(original.paragraphs) == len(entry.paragraphs):
            pairs += zip(original.paragraphs, entry.paragraphs, strict=True)
        for pair in pairs:
            if all(pair) and pair[0] != pair[1] and "<trans>" not in pair[1]:
                found.setdefault(pair, {"package": entry.package, "en": pair[0], language: pair[1]})
    return list(found.values())


def _with_origin(examples: list[dict], origins: dict[str, tuple[str, str]]) -> list[dict]:
    found = []
    for example in examples:
        source, section = origins.get(example["package"], (example["package"], "unknown"))
        found.append(example | {"source": source, "section": section})
    return found


def _topics(examples: list[dict]) -> list[dict]:
    """The topics among the sections; the archive's areas, as in contrib/games, do not count."""
    found = []
    for example in examples:
        label = example["section"].rpartition("/")[2]
        if label in TOPICS:
            text = f"{example['summary']}\n\n{example['description']}"
            kept = {name: example[name] for name in ("package", "source", "section")}
            found.append(kept | {"text": text, "label": label})
    return found


def _split(examples: list[dict], held_out: int = _HELD_OUT, largest: float = math.inf) -> dict[str, list[dict]]:
    """By source package, each example once; a held-out one has no text in common with the training split.

    What is of a source with more than `largest` examples is for training.
    """
    sizes = collections.Counter(example["source"] for example in examples)
    splits = {"train": {}, "validation": {}, "test": {}}
    for example in examples:
        source = example["source"]
        split = "train" if sizes[source] > largest else _split_of(source, held_out)
        splits[split].setdefault(_texts(example), example)
    seen = {text for texts in splits["train"] for text in texts}
    return {
        split: [example for texts, example in found.items() if split == "train" or not seen & texts]
        for split, found in splits.items()
    }


def _split_of(source: str, held_out: int = _HELD_OUT) -> str:
    digest = hashlib.sha256(re.sub(r"\d", "", source).encode()).digest()
    number = int.from_bytes(digest[:4], "big") % 100
    return "validation" if number < held_out else "test" if number < 2 * held_out else "train"


def _texts(example: dict) -> frozenset[str]:
    """The texts of an example without digits."""
    columns = example.keys() - {"package", "source", "section", "label"}
    return frozenset(re.sub(r"\d", "", example[column]) for column in columns)
