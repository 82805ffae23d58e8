"""BERT pretraining task: masked tokens and next-sentence prediction (Devlin et al. 2019, §3.1)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration, Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import masking
from jaxformer.data.transforms.next_sentence import SentencePair, full_sentences, sentence_pairs
from jaxformer.errors import FieldError


class Sentences(Sequence):
    """Sequence of the encoded sentences of a document, int32 [tokens] each. A sentence is encoded when it is first
    used.
    """

    def __init__(self, texts: list[str], tokenizer: Tokenizer):
        self.texts, self.tokenizer = texts, tokenizer
        self.size = sum(map(len, texts))
        self._tokens: list[np.ndarray | None] = [None] * len(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> np.ndarray:
        tokens = self._tokens[index]
        if tokens is None:
            tokens = self._tokens[index] = self.tokenizer.encode(self.texts[index])
        return tokens

    @functools.cached_property
    def tokens(self) -> list[np.ndarray]:
        """Tokens of all sentences, int32 [tokens] each, except for sentences without any token."""
        missing = [i for i, tokens in enumerate(self._tokens) if tokens is None]
        encoded = self.tokenizer.encode_batch([self.texts[i] for i in missing])
        for index, tokens in zip(missing, encoded, strict=True):
            self._tokens[index] = tokens
        return [tokens for tokens in self._tokens if tokens is not None and len(tokens)]


@dataclasses.dataclass(frozen=True)
class MaskedSentencePairs(Task[Sentences]):
    """Masked language modeling and next-sentence prediction (Devlin et al. 2019, §3.1).

    Batch rows: `tokens`, `segments`, `position_ids`, `token_types` int32 [batch, length]; `masked_positions`, `targets`
    int32 and `weights` float32 [batch, predictions]. With next-sentence prediction also `cls_positions`,
    `next_sentence` (0: the second sentence follows the first, 1: it is from another document) int32 and
    `next_sentence_weights` float32 [batch, examples_per_row]. Unused entries of a row are 0, including weights and
    segments.
    """

    length: int = 128
    """Number of tokens per batch row."""
    predictions: int = 20
    """Maximum number of masked tokens per batch row, and so per example."""
    mask_rate: float = 0.15
    """Share of the tokens that are masked and predicted."""
    whole_word: bool = False
    """Whether to mask whole words: either all tokens of a word or none of them."""
    next_sentence: bool = True
    """Whether to make sentence pairs for next-sentence prediction. If False, each example is one chunk of text, as in
    RoBERTa (Liu et al. 2019).
    """
    short_rate: float = 0.1
    """Share of the examples whose maximum length is drawn at random, below the length of a row."""
    examples_per_row: int = 1
    """Number of examples per batch row. A number above 1 requires packing (`data.pack`)."""
    column: str | None = None
    """Name of the column with the text or the list of sentences. If None, the column `sentences` or `text` is used."""

    def __post_init__(self):
        least = self._specials + (2 if self.next_sentence else 1)
        if self.length < least:
            problem = f"too short for {self._specials} special tokens and text; expected at least {least}"
            raise FieldError("data.task.length", f"={self.length}: {problem}")
        if not 1 <= self.predictions <= self.length:
            raise FieldError(
                "data.task.predictions", f"={self.predictions}: expected 1 to data.task.length={self.length}"
            )
        if not 0 < self.mask_rate < 1:
            raise FieldError("data.task.mask_rate", f"={self.mask_rate}: expected above 0, below 1")
        fields.within("data.task.short_rate", self.short_rate, 0, 1)
        fields.at_least("data.task.examples_per_row", self.examples_per_row, 1)

    @property
    def _specials(self) -> int:
        return 3 if self.next_sentence else 2

    @property
    def min_documents(self) -> int:
        return 2 if self.next_sentence else 1

    @property
    def requirement(self) -> str:
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
        tokenizer.require("mask", "cls", "sep")
        if not pack or self.next_sentence:
            layouts.check_packing(self.examples_per_row, pack)

    def read(self, example: Mapping[str, Any]) -> list[str]:
        return columns.sentences(example, self.column)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return tuple(map(columns.with_blank, self.read(example)[:1]))

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        sentences = self.read(example)
        reference = columns.first_words(sentences[0], 10) if sentences else None
        return Demonstration(self.requests(example, folder), reference)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Sentences:
        return Sentences(self.read(example), tokenizer)

    def examples(self, document: Sentences, visit: Visit[Sentences]) -> list[Example]:
        pairs = self._pairs(document, visit)
        if not pairs:
            return []
        tokens, token_types, lengths = self._lay_out(pairs, visit.tokenizer)
        maskable = ~visit.tokenizer.is_special[tokens]
        maskable &= np.arange(tokens.shape[1]) < lengths[:, None]
        usable = set(np.flatnonzero(maskable.any(axis=1)).tolist())
        words = masking.words(tokens, maskable, visit.tokenizer.word_start) if self.whole_word else None
        options = masking.Masking(
            rate=self.mask_rate,
            limit=self.predictions,
            mask_id=visit.tokenizer.mask_id,
            random_ids=visit.tokenizer.ordinary_ids,
        )
        masked = masking.mask(tokens, maskable, options, visit.rng, words)
        return [
            self._example(number, pair.label, token_types, lengths, masked)
            for number, pair in enumerate(pairs)
            if number in usable
        ]

    def _pairs(self, document: Sentences, visit: Visit[Sentences]) -> list[SentencePair]:
        room = self.length - self._specials
        if not self.next_sentence:
            texts = full_sentences(document.tokens, room, self.short_rate, visit.rng)
            return [SentencePair(text, None, 0) for text in texts]
        if len(document) < 2:
            return []
        return sentence_pairs(document.tokens, room, self.short_rate, visit.rng, visit.draw)

    def _lay_out(self, pairs: list[SentencePair], tokenizer: Tokenizer):
        """Adds special tokens to sentence pairs: [CLS] a [SEP] b [SEP], or [CLS] a [SEP] if a pair has no second part.

        Returns tokens and token types int32 [examples, length] with one pair per row, and the number of tokens of each
        pair, int64 [examples].
        """
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
