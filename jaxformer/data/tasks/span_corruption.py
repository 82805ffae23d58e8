"""Span-corruption tasks of T5 (Raffel et al. 2020) and UL2 (Tay et al. 2022): hide spans of a text and predict them."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.sources import columns
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Demonstration
from jaxformer.data.tasks.layouts import Document
from jaxformer.data.tasks.text import TextTask
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import span_corruption
from jaxformer.errors import FieldError, InputError


def _check_noise(path: str, rate: float, mean_span: float | None) -> None:
    if not 0 < rate < 1:
        raise FieldError(f"{path}.rate", f"={rate}: expected above 0, below 1")
    fields.at_least(f"{path}.mean_span", mean_span, 1)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Settings for hiding tokens of a text: the share of hidden tokens and the length of hidden spans."""

    rate: float = 0.15
    """Average share of the tokens to hide."""
    mean_span: float | None = 3.0
    """Average length of a hidden span in tokens. If None, hides everything after a random point, as in a prefix LM."""
    weight: float = 1.0
    """Relative frequency of this denoiser in a mixture: the share of its training examples is its weight divided by the
    sum of all weights.
    """
    mode: str = ""
    """Mode token that names the kind of denoiser, such as [R]. If `UL2.modes` is True, each model input begins with it.
    """

    def __post_init__(self):
        _check_noise("data.task.denoisers", self.rate, self.mean_span)
        if not 0 <= self.weight < float("inf"):
            raise FieldError("data.task.denoisers.weight", f"={self.weight}: expected at least 0, and finite")


class Denoising(TextTask):
    """Base class of the tasks `SpanCorruption` and `UL2`, which hide spans of a text and predict them. A batch has the
    same arrays as that of `TextToText`.

    A document is cut into chunks of such a length that the inputs and targets of each chunk fit in a batch row without
    truncation. If a single token remains at the end of a document, it is not used.
    """

    input_length: int | None
    length: int | None
    modes: bool = False

    @property
    @abc.abstractmethod
    def recipes(self) -> tuple[Denoiser, ...]:
        """Denoisers of this task. For each training example, one of them is drawn at random."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.target_length)

    @functools.cached_property
    def target_length(self) -> int:
        """Number of target tokens per batch row: `length`, or if it is None, the maximum number of target tokens of an
        example whose inputs fit in `input_length` tokens.
        """
        if self.length is not None:
            return self.length
        stretches = [(denoiser, self.stretch_length(denoiser)) for denoiser in self._used]
        return 1 + max(
            span_corruption.sizes(length, denoiser.rate, denoiser.mean_span).targets for denoiser, length in stretches
        )

    @property
    def requirement(self) -> str:
        return "document of two tokens or more"

    def stretch_length(self, denoiser: Denoiser, taken: int = 0) -> int:
        """Returns the maximum number of tokens of a document from which one example is made, so that its inputs and
        targets fit in a batch row.

        Args:
          denoiser: denoiser that will hide some of these tokens.
          taken: number of tokens that will be added before the inputs, such as the denoiser's mode.
        """
        if self.input_length is None:
            length = None if self.length is None else self.length - taken
            return span_corruption.stretch_length(denoiser.rate, denoiser.mean_span, None, length)
        # If half of the tokens are hidden, the targets could need one more token than the inputs.
        length = self.input_length if self.length is None and denoiser.rate <= 0.5 else self.length
        return span_corruption.stretch_length(denoiser.rate, denoiser.mean_span, self.input_length - taken, length)

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        tokenizer.require("eos", "pad")
        have, need = len(tokenizer.sentinel_ids), {}
        for denoiser, mode in zip(self._used, self._modes(tokenizer), strict=True):
            length = self._check_room(denoiser, len(mode))
            need[denoiser] = span_corruption.sizes(length, denoiser.rate, denoiser.mean_span).sentinels
        denoiser = max(need, key=need.__getitem__)
        if need[denoiser] > have:
            raise InputError(
                f"data.task={type(self).__name__}: a row has up to {need[denoiser]} spans, but the tokenizer has "
                f"{have} sentinels; expected tokenizer.sentinels={need[denoiser]} or more, or shorter rows (rate "
                f"{denoiser.rate} in spans of {denoiser.mean_span} of {self.stretch_length(denoiser)} tokens)"
            )

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (columns.with_blank(self.read(example), "<extra_id_0>"),)

    def demonstration(self, example: Mapping[str, Any], folder: Path) -> Demonstration:
        return Demonstration(self.requests(example, folder), columns.first_words(self.read(example), 10))

    def examples(self, document: Document, visit: Visit[Document]) -> list[Example]:
        found, start, modes = [], 0, self._modes(visit.tokenizer)
        while len(document.tokens) - start >= 2:
            number = int(np.searchsorted(self._thresholds, visit.rng.random(), side="right"))
            denoiser, mode = self._used[number], modes[number]
            stop = start + self.stretch_length(denoiser, len(mode))
            found.append(self._example(document.tokens[start:stop], denoiser, mode, visit))
            start = stop
        return found

    def _example(self, stretch: np.ndarray, denoiser: Denoiser, mode: np.ndarray, visit: Visit[Document]) -> Example:
        mask = span_corruption.noise_mask(len(stretch), denoiser.rate, denoiser.mean_span, visit.rng)
        if denoiser.mean_span is None:
            inputs, targets = stretch[~mask], stretch[mask]
        else:
            inputs, targets = span_corruption.corrupt(stretch, mask, visit.tokenizer.sentinel_ids)
        inputs = layouts.ended(np.concatenate([mode, inputs]), visit.tokenizer)
        encoder = self.input_length is not None
        return layouts.pair_example(inputs, layouts.ended(targets, visit.tokenizer), visit.tokenizer, encoder)

    def _modes(self, tokenizer: Tokenizer) -> list[np.ndarray]:
        """Returns the tokens that are added before the inputs, for each denoiser with a weight above 0: its encoded
        `mode` if `self.modes` is True, otherwise an empty array.
        """
        return [tokenizer.encode(denoiser.mode if self.modes else "") for denoiser in self._used]

    @functools.cached_property
    def _used(self) -> list[Denoiser]:
        return [denoiser for denoiser in self.recipes if denoiser.weight > 0]

    @functools.cached_property
    def _thresholds(self) -> np.ndarray:
        """Cumulative shares of the denoisers, without the final 1. The position of a random number from 0 to 1 among
        them is the index of the denoiser to use.
        """
        weights = [denoiser.weight for denoiser in self._used]
        return (np.cumsum(weights) / np.sum(weights))[:-1]

    def _check_fields(self) -> None:
        if self.input_length is None and self.length is None:
            raise FieldError("data.task.length", "=None: expected a number, or one for data.task.input_length")
        for denoiser in self._used:
            self._check_room(denoiser, 0)

    def _check_room(self, denoiser: Denoiser, taken: int) -> int:
        length = self.stretch_length(denoiser, taken)
        if length < 2:
            name = "length" if self.input_length is None else "input_length"
            size = f"={getattr(self, name)}"
            if self.input_length is not None and self.length is not None:
                size += f" with length={self.length}"
            mode = f"{taken} of the mode, " if taken else ""
            problem = f"too short for two tokens, {mode}a sentinel and the end token; expected more"
            raise FieldError(f"data.task.{name}", f"{size}: {problem}")
        return length


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Denoising):
    """Span corruption: spans of a text are replaced by sentinels and predicted (Raffel et al. 2020, §3.1.4).

    A batch has the same arrays as that of `TextToText`. The tokenizer needs one sentinel token per span of an example,
    for example those of `SentencePiece(sentinels=100)`.
    """

    input_length: int | None = 512
    """Number of encoder input tokens per batch row, for an encoder-decoder. If None, for a decoder-only model, inputs
    and targets share rows of `length` tokens.
    """
    length: int | None = None
    """Number of target tokens per batch row. If None, the maximum number of target tokens that an example can have: 114
    for `input_length=512` with the default rate and spans.
    """
    rate: float = 0.15
    """Share of the tokens to hide, from 0 to 1."""
    mean_span: float = 3.0
    """Average length of a hidden span in tokens."""
    column: str | None = None
    """Name of the dataset column that contains a text or a list of sentences. If None, `sentences` if that column
    exists, otherwise `text`.
    """

    def __post_init__(self):
        _check_noise("data.task", self.rate, self.mean_span)
        self._check_fields()

    @functools.cached_property
    def recipes(self) -> tuple[Denoiser, ...]:
        return (Denoiser(self.rate, self.mean_span),)


MIXTURE = (
    Denoiser(0.15, 3.0, mode="[R]"),
    Denoiser(0.15, 8.0, mode="[R]"),
    Denoiser(0.25, None, mode="[S]"),
    Denoiser(0.5, 3.0, mode="[X]"),
    Denoiser(0.5, 8.0, mode="[X]"),
    Denoiser(0.15, 64.0, mode="[X]"),
    Denoiser(0.5, 64.0, mode="[X]"),
)
"""The seven denoisers of UL2 (Tay et al. 2022, table 1): regular [R], sequential [S] and extreme [X] denoisers."""


@dataclasses.dataclass(frozen=True)
class UL2(Denoising):
    """UL2 pretraining with a mixture of denoisers (Tay et al. 2022, §3.1). For each training example, one of them is
    drawn at random.

    A batch has the same arrays as that of `TextToText`. The tokenizer needs one sentinel token per span of an example.
    With the default denoisers and 512 input tokens that is up to 128: `SentencePiece(sentinels=128)`.
    """

    input_length: int | None = 512
    """Number of encoder input tokens per batch row, for an encoder-decoder. If None, for a decoder-only model, inputs
    and targets share rows of `length` tokens.
    """
    length: int | None = None
    """Number of target tokens per batch row. If None, the maximum number of target tokens that an example can have."""
    denoisers: tuple[Denoiser, ...] = MIXTURE
    """Denoisers of the mixture. One is drawn at random for each example, with a probability proportional to its
    `weight`.
    """
    modes: bool = False
    """Whether inputs begin with the mode token of the denoiser, such as [R], so that a downstream task can choose a
    mode by beginning its inputs with it.
    """
    column: str | None = None
    """Name of the dataset column that contains a text or a list of sentences. If None, `sentences` if that column
    exists, otherwise `text`.
    """

    def __post_init__(self):
        if not any(denoiser.weight for denoiser in self.denoisers):
            weights = tuple(denoiser.weight for denoiser in self.denoisers)
            raise FieldError("data.task.denoisers", f": weights {weights}; expected at least one above 0")
        self._check_fields()

    @property
    def recipes(self) -> tuple[Denoiser, ...]:
        return self.denoisers
