"""Texts that an encoder–decoder generates for other texts: translations, summaries, answers."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.generate import generate
from jaxformer.decoding.scoring import Score, score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.predictors.base import Answer, Generates, Predictor, ScoresContinuations
from jaxformer.predictors.padding import stacked

Start = Literal["padding", "end", "beginning"]
"""The token that answers follow."""

Example = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, each with its end token."""

SHOWN = 3
"""Examples of a demonstration."""


@dataclasses.dataclass(frozen=True)
class Answered(Answer):
    """A text and a model's answer to it."""

    text: str
    """The text as it was given."""
    answer: str
    """The generated text."""

    def __str__(self) -> str:
        return self.answer


@dataclasses.dataclass(frozen=True, eq=False)
class TextToTextPredictor(Predictor[EncoderDecoder], Generates, ScoresContinuations):
    """Answers texts."""

    decoding: Decoding
    """How tokens are chosen."""
    start: Start = "padding"
    """The token that an answer follows."""
    beginning: bool = False
    """Whether inputs begin with the tokenizer's beginning token."""
    prefixes: tuple[str, ...] = ("",)
    """The prefixes of the tasks, each of which a demonstration shows."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the texts: inputs, and the token that each answer follows."""
        batch = stacked(self.prompts(texts))
        first = np.full((len(texts), 1), start_id(self.start, self.tokenizer), np.int32)
        arrays = {"inputs": batch["tokens"], "input_segments": batch["segments"]}
        return arrays | {"tokens": first, "segments": np.ones_like(first)}

    def predict(self, texts: Sequence[str]) -> list[Answered]:
        """Answers each text.

        Raises:
          InputError: a text without a token, or longer than the model's positions.
        """
        answers = self.answer_tokens(self.prompts(texts))
        return [Answered(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out inputs, of different tasks where there are some, what should come of them, and what does."""
        examples = self._in_turns(list(_examples(batch)))[:SHOWN]
        outputs = self.answer_tokens([inputs for inputs, _ in examples])
        lines = []
        for (inputs, targets), output in zip(examples, outputs, strict=True):
            lines += [f"inputs: {self.tokenizer.decode(inputs)}", f"  reference: {self.tokenizer.decode(targets)}"]
            lines += [f"  output:    {output}"]
        return lines

    def log_likelihoods(self, texts: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """How likely the model finds each answer to its text, the end token left out.

        Raises:
          InputError: a text or an answer without a token, or longer than the model's positions.
        """
        inputs = self.prompts(texts)
        encoded = [self.tokenizer.target.encode(answer) for answer in answers]
        return score(
            self.model,
            self.params,
            inputs,
            encoded,
            start_id(self.start, self.tokenizer),
            pieces=self.tokenizer.vocab_size,
        )

    def prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens that the encoder reads for each text; `<extra_id_0>` and so on are sentinels.

        Raises:
          InputError: a text without a token.
        """
        encoded = [self.tokenizer.encode_with_sentinels(text) for text in texts]
        for text, tokens in zip(texts, encoded, strict=True):
            if not len(tokens):
                raise InputError(f"{text!r}: an empty text; expected some words to answer")
        before = [self.tokenizer.bos_id] if self.beginning else []
        return [np.array([*before, *tokens, self.tokenizer.eos_id], np.int32) for tokens in encoded]

    def write(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The tokens of the answer to each prompt."""
        return generate(
            self.model,
            self.params,
            prompts,
            self.decoding,
            end=self.tokenizer.eos_id,
            start=start_id(self.start, self.tokenizer),
            pieces=self.tokenizer.vocab_size,
        )

    def _in_turns(self, examples: list[Example]) -> list[Example]:
        """The examples, the first one of each prefix and of none before the second ones, and so on."""
        prefixes = {prefix: _starts_with(prefix, self.tokenizer) for prefix in self.prefixes}
        seen, turns = collections.Counter(), []
        for inputs, _ in examples:
            prefix = next((prefix for prefix, starts in prefixes.items() if starts(inputs)), None)
            turns.append(seen[prefix])
            seen[prefix] += 1
        return [examples[number] for number in np.argsort(turns, kind="stable")]

    def answer_tokens(self, inputs: Sequence[np.ndarray]) -> list[str]:
        return [self.tokenizer.decode(output) for output in self.write(inputs)]


def start_id(start: Start, tokenizer: Tokenizer) -> int:
    """The id of the token that an answer follows."""
    names = {"padding": "pad_id", "end": "eos_id", "beginning": "bos_id"}
    return getattr(tokenizer, names[start])


def _starts_with(prefix: str, tokenizer: Tokenizer) -> Callable[[np.ndarray], bool]:
    """Whether inputs begin with the prefix, as the tokenizer has it."""
    start = tokenizer.decode(tokenizer.encode(prefix))
    return lambda inputs: not start or tokenizer.decode(inputs).startswith(start)


def _examples(batch: Mapping[str, Any]) -> Iterator[Example]:
    """Inputs and targets of each example in a batch, row after row."""
    rows = (batch[name] for name in ("inputs", "input_segments", "targets", "segments"))
    for inputs, input_segments, targets, segments in zip(*rows, strict=True):
        for number in range(1, segments.max(initial=0) + 1):
            yield inputs[input_segments == number], targets[segments == number]
