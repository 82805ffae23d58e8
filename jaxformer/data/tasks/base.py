"""Step 3 of the way of the data: an encoded document becomes training examples.

A task is a frozen dataclass with four methods, all pure: `read` checks the columns of a source's
example and returns their values, `encode` (step 2) turns an example into what the lanes keep in
their cache, `examples` turns that and a random generator into examples, and `row` says how a lane
lays examples into rows.
"""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.sources.files import first_words, sentences
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import masking
from jaxformer.data.transforms import next_sentence as pairing
from jaxformer.errors import InputError

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feature:
    """How one array of an example lies in a row: after those of the examples before it."""

    capacity: int
    """Entries a row has."""
    dtype: str = "int32"
    """NumPy's name of the type."""
    offset: bool = False
    """Are the values indices of tokens, to be shifted to where the example begins?"""
    shape: tuple[int, ...] = ()
    """Shape of an entry: an image's entries are its rows, so that one image fills a row of the batch."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What is to be written after reading something."""

    inputs: str
    """The text to read, with the task's prefix."""
    reference: str
    """The text to write, as the source has it."""
    tokens: np.ndarray
    """int32 [n]: the inputs as a row has them."""
    cut_inputs: bool
    """Whether the inputs have more tokens than a row."""
    cut_references: bool
    """Whether the reference has more tokens than a row."""


class Sentences(Sequence):
    """The sentences of a document, int32 [n] each, encoded when first asked for."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer):
        self.texts, self.tokenizer = texts, tokenizer
        self.size = sum(map(len, texts))
        self._tokens: list[np.ndarray | None] = [None] * len(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._tokens[index] is None:
            self._tokens[index] = self.tokenizer.encode(self.texts[index])
        return self._tokens[index]

    @functools.cached_property
    def tokens(self) -> list[np.ndarray]:
        """All sentences that have a token."""
        missing = [i for i, tokens in enumerate(self._tokens) if tokens is None]
        encoded = self.tokenizer.encode_batch([self.texts[i] for i in missing])
        for index, tokens in zip(missing, encoded, strict=True):
            self._tokens[index] = tokens
        return [tokens for tokens in self._tokens if len(tokens)]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What is learned from a document. Use one of its subclasses."""

    @property
    @abc.abstractmethod
    def row(self) -> dict[str, Feature]:
        """The arrays of an example by name. Beside `tokens`, and `inputs` if there are any, the lanes lay segments
        and positions."""

    @property
    def reads_text(self) -> bool:
        """Whether it needs a tokenizer."""
        return True

    @property
    def counted(self) -> tuple[str, int]:
        """What a person counts, such as tokens, and how many of them a row has room for."""
        return "tokens", self.row["tokens"].capacity

    @property
    def least_documents(self) -> int:
        """Documents that a source must have."""
        return 1

    @property
    def need(self) -> str:
        """What a document must be to give an example; for a message."""
        return "document with text"

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:  # noqa: B027 (most have nothing to check)
        """Raises InputError where tokenizer or packing do not go with the task."""

    def check_source(self, documents: Sequence[dict[str, Any]], name: str) -> None:  # noqa: B027 (as above)
        """Raises InputError where nothing can be learned from the training source `name`, whatever its examples."""

    @property
    def evaluated(self) -> "Task":
        """The task on held-out data; itself, but for what changes examples at random in training alone."""
        return self

    def asked(self, words: Sequence[str]) -> Sequence[Any]:
        """What `predict` is asked about, as the objective takes it; texts are taken as they are."""
        return words

    def read(self, example: Mapping[str, Any]) -> Any:
        """The values of the columns that the task reads, checked; `encode` begins with it.

        Raises:
            InputError: a column is missing or holds a value of a wrong type.
        """
        return example

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """What `predict` can be asked about an example of a source, as words of a command line; empty if nothing.

        Args:
            example: columns by name.
            folder: where to write what must be a file.

        Raises:
            InputError: the example is not one of this task.
        """
        return ()

    @property
    def writes(self) -> bool:
        """Whether documents have a text that a model is to write, and that `written` gives."""
        return False

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        """What is to be written for an example of a source; None where it has no such text."""
        return None

    @abc.abstractmethod
    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Any:
        """The document in the form that `examples` takes; has a `size` in characters."""

    @abc.abstractmethod
    def examples(
        self,
        document: Any,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Any],
    ) -> list[Example]:
        """The examples of one visit to a document, none or more.

        Args:
            document: what `encode` gave.
            tokenizer: the tokenizer that encoded it.
            rng: the visit's own.
            draw: gives another encoded document at random; deterministic given its generator.
        """


def with_blank(text: str, blank: str = "[MASK]") -> str:
    """The first words of a text with a blank in the place of one of them."""
    words = first_words(text, 10).split(" ")
    middle = len(words) // 2
    words[middle] = re.sub(r"\w+(\W\w+)*", blank, words[middle], count=1) if words[middle].strip(".,;:!?") else blank
    return " ".join(words)


@dataclasses.dataclass(frozen=True)
class MaskedSentencePairs(Task):
    """Masked tokens and next sentences (Devlin et al. 2019, section 3.1).

    Rows: `tokens`, `segments`, `position_ids`, `token_types` int32 [b, length]; `masked_positions`,
    `targets` int32 and `weights` float32 [b, predictions]; with next sentences `cls_positions`,
    `next_sentence` (0: the true next, 1: from another document) int32 and `next_sentence_weights`
    float32 [b, examples_per_row]. What a row leaves free is 0, in weights and segments too.
    """

    length: int = 128
    """Tokens a row."""
    predictions: int = 20
    """Masked tokens a row, at most."""
    mask_rate: float = 0.15
    """Share of the tokens to predict."""
    whole_word: bool = False
    """Mask all pieces of a word or none of them."""
    next_sentence: bool = True
    """Pairs for next-sentence prediction; otherwise single stretches of text (Liu et al. 2019)."""
    short_rate: float = 0.1
    """Share of the examples that aim at a random shorter length."""
    examples_per_row: int = 1
    """Examples a row has room for; more than one only with packing."""
    column: str | None = None
    """Column of the source with the text or the list of sentences; None: `sentences` or `text`."""

    def __post_init__(self):
        specials = self._specials
        if self.length < specials + (2 if self.next_sentence else 1):
            raise InputError(
                f"task.length {self.length}: too short for {specials} special tokens and text; "
                f"at least {specials + (2 if self.next_sentence else 1)}"
            )
        if not 1 <= self.predictions <= self.length:
            raise InputError(f"task.predictions {self.predictions}: must be from 1 to task.length {self.length}")
        if not 0 < self.mask_rate < 1:
            raise InputError(f"task.mask_rate {self.mask_rate}: must lie between 0 and 1")
        if not 0 <= self.short_rate <= 1:
            raise InputError(f"task.short_rate {self.short_rate}: must be from 0 to 1")
        if self.examples_per_row < 1:
            raise InputError(f"task.examples_per_row {self.examples_per_row}: must be 1 or more")

    @property
    def _specials(self) -> int:
        return 3 if self.next_sentence else 2

    @property
    def least_documents(self) -> int:
        return 2 if self.next_sentence else 1

    @property
    def need(self) -> str:
        return "document of two sentences or more" if self.next_sentence else "document with text"

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        tokens, masked = Feature(self.length), Feature(self.predictions)
        examples = Feature(self.examples_per_row)
        row = {
            "tokens": tokens,
            "token_types": tokens,
            "masked_positions": dataclasses.replace(masked, offset=True),
            "targets": masked,
            "weights": dataclasses.replace(masked, dtype="float32"),
        }
        if self.next_sentence:
            row["cls_positions"] = dataclasses.replace(examples, offset=True)
            row["next_sentence"] = examples
            row["next_sentence_weights"] = dataclasses.replace(examples, dtype="float32")
        return row

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id  # each raises if there is none
        if self.examples_per_row > 1 and not pack:
            raise InputError(
                f"task.examples_per_row {self.examples_per_row}: without data.pack a row holds one "
                "example; set data.pack or task.examples_per_row 1"
            )
        if pack and self.next_sentence and self.examples_per_row == 1:
            raise InputError("data.pack: task.examples_per_row 1 leaves nothing to pack; set it to 4, for example")

    def read(self, example: Mapping[str, Any]) -> list[str]:
        return sentences(example, self.column)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return tuple(map(with_blank, sentences(example, self.column)[:1]))

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Sentences:
        return Sentences(self.read(example), tokenizer)

    def examples(
        self,
        document: Sentences,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Sentences],
    ) -> list[Example]:
        room = self.length - self._specials
        if self.next_sentence and len(document) < 2:
            return []
        if self.next_sentence:
            pairs = pairing.sentence_pairs(document.tokens, room, self.short_rate, rng, draw)
        else:
            whole = pairing.stretches(document.tokens, room, self.short_rate, rng)
            pairs = [pairing.Pair(stretch, None, 0) for stretch in whole]
        if not pairs:
            return []
        tokens, token_types, lengths = self._lay_out(pairs, tokenizer)
        maskable = ~tokenizer.is_special[tokens]
        maskable &= np.arange(tokens.shape[1]) < lengths[:, None]
        usable = maskable.any(axis=1)
        words = masking.words(tokens, maskable, tokenizer.word_start) if self.whole_word else None
        masked = masking.mask(
            tokens,
            maskable,
            rng,
            rate=self.mask_rate,
            limit=self.predictions,
            mask_id=tokenizer.mask_id,
            random_ids=tokenizer.ordinary_ids,
            words=words,
        )
        return [
            self._example(number, pair.label, token_types, lengths, masked)
            for number, pair in enumerate(pairs)
            if usable[number]
        ]

    def _lay_out(self, pairs: list[pairing.Pair], tokenizer: Tokenizer):
        """[CLS] a [SEP] b [SEP], one pair a row: tokens and types [e, length], lengths [e]."""
        tokens = np.zeros((len(pairs), self.length), np.int32)
        token_types = np.zeros((len(pairs), self.length), np.int32)
        lengths = np.zeros(len(pairs), np.int64)
        tokens[:, 0] = tokenizer.cls_id
        sep = tokenizer.sep_id
        for number, (first, second, _) in enumerate(pairs):
            row = tokens[number]
            stop = 1 + len(first)
            row[1:stop] = first
            row[stop] = sep
            stop += 1
            if second is not None:
                start, stop = stop, stop + len(second) + 1
                row[start : stop - 1] = second
                row[stop - 1] = sep
                token_types[number, start:stop] = 1
            lengths[number] = stop
        return tokens, token_types, lengths

    def _example(self, number, label, token_types, lengths, masked: masking.Masked) -> Example:
        stop = lengths[number]
        some = slice(masked.starts[number], masked.starts[number + 1])
        example = {
            "tokens": masked.tokens[number, :stop],
            "token_types": token_types[number, :stop],
            "masked_positions": masked.positions[some],
            "targets": masked.targets[some],
            "weights": _ONES[: some.stop - some.start],
        }
        if self.next_sentence:
            example |= _NEXT_SENTENCE[label]
        return example


_ONES = np.ones(65_536, np.float32)
_NEXT_SENTENCE = [
    {
        "cls_positions": np.zeros(1, np.int32),
        "next_sentence": np.full(1, label, np.int32),
        "next_sentence_weights": np.ones(1, np.float32),
    }
    for label in (0, 1)
]
