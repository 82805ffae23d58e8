"""Tasks of the T5 family: hidden spans of a text are to be written (Raffel et al. 2020), by one recipe or several."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.sources import files
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.base import Example, Feature, Task, with_blank
from jaxformer.data.tasks.layouts import Document
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import span_corruption
from jaxformer.errors import InputError


def _check_noise(owner: str, rate: float, mean_span: float | None) -> None:
    if not 0 < rate < 1:
        raise InputError(f"{owner}.rate {rate}: must lie between 0 and 1")
    if mean_span is not None and not mean_span >= 1:
        raise InputError(f"{owner}.mean_span {mean_span}: must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One recipe to hide tokens."""

    rate: float = 0.15
    """Share of the tokens to hide, on average."""
    mean_span: float | None = 3.0
    """Tokens hidden together, on average; None hides all after a random point, as in a prefix language model."""
    weight: float = 1.0
    """Share of this recipe among the examples; need not add up to 1."""
    mode: str = ""
    """Name of the recipe, such as [R], that may stand before the inputs."""

    def __post_init__(self):
        _check_noise("task.denoisers", self.rate, self.mean_span)
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"task.denoisers.weight {self.weight}: must be 0 or more")


class Denoising(Task):
    """What `SpanCorruption` and `UL2` share. Its rows are those of `TextToText`.

    A document is cut into stretches, each as long as there is room for what its recipe makes of it: no row is cut, and
    no token is lost but one that would be alone at the end of its document.
    """

    input_length: int | None
    length: int | None
    column: str | None
    modes: bool = False

    @property
    @abc.abstractmethod
    def recipes(self) -> tuple[Denoiser, ...]:
        """How tokens are hidden."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        return layouts.pair_row(self.input_length, self.target_length)

    @functools.cached_property
    def target_length(self) -> int:
        """Tokens of the targets a row; `length`, or what the inputs' `input_length` can need."""
        if self.length is not None:
            return self.length
        stretches = [(recipe, self.stretch_length(recipe)) for recipe in self._used]
        return 1 + max(
            span_corruption.sizes(length, recipe.rate, recipe.mean_span).targets for recipe, length in stretches
        )

    @property
    def need(self) -> str:
        return "document of two tokens or more"

    def stretch_length(self, recipe: Denoiser, taken: int = 0) -> int:
        """Tokens of a stretch, if `taken` other tokens stand before its inputs."""
        if self.input_length is None:
            return span_corruption.stretch_length(recipe.rate, recipe.mean_span, None, self.length - taken)
        # Half of the tokens in so many spans could need one more for the targets than for the inputs.
        length = self.input_length if self.length is None and recipe.rate <= 0.5 else self.length
        return span_corruption.stretch_length(recipe.rate, recipe.mean_span, self.input_length - taken, length)

    def check(self, tokenizer: Tokenizer, pack: bool) -> None:
        _ = tokenizer.eos_id, tokenizer.pad_id  # each raises if there is none
        have, need = len(tokenizer.sentinel_ids), {}
        for recipe, mode in zip(self._used, self._modes(tokenizer), strict=True):
            length = self._check_room(recipe, len(mode))
            need[recipe] = span_corruption.sizes(length, recipe.rate, recipe.mean_span).sentinels
        recipe = max(need, key=need.get)
        if need[recipe] > have:
            raise InputError(
                f"{type(self).__name__}: up to {need[recipe]} spans a row, and the tokenizer has {have} sentinels; set "
                f"tokenizer.sentinels to {need[recipe]} or more, or shorter rows (rate {recipe.rate} in spans of "
                f"{recipe.mean_span} of {self.stretch_length(recipe)} tokens)"
            )

    def read(self, example: Mapping[str, Any]) -> str:
        return files.text(example, self.column)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        return (with_blank(files.text(example, self.column), "<extra_id_0>"),)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Document:
        return layouts.document(self.read(example), tokenizer)

    def examples(
        self,
        document: Document,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        draw: Callable[[np.random.Generator], Document],
    ) -> list[Example]:
        found, start, modes = [], 0, self._modes(tokenizer)
        while len(document.tokens) - start >= 2:
            number = int(np.searchsorted(self._thresholds, rng.random(), side="right"))
            recipe, mode = self._used[number], modes[number]
            stop = start + self.stretch_length(recipe, len(mode))
            found.append(self._example(document.tokens[start:stop], recipe, mode, tokenizer, rng))
            start = stop
        return found

    def _example(self, stretch, recipe: Denoiser, mode: np.ndarray, tokenizer: Tokenizer, rng) -> Example:
        mask = span_corruption.noise_mask(len(stretch), recipe.rate, recipe.mean_span, rng)
        if recipe.mean_span is None:
            inputs, targets = stretch[~mask], stretch[mask]
        else:
            inputs, targets = span_corruption.corrupt(stretch, mask, tokenizer.sentinel_ids)
        inputs = layouts.ended(np.concatenate([mode, inputs]), tokenizer)
        encoder = self.input_length is not None
        return layouts.pair_example(inputs, layouts.ended(targets, tokenizer), tokenizer, encoder)

    def _modes(self, tokenizer: Tokenizer) -> list[np.ndarray]:
        """The tokens before the inputs of each recipe in use."""
        return [tokenizer.encode(recipe.mode if self.modes else "") for recipe in self._used]

    @functools.cached_property
    def _used(self) -> list[Denoiser]:
        return [recipe for recipe in self.recipes if recipe.weight > 0]

    @functools.cached_property
    def _thresholds(self) -> np.ndarray:
        """Where the next recipe begins, from 0 to 1; the last one has no end."""
        weights = [recipe.weight for recipe in self._used]
        return (np.cumsum(weights) / np.sum(weights))[:-1]

    def _check_fields(self) -> None:
        if self.input_length is None and self.length is None:
            raise InputError("task.length None: needs task.input_length to follow from; set one of them")
        for recipe in self._used:
            self._check_room(recipe, 0)

    def _check_room(self, recipe: Denoiser, taken: int) -> int:
        length = self.stretch_length(recipe, taken)
        if length < 2:
            sizes = f"task.input_length {self.input_length}, task.length {self.length}"
            what = f"two tokens, {taken} of the mode and what hides them" if taken else "two tokens and what hides them"
            raise InputError(f"{sizes}: too short for {what}; make them longer")
        return length


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Denoising):
    """Spans of a text give way to sentinels, and are to be written (Raffel et al. 2020, §3.1.4).

    Rows as those of `TextToText`. The tokenizer needs a sentinel for each span: `SentencePiece(sentinels=100)`.
    """

    input_length: int | None = 512
    """Tokens of the inputs a row, for an encoder-decoder; None: inputs and targets share rows of `length`."""
    length: int | None = None
    """Tokens of the targets a row; None: what the inputs can need, 114 for 512."""
    rate: float = 0.15
    """Share of the tokens to hide."""
    mean_span: float = 3.0
    """Tokens hidden together, on average."""
    column: str | None = None
    """Column of the source with the text or the list of sentences; None: `sentences` or `text`."""

    def __post_init__(self):
        _check_noise("task", self.rate, self.mean_span)
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
"""The seven denoisers of UL2 (Tay et al. 2022, table 1): regular, sequential and extreme ones."""


@dataclasses.dataclass(frozen=True)
class UL2(Denoising):
    """A mixture of denoisers (Tay et al. 2022, §3.1): each example is made by one of several recipes.

    Rows as those of `TextToText`. The tokenizer needs a sentinel for each span, here up to 128 with 512 inputs:
    `SentencePiece(sentinels=128)`.
    """

    input_length: int | None = 512
    """Tokens of the inputs a row, for an encoder-decoder; None: inputs and targets share rows of `length`."""
    length: int | None = None
    """Tokens of the targets a row; None: what the inputs can need."""
    denoisers: tuple[Denoiser, ...] = MIXTURE
    """The recipes, drawn by their weights."""
    modes: bool = False
    """Begin the inputs with the name of the recipe, encoded as text; so a downstream task can ask for one."""
    column: str | None = None
    """Column of the source with the text or the list of sentences; None: `sentences` or `text`."""

    def __post_init__(self):
        if not any(denoiser.weight for denoiser in self.denoisers):
            weights = tuple(denoiser.weight for denoiser in self.denoisers)
            raise InputError(f"task.denoisers: weights {weights}; give at least one that is positive")
        self._check_fields()

    @property
    def recipes(self) -> tuple[Denoiser, ...]:
        return self.denoisers
