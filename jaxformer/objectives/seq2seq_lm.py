"""The objective of an encoder–decoder: each next token of the output, given the inputs (Vaswani et al. 2017)."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxformer import fields
from jaxformer.data.tasks.base import Task, Written
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.generate import generate
from jaxformer.decoding.scoring import Score, score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.losses.token_loss import check_terms, report_tokens, token_means
from jaxformer.metrics.means import Mean
from jaxformer.metrics.texts import Scores, scores, text_scores
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.predictors.padding import stacked

INPUTS = ("inputs", "tokens", "input_segments", "segments", "input_position_ids", "position_ids")

Example = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, each with its end token."""

CUT = ("cut_inputs", "cut_references")
"""How many of the scored documents have more tokens of inputs, and of a reference, than the task's rows."""
SHOWN = 3
"""Examples of a demonstration."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A text and a model's answer to it."""

    text: str
    """The text as it was given."""
    answer: str
    """What the model wrote."""

    def __str__(self) -> str:
        return self.answer


@dataclasses.dataclass(frozen=True)
class Seq2SeqLM:
    """Predict each next token of an output from the inputs and the output so far."""

    label_smoothing: float = 0.0
    """Share of the target's probability that all tokens divide (Szegedy et al. 2016); the paper has 0.1."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the partition function, which keeps logits small; T5 has 1e-4."""
    decoding: Decoding = Decoding(max_new_tokens=128, num_beams=4)
    """How it writes; changes nothing in training."""
    scored: int = 0
    """Held-out documents that an evaluation answers and scores, the first ones (of each prefix); 0 for none."""
    scores: tuple[Scores, ...] = (Scores(),)
    """What they are scored by; with several prefixes, each task for itself."""
    start: Literal["padding", "end", "beginning"] = "padding"
    """The token that an answer follows: padding, as in the rows of `TextToText`, or another, as an imported BART's."""
    beginning: bool = False
    """Begin inputs with the tokenizer's beginning token, for a model that has learned from inputs that do."""

    def __post_init__(self):
        fields.check(self)
        check_terms(self)
        fields.at_least("objective.scored", self.scored, 0)
        labels = [part.label for part in self.scores]
        for part in self.scores:
            if labels.count(part.label) > 1:
                raise InputError(f"objective.scores: twice the prefix {part.prefix!r}; expected one of each")

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: EncoderDecoder, row: Collection[str]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        if not model.is_encoder_decoder:
            raise InputError(f"objective=Seq2SeqLM: needs an EncoderDecoder; the model is a {type(model).__name__}")
        if missing := [name for name in ("inputs", "tokens", "targets", "weights") if name not in row]:
            raise InputError(f"objective=Seq2SeqLM: the task's rows have no {missing[0]}; use one such as TextToText")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: EncoderDecoder, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss and cross-entropy (nats) and the accuracy of a batch, as weighted means.

        Args:
          model: an encoder–decoder.
          params: its parameters.
          batch: inputs, input_segments, input_position_ids [b, s]; tokens, targets, weights, segments,
            position_ids [b, t].
          key: for dropout; None evaluates.
        """
        return token_means(self, model, params, batch, key)

    def document_scores(
        self, model: EncoderDecoder, params, tokenizer: Tokenizer, task: Task, documents: Sequence[Mapping[str, Any]]
    ) -> dict[str, Mean]:
        """Counts for the scores of the first `scored` held-out documents of each prefix.

        References are the texts of the source itself, whole, whatever the tokenizer and the rows make of them.

        Raises:
          InputError: the task's documents have no text to write.
        """
        if self.scored and not task.writes:
            raise InputError(
                f"objective.scored={self.scored}: data.task={type(task).__name__} has no text to compare answers with; "
                "expected 0, or a task such as TextToText"
            )
        found = {}
        for part, written in self._first_written(tokenizer, task, documents).items():
            outputs = self._answer(model, params, tokenizer, [one.tokens for one in written])
            counts = text_scores(outputs, [one.reference for one in written], part.by)
            for name in CUT:
                counts[name] = Mean(np.float64(sum(getattr(one, name) for one in written)), np.float64(len(written)))
            found |= {part.label + name: mean for name, mean in counts.items()}
        return found

    def _first_written(
        self, tokenizer: Tokenizer, task: Task, documents: Sequence[Mapping[str, Any]]
    ) -> dict[Scores, list[Written]]:
        """The documents to score by each of the `scores`."""
        found: dict[Scores, list[Written]] = {part: [] for part in self.scores if self.scored}
        for number in range(len(documents)):
            waiting = [part for part, written in found.items() if len(written) < self.scored]
            if not waiting:
                break
            written = task.written(documents[number], tokenizer)
            for part in waiting:
                if written is not None and written.inputs.startswith(part.prefix):
                    found[part].append(written)
        return found

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means."""
        found = report_tokens(means)
        for part in self.scores:
            own = {name: means[part.label + name] for name in part.names if part.label + name in means}
            found |= {part.label + name: score for name, score in scores(own).items()}
            cut = [part.label + name for name in CUT if part.label + name in means]
            found |= {name: float(means[name].sum) for name in cut}
        return found

    def encode(self, model: EncoderDecoder, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the texts: inputs, and the token that each answer follows."""
        batch = stacked(self.prompts(tokenizer, texts))
        first = np.full((len(texts), 1), self.start_id(tokenizer), np.int32)
        arrays = {"inputs": batch["tokens"], "input_segments": batch["segments"]}
        return arrays | {"tokens": first, "segments": np.ones_like(first)}

    def predict(self, model: EncoderDecoder, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Answered]:
        """Answers each text.

        Raises:
          InputError: a text without a token, or longer than the model's positions.
        """
        answers = self._answer(model, params, tokenizer, self.prompts(tokenizer, texts))
        return [Answered(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def demonstrate(self, model: EncoderDecoder, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out inputs, of different tasks where there are some, what should come of them, and what does."""
        examples = self._in_turns(tokenizer, list(_examples(batch)))[:SHOWN]
        outputs = self._answer(model, params, tokenizer, [inputs for inputs, _ in examples])
        lines = []
        for (inputs, targets), output in zip(examples, outputs, strict=True):
            lines += [f"inputs: {tokenizer.decode(inputs)}", f"  reference: {tokenizer.decode(targets)}"]
            lines += [f"  output:    {output}"]
        return lines

    def log_likelihoods(
        self, model: EncoderDecoder, params, tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[str]
    ) -> list[Score]:
        """How likely the model finds each answer to its text, the end token left out.

        Raises:
          InputError: a text or an answer without a token, or longer than the model's positions.
        """
        inputs = self.prompts(tokenizer, texts)
        encoded = [tokenizer.target.encode(answer) for answer in answers]
        return score(model, params, inputs, encoded, self.start_id(tokenizer), pieces=tokenizer.vocab_size)

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        """What the encoder reads of each text; `<extra_id_0>` and so on are sentinels.

        Raises:
          InputError: a text without a token.
        """
        encoded = [tokenizer.encode_with_sentinels(text) for text in texts]
        for text, tokens in zip(texts, encoded, strict=True):
            if not len(tokens):
                raise InputError(f"{text!r}: an empty text; expected some words to answer")
        before = [tokenizer.bos_id] if self.beginning else []
        return [np.array([*before, *tokens, tokenizer.eos_id], np.int32) for tokens in encoded]

    def write(
        self, model: EncoderDecoder, params, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """The tokens of the answer to each prompt."""
        special = {"end": tokenizer.eos_id, "start": self.start_id(tokenizer)}
        return generate(model, params, prompts, self.decoding, **special, pieces=tokenizer.vocab_size)

    def start_id(self, tokenizer: Tokenizer) -> int:
        """The id of the token that an answer follows."""
        names = {"padding": "pad_id", "end": "eos_id", "beginning": "bos_id"}
        return getattr(tokenizer, names[self.start])

    def _in_turns(self, tokenizer: Tokenizer, examples: list[Example]) -> list[Example]:
        """The examples, the first one of each prefix and of none before the second ones, and so on."""
        prefixes = {part.prefix: _starts_with(part.prefix, tokenizer) for part in self.scores}
        seen, turns = collections.Counter(), []
        for inputs, _ in examples:
            prefix = next((prefix for prefix, starts in prefixes.items() if starts(inputs)), None)
            turns.append(seen[prefix])
            seen[prefix] += 1
        return [examples[number] for number in np.argsort(turns, kind="stable")]

    def _answer(self, model, params, tokenizer: Tokenizer, inputs: Sequence[np.ndarray]) -> list[str]:
        return [tokenizer.decode(output) for output in self.write(model, params, tokenizer, inputs)]


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
