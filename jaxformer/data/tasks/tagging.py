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
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, shown

OUTSIDE = "O"
"""Tag of a word that is not part of an entity."""
BEGINS, CONTINUES, ENDS = ("B-", "S-", "U-"), ("I-", "E-", "L-"), ("E-", "L-", "S-", "U-")
"""Prefixes of the tags that can mark the first word of an entity (BEGINS), a later word (CONTINUES), and the last word
(ENDS). BIO tags use B and I. BIOES tags add E for the last word and S for an entity of one word. BILOU tags add L for
the last word and U for an entity of one word.
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
    """Tag index of each word, stored at the word's first token, and 0 at other tokens, int32 [tokens]."""
    size: int
    """Number of characters in the text. The document cache uses it to estimate memory use."""


@dataclasses.dataclass(frozen=True)
class TagTokens(Task[Words]):
    """Task to predict the tag of each word, at the first token of the word.

    Each example of the dataset has a list of words and a list of their tags. A sentence that does not fit in a batch
    row is cut into windows. A cut is made before a word, and if possible not within an entity.

    A batch is a dict of arrays: `tokens`, `targets`, `segments` and `position_ids` int32 and `weights` float32 [batch,
    length]. Tokens include the special tokens of the tokenizer, such as [CLS] and [SEP]. Weights are 1 at the first
    token of each word, and 0 elsewhere. If the tags mark entities, a batch also has `partial` int32 [batch, length]: 1
    for sentences that were cut into several windows, 0 for others.
    """

    labels: tuple[str, ...] = ()
    """Tag names, in the order of their indices. Must equal the labels of the model."""
    length: int = 128
    """Number of tokens per batch row."""
    words: str = "words"
    """Name of the dataset column with the list of words."""
    tags: str = "tags"
    """Name of the dataset column with the list of tags, one per word. A tag is a name, or an index into `labels`."""

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

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        words, tags = self.read(example)
        tagged = (f"{word}/{self.labels[tag]}" for word, tag in zip(words, tags, strict=True))
        return Demonstration((" ".join(words),), " ".join(tagged))

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
        """Splits the tokens of a sentence into consecutive windows that fit in a batch row, and returns their slices.

        Each window becomes a training example.
        """
        inside = np.array([label.startswith(CONTINUES) for label in self.labels])
        room = self.length - tokenizer.template("encoder").num_special_tokens()
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
    """Returns whether tag names mark entities: at least one has an entity prefix such as B- or I- (BIO, BIOES or
    BILOU), and each of the others is `O`.
    """
    return bool(kinds(labels)) and all(label == OUTSIDE or label.startswith(BEGINS + CONTINUES) for label in labels)


def kinds(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the entity types that occur in tag names, such as PER in B-PER, without duplicates and in order of first
    occurrence.
    """
    return tuple(dict.fromkeys(label[2:] for label in labels if label.startswith(BEGINS + CONTINUES)))


def encode_words(words: Sequence[str], tokenizer: Tokenizer, tags: Sequence[int] | None = None) -> Words:
    """Joins words with spaces, encodes the text, and finds the word to which each token belongs.

    A word that the tokenizer drops has no token. A token that spans the space between two words counts as the first
    token of the second word.

    Args:
      words: words of the text.
      tokenizer: tokenizer.
      tags: tag index of each word. If None, `Words.tags` is 0 at all tokens.
    """
    text = " ".join(words)
    tokens, offsets = tokenizer.encode_with_offsets(text)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    owners = np.searchsorted(starts, offsets[:, 0], side="right") - 1
    first = np.diff(owners, prepend=-1) > 0
    numbers = np.zeros(len(tokens), np.int32) if tags is None else np.array(tags, np.int32)[owners]
    return Words(tokens, owners, first, np.where(first, numbers, 0).astype(np.int32), len(text))


def windows(first: np.ndarray, room: int, cuttable: np.ndarray | None = None) -> list[slice]:
    """Splits a sequence of tokens into consecutive windows of up to `room` tokens, and returns their slices.

    A window begins at a token for which `cuttable` is True if possible, otherwise at the first token of a word if
    possible.

    Args:
      first: whether each token is the first token of a word, bool [tokens].
      room: maximum number of tokens in a window.
      cuttable: whether each token is a preferred start of a window, bool [tokens]. If None, all first tokens of words
        are equally good.
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
