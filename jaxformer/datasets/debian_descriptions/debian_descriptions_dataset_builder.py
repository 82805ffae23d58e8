"""Debian descriptions data set: package descriptions with their summaries, topics or translations."""

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
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxformer.datasets.debian_packages import apt_config
from jaxformer.errors import InputError

_DESCRIPTION = """
Descriptions of software packages, from the package lists of the local distribution (Debian or a derivative). `apt-get
update` downloads them into a separate folder, which needs no special rights and does not change the system. Debian 12
gives 61,000 summaries, 33,000 German pairs and 50,000 French pairs.

`debian_descriptions/summaries` contains the long description of each package, with an empty line between paragraphs,
and its summary on one line. `debian_descriptions/topics` contains the summary and description as one text, labeled with
one of 16 sections that name the topic of a package rather than its programming language. `debian_descriptions/en-de`
and `en-fr` contain pairs of a summary or a paragraph in two languages, translated by volunteers (the Debian Description
Translation Project).

Two percent of the source packages are for validation and two percent for testing (ten percent each for `topics`),
chosen by name. Digits are ignored: gcc-12 is in the same split as gcc-11, texts that differ only in digits occur once,
and a text of the training split is in no other split. In `topics`, sources with more than 20 packages are in the
training split: their texts are similar, and the 161 languages of one program would be an eighth of the validation
split.

The texts are under the licences of their packages, all of which are free software.
"""

TOPICS = (
    *("database", "editors", "electronics", "fonts", "games", "graphics", "hamradio", "localization"),
    *("mail", "math", "net", "science", "sound", "video", "web", "x11"),
)
"""Class names of the data set `debian_descriptions/topics`: the package sections of Debian that name a topic."""
_LANGUAGES = {"de": "German", "fr": "French"}
_HELD_OUT = 2  # Number of source packages out of 100 in the validation split, and again in the test split.
_TOPICS_HELD_OUT = 10
_TOPICS_LARGEST = 20  # Maximum number of packages of a source that may be held out.


@dataclasses.dataclass
class DescriptionsConfig(tfds.core.BuilderConfig):
    """TFDS config of the Debian descriptions, which selects the kind of examples: summaries, topics or translations."""

    language: str | None = None
    """Code of the language that is paired with English, such as "de". If None, examples are English descriptions with
    summaries or topics.
    """
    topics: bool = False
    """Whether examples are English descriptions labeled with their topic. If False, they are descriptions with
    summaries, or translations if `language` is set.
    """


@dataclasses.dataclass
class Entry:
    """Description of a Debian package in one language."""

    package: str
    """Name of the package."""
    key: str
    """MD5 digest of the English description. The description and its translations have the same digest."""
    summary: str
    """One-line summary of the package."""
    paragraphs: list[str]
    """Paragraphs of the long description."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the Debian descriptions data set. The module's `_DESCRIPTION` describes content and splits."""

    builder_config: DescriptionsConfig
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
        features: dict[str, Any] = {name: tfds.features.Text() for name in ("package", "source", "section", *columns)}
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
    """Returns a dict that maps the splits `train`, `validation` and `test` to the examples of the data set
    `debian_descriptions/summaries`.

    The examples are made from the package lists in `folder`, to which apt downloads them if necessary.
    """
    lists = _fetch(folder)
    return _split(_with_origin(_summaries(_entries(lists, "en")), _origins(lists)))


def _fetch(folder: str) -> str:
    """Downloads package lists with descriptions to `folder` with apt, unless they are already there. Returns the path
    of the subfolder that contains the lists.
    """
    lists = os.path.join(folder, "lists")
    if glob.glob(os.path.join(lists, "*Translation-en")):
        return lists
    if shutil.which("apt-get") is None:
        raise InputError(
            "debian_descriptions: needs apt-get, which is not installed; prepare the data set on a Debian or Ubuntu "
            "system and give the path of its folder"
        )
    command = ["apt-get", "update", "-q", "-c", apt_config(folder, ("en", *_LANGUAGES))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    missing = [code for code in ("en", *_LANGUAGES) if not glob.glob(os.path.join(lists, f"*Translation-{code}"))]
    if missing:
        lines = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
        raise InputError(
            f"debian_descriptions: 'apt-get update' downloaded no Translation-{missing[0]}: {lines[-1]}; a mirror "
            "of the distribution must be reachable once"
        )
    return lists


def _stanzas(lists: str, pattern: str) -> Iterator[dict[str, list[str]]]:
    """Parses apt's package lists. Yields a dict for each package, which maps field names, such as `Package`, to the
    lines of their values.

    Args:
      lists: folder with the lists.
      pattern: glob pattern of the names of the files to parse.
    """
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
    """Returns a dict that maps each package name to (name of its source package, Debian section such as `games`), from
    the package lists in a folder.
    """
    found = {}
    for stanza in _stanzas(lists, "*_Packages"):
        (package,) = stanza["Package"]
        source = stanza.get("Source", [package])[0].split(" ")[0]
        found[package] = (source, stanza.get("Section", ["unknown"])[0])
    return found


def _entries(lists: str, language: str) -> list[Entry]:
    """Returns the package descriptions in a language, without duplicates, from the package lists in a folder."""
    found = {}
    for stanza in _stanzas(lists, f"*_Translation-{language}"):
        summary, *lines = stanza.get(f"Description-{language}", [""])
        key = stanza["Description-md5"][0]
        found.setdefault(key, Entry(stanza["Package"][0], key, " ".join(summary.split()), _paragraphs(lines)))
    return list(found.values())


def _paragraphs(lines: list[str]) -> list[str]:
    """Splits the lines of a long description into paragraphs. The lines of a paragraph are joined, except for list
    items and indented lines, which remain separate lines.
    """
    paragraphs = [""]
    for line in lines:
        if line.strip() == ".":
            paragraphs.append("")
        else:
            apart = line.startswith(("  ", " * ", " - ", " + "))
            paragraphs[-1] += ("\n" if apart else " ") + " ".join(line.split())
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def _summaries(english: list[Entry]) -> list[dict]:
    """Returns the examples of the data set `debian_descriptions/summaries`: long descriptions with their summaries.

    Leaves out transitional packages, which only refer to another package.
    """
    return [
        {"package": entry.package, "description": "\n\n".join(entry.paragraphs), "summary": entry.summary}
        for entry in english
        if entry.summary and entry.paragraphs and not re.search("transitional|dummy", entry.summary, re.IGNORECASE)
    ]


def _pairs(english: list[Entry], other: list[Entry], language: str) -> list[dict]:
    """Returns examples that pair an English text with its translation: the summaries of a package, and its paragraphs
    if both languages have the same number of paragraphs.

    Each pair occurs once. Untranslated texts are left out.

    Args:
      english: English descriptions.
      other: descriptions in the other language.
      language: code of the other language, which is the name of its column.
    """
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
    """Returns the examples whose Debian section is one of `TOPICS`, with the section as label, and the summary and
    description joined as text. The prefix of a section such as contrib/games is ignored.
    """
    found = []
    for example in examples:
        label = example["section"].rpartition("/")[2]
        if label in TOPICS:
            text = f"{example['summary']}\n\n{example['description']}"
            kept = {name: example[name] for name in ("package", "source", "section")}
            found.append(kept | {"text": text, "label": label})
    return found


def _split(examples: list[dict], held_out: int = _HELD_OUT, largest: float = math.inf) -> dict[str, list[dict]]:
    """Divides examples into the splits `train`, `validation` and `test`, and removes duplicates.

    All examples of a source package are in the same split, and no text of the training split is in another split.
    Digits are ignored in comparisons.

    Args:
      examples: examples of all packages.
      held_out: percentage of source packages in the validation split, and also in the test split.
      largest: maximum number of examples of a source package that may be held out. Larger source packages are in the
        training split.
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
    """Returns the texts of an example without digits, to find examples that differ only in digits."""
    columns = example.keys() - {"package", "source", "section", "label"}
    return frozenset(re.sub(r"\d", "", example[column]) for column in columns)
