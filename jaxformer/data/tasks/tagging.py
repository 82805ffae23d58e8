"""Word tagging task: part-of-speech tags or named entities (Devlin et al. 2019, §5.3)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.label import label_index
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, shown

OUTSIDE = "O"
"""Tag of a word that is not part of an entity."""
BEGINS, CONTINUES, ENDS = ("B-", "S-", "U-"), ("I-", "E-", "L-"), ("E-", "L-", "S-", "U-")
"""Prefixes of the tags that may mark the first word of an entity, its further words, and its last word. BIO tags use B
and I. BIOES tags add E for the last word and S for a single word. BILOU tags add L for the last word and U for a single
word.
"""


@dataclasses.dataclass(frozen=True)
class Words:
    """The encoded words of a text, without special tokens, and their tags."""

    tokens: np.ndarray
    """Tokens of all words in order, int32 [tokens]."""
    owners: np.ndarray
    """Index of the word that each token belongs to, int [tokens]."""
    first: np.ndarray
    """Whether each token is the first token of its word, bool [tokens]."""
    tags: np.ndarray
    """Index of the word's tag at the first token of each word, and 0 at other tokens, int32 [tokens]."""
    size: int
    """Number of characters in the words, which is their size in the cache."""


@dataclasses.dataclass(frozen=True)
class TagTokens(Task[Words]):
    """Task to predict the tag of each word, at the first token of the word.

    Each example of the source has a list of words and a list of their tags. Long sentences are cut into windows before
    a word, outside of entities if possible.

    Rows: `tokens`, `targets` int32 and `weights` float32 [batch, length], and the `segments` and `position_ids` that
    the data pipeline adds. Each example has the special tokens of the tokenizer, such as [CLS] and [SEP]. Weights are 1
    at the first token of each word. If the tags mark entities, rows also have `partial` int32 [batch, length], which is
    1 in the windows of sentences with several windows.
    """

    labels: tuple[str, ...] = ()
    """Tag names in index order. Must equal the labels of the model."""
    length: int = 128
    """Number of tokens per row."""
    words: str = "words"
    """Name of the column with the list of words."""
    tags: str = "tags"
    """Name of the column with the list of tags, one per word. Tags are names, or indices into `labels`."""

    def __post_init__(self):
        fields.at_least("data.task.length", self.length, 3)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise FieldError(
                "data.task.labels", f"={shown(self.labels)}: expected the name of each tag, without duplicates"
            )

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        row = layouts.text_row(self.length)
        return row | {"partial": Feature(self.length)} if has_entities(self.labels) else row

    @property
    def requirement(self) -> str:
        return f"sentence with words in {self.words!r}"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        layouts.check_template(tokenizer, "encoder", self.length)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.first_words(" ".join(columns.strings(example, self.words, "data.task.words"))),)

    def read(self, example: Mapping[str, Any]) -> tuple[list[str], list[int]]:
        words = columns.strings(example, self.words, "data.task.words")
        tags = columns.items(example, self.tags, "data.task.tags")
        if len(words) != len(tags):
            problem = f"{len(words)} words in {self.words!r} and {len(tags)} tags: {' '.join(words)[:60]!r}"
            raise FieldError("data.task.tags", f"={self.tags!r}: {problem}; expected one tag for each word")
        return words, [label_index(tag, self.labels) for tag in tags]

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Words:
        words, tags = self.read(example)
        return encode_words(words, tokenizer, tags)

    def examples(self, document: Words, visit: Visit[Words]) -> list[Example]:
        parts = self.windows(document, visit.tokenizer)
        return [self._example(document, part, visit.tokenizer, len(parts) > 1) for part in parts]

    def windows(self, document: Words, tokenizer: Tokenizer) -> list[slice]:
        """Splits a sentence into windows that fit in a batch row, as slices that together cover all its tokens.

        Each window becomes a training example.
        """
        inside = np.array([label.startswith(CONTINUES) for label in self.labels])
        room = self.length - tokenizer.template("encoder").added()
        return windows(document.first, room, document.first & ~inside[document.tags])

    def _example(self, words: Words, part: slice, tokenizer: Tokenizer, partial: bool) -> Example:
        laid = tokenizer.template("encoder").lay_out(words.tokens[part])
        [before], size = laid.starts, part.stop - part.start
        around = before, len(laid.tokens) - before - size
        example = {
            "tokens": laid.tokens,
            "targets": np.pad(words.tags[part], around),
            "weights": np.pad(words.first[part], around).astype(np.float32),
        }
        return example | ({"partial": np.full(len(laid.tokens), partial, np.int32)} if "partial" in self.row else {})


def has_entities(labels: Sequence[str]) -> bool:
    """Returns whether the tags mark entities: they include `O`, and tags with prefixes such as B-x and I-x (BIO, BIOES
    or BILOU).
    """
    return bool(kinds(labels)) and all(label == OUTSIDE or label.startswith(BEGINS + CONTINUES) for label in labels)


def kinds(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the entity types that occur in tag names, such as PER in B-PER, in the order of the tags."""
    return tuple(dict.fromkeys(label[2:] for label in labels if label.startswith(BEGINS + CONTINUES)))


def encode_words(words: Sequence[str], tokenizer: Tokenizer, tags: Sequence[int] | None = None) -> Words:
    """Encodes words as a text with spaces between them.

    A word that the tokenizer drops has no token. A token that spans two words is the first token of the second word.

    Args:
      words: words of the text.
      tokenizer: tokenizer.
      tags: tag index of each word. If None, words do not have tags.
    """
    text = " ".join(words)
    tokens, offsets = tokenizer.encode_with_offsets(text)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    owners = np.searchsorted(starts, offsets[:, 0], side="right") - 1
    first = np.diff(owners, prepend=-1) > 0
    numbers = np.zeros(len(tokens), np.int32) if tags is None else np.array(tags, np.int32)[owners]
    return Words(tokens, owners, first, np.where(first, numbers, 0).astype(np.int32), len(text))


def windows(first: np.ndarray, room: int, cuttable: np.ndarray | None = None) -> list[slice]:
    """Splits a sequence of tokens into windows of up to `room` tokens that together cover all tokens.

    Args:
      first: whether each token is the first token of a word, bool [tokens]. A window begins at a word if possible.
      room: maximum number of tokens in a window.
      cuttable: whether a window may begin at each token, bool [tokens]. Other cuts are made only if necessary.
    """
    stretches, start = [], 0
    while start < len(first):
        stop = min(start + room, len(first))
        if stop < len(first):
            for allowed in (cuttable, first):
                if allowed is None:
                    continue
                found = np.flatnonzero(allowed[start + 1 : stop + 1])
                if len(found):
                    stop = start + 1 + int(found[-1])
                    break
        stretches.append(slice(start, stop))
        start = stop
    return stretches
