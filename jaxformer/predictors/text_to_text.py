"""Generates texts from texts with an encoder–decoder: translations, summaries, answers."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.tokenizer import Ids
from jaxformer.decoding.generate import generate
from jaxformer.decoding.scoring import Score, score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.predictors.base import Answer, Generates, Predictor, Replies, ScoresContinuations
from jaxformer.predictors.padding import stacked

Start = Literal["padding", "end", "beginning"]
"""Special token that the decoder starts from: the padding, EOS (`end`) or BOS (`beginning`) token."""

Example = tuple[np.ndarray, np.ndarray]
"""Token ids of an input and of its target text, int [tokens] each. Both end with the EOS token."""

MAX_EXAMPLES = 3
"""Maximum number of held-out examples for which `demonstrate` generates a text."""


@dataclasses.dataclass(frozen=True)
class Answered(Answer):
    """A text and the text that the model generated from it."""

    text: str
    """Text in the request."""
    answer: str
    """Text that the model generated."""

    def __str__(self) -> str:
        return self.answer


@dataclasses.dataclass(frozen=True, eq=False)
class TextToTextPredictor(Predictor[EncoderDecoder], Generates, Replies, ScoresContinuations):
    """Generates a text from each text, such as a translation, using an encoder–decoder."""

    decoding: Decoding
    """Settings for generating tokens."""
    start: Start = "padding"
    """Special token that the decoder starts from."""
    beginning: bool = False
    """Whether the tokenizer's BOS token is added at the start of inputs."""
    prefixes: tuple[str, ...] = ("",)
    """Prefixes of the inputs, each of which identifies a task, such as `translate: `. `demonstrate` shows examples of
    each task.
    """

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts texts to the arguments of the model: `inputs` and `input_segments` for the encoder, and `tokens` and
        `segments` with only the start token for the decoder.
        """
        batch = stacked(self.prompts(texts))
        first = np.full((len(texts), 1), start_id(self.start, self.tokenizer), np.int32)
        arrays = {"inputs": batch["tokens"], "input_segments": batch["segments"]}
        return arrays | {"tokens": first, "segments": np.ones_like(first)}

    def predict(self, texts: Sequence[str]) -> list[Answered]:
        """Generates an answer to each text.

        Raises:
          InputError: If a text has no tokens or exceeds the maximum length of the model.
        """
        answers = self.answer_tokens(self.prompts(texts))
        return [Answered(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def reply(self, request: str) -> Iterator[str]:
        """Yields the answer to a text at once."""
        (answer,) = self.predict([request])
        yield answer.answer

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Generates the outputs for a few held-out inputs. Returns three lines per example: the input, its reference
        and the output. If several `prefixes` are set, examples of each are shown.
        """
        examples = self._in_turns(list(_examples(batch)))[:MAX_EXAMPLES]
        outputs = self.answer_tokens([inputs for inputs, _ in examples])
        lines = []
        for (inputs, targets), output in zip(examples, outputs, strict=True):
            lines += [f"inputs: {self.tokenizer.decode(inputs)}", f"  reference: {self.tokenizer.decode(targets)}"]
            lines += [f"  output:    {output}"]
        return lines

    def log_likelihoods(self, texts: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """Computes the log-probability of each answer given its text. The EOS token after the answer is not included.

        Raises:
          InputError: If a text or an answer has no tokens or exceeds the maximum length of the model.
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
        """Encodes texts as encoder inputs. Names such as `<extra_id_0>` become sentinel tokens.

        Raises:
          InputError: If a text has no tokens.
        """
        encoded = [self.tokenizer.encode_with_sentinels(text) for text in texts]
        for text, tokens in zip(texts, encoded, strict=True):
            if not len(tokens):
                raise InputError(f"{text!r}: an empty text; expected some words to answer")
        before = [self.tokenizer.bos_id] if self.beginning else []
        return [np.array([*before, *tokens, self.tokenizer.eos_id], np.int32) for tokens in encoded]

    def write(self, prompts: Sequence[Ids]) -> list[np.ndarray]:
        """Generates an answer to each encoder input in `prompts`, which are arrays of token ids. Returns the token ids
        of each answer.
        """
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
        """Reorders examples so that the prefixes of their inputs alternate: first one example of each prefix, followed
        by a second example of each, and so on.
        """
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
    """Returns the id of the special token that the decoder starts from."""
    names = {"padding": "pad_id", "end": "eos_id", "beginning": "bos_id"}
    return getattr(tokenizer, names[start])


def _starts_with(prefix: str, tokenizer: Tokenizer) -> Callable[[np.ndarray], bool]:
    """Returns a function that takes the tokens of an input, and returns whether their text starts with the prefix."""
    start = tokenizer.decode(tokenizer.encode(prefix))
    return lambda inputs: not start or tokenizer.decode(inputs).startswith(start)


def _examples(batch: Mapping[str, Any]) -> Iterator[Example]:
    """Yields (input tokens, target tokens) for each example in a batch. A row may contain several examples."""
    rows = (batch[name] for name in ("inputs", "input_segments", "targets", "segments"))
    for inputs, input_segments, targets, segments in zip(*rows, strict=True):
        for number in range(1, segments.max(initial=0) + 1):
            yield inputs[input_segments == number], targets[segments == number]
