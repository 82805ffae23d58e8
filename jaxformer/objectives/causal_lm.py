"""The objective of a causal language model: every next token (Radford et al. 2019)."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxformer import fields
from jaxformer.data.tasks.dialogue import ANSWERS, DialogueTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.generate import generate, stream
from jaxformer.decoding.scoring import Score, score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.losses.token_loss import check_terms, report_tokens, token_means
from jaxformer.metrics.means import Mean
from jaxformer.models.gpt import Gpt
from jaxformer.predictors.padding import stacked

INPUTS = ("tokens", "segments", "position_ids", "prefix")

SHOWN = 48
"""Tokens of a held-out text that a demonstration begins with, at most."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """A text, and how a model goes on."""

    text: str
    """The text as it was given."""
    continuation: str
    """What the model wrote; it begins with a space where a new word does."""

    def __str__(self) -> str:
        return self.text + self.continuation


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predict each next token."""

    label_smoothing: float = 0.0
    """Share of the target's probability that all tokens divide (Szegedy et al. 2016)."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the partition function, which keeps logits small; PaLM has 1e-4."""
    prompt: Literal["text", "prefix", "inputs"] = "text"
    """What a prompt is: the beginning of a text; one whose tokens see each other both ways (rows of a prefix language
    model); or inputs to answer, which do so too and have an end token (rows of text to text)."""
    beginning: bool = False
    """Begin prompts with the tokenizer's beginning token, for a model that has learned from texts that do."""
    template: DialogueTemplate | None = None
    """How dialogues are written, as in the rows of `Dialogue`: a prompt is one, or what a user says, and the model
    answers. None: it goes on with texts."""
    decoding: Decoding = Decoding(temperature=0.8, top_p=0.95)
    """How it writes; changes nothing in training."""

    def __post_init__(self):
        fields.check(self)
        check_terms(self)
        if self.template is not None and self.prompt != "text":
            raise InputError(f"objective.prompt={self.prompt}: expected text with a template of dialogues")

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Gpt, row: Collection[str]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        if not model.is_generative or model.is_encoder_decoder:
            raise InputError(
                f"objective=CausalLM: needs a Gpt or another decoder; the model is a {type(model).__name__}"
            )
        if missing := [name for name in ("tokens", "targets", "weights") if name not in row]:
            raise InputError(f"objective=CausalLM: the task's rows have no {missing[0]}; use one such as NextToken")
        if "inputs" in row:
            raise InputError("objective=CausalLM: the task's rows have inputs for an encoder; set input_length=None")
        if ("prefix" in row) != (self.prompt != "text"):
            expected = "prefix or inputs" if "prefix" in row else "text"
            raise InputError(f"objective.prompt={self.prompt}: expected {expected} for the task's rows")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] > 0 if name == "prefix" else batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Gpt, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss and cross-entropy (nats) and the accuracy of a batch, as weighted means.

        Args:
          model: a GPT.
          params: its parameters.
          batch: tokens, targets, weights, segments, position_ids [b, t], and perhaps prefix [b, t].
          key: for dropout; None evaluates.
        """
        return token_means(self, model, params, batch, key)

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means."""
        return report_tokens(means)

    def encode(self, model: Gpt, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the texts as prompts."""
        batch = stacked(self.prompts(tokenizer, texts))
        return batch if self.prompt == "text" else batch | {"prefix": batch["segments"] > 0}

    def predict(self, model: Gpt, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Continued]:
        """Goes on with each text.

        Raises:
          InputError: a text without a token, or longer than the model's positions.
        """
        prompts = self.prompts(tokenizer, texts)
        outputs = self.write(model, params, tokenizer, prompts)
        return [
            Continued(text, self._written(tokenizer, prompt, output))
            for text, prompt, output in zip(texts, prompts, outputs, strict=True)
        ]

    def stream(self, model: Gpt, params, tokenizer: Tokenizer, text: str) -> Iterator[str]:
        """The text and then what the model writes, piece by piece as it comes.

        Raises:
          InputError: as `predict` does, or for a beam search.
        """
        (prompt,), shown = self.prompts(tokenizer, [text]), ""
        settings = {"prefix": self.prompt != "text", "pieces": tokenizer.vocab_size}
        output = np.zeros(0, np.int32)
        for tokens in stream(model, params, prompt, self.decoding, tokenizer.eos_id, **settings):
            if not len(output):
                yield text
            output = np.append(output, tokens)
            written = self._written(tokenizer, prompt, output)
            # The bytes of a character may still be on their way.
            if written.startswith(shown) and not written.endswith("\N{REPLACEMENT CHARACTER}"):
                yield written[len(shown) :]
                shown = written
        yield self._written(tokenizer, prompt, output)[len(shown) :]

    def log_likelihoods(
        self, model: Gpt, params, tokenizer: Tokenizer, texts: Sequence[str], continuations: Sequence[str]
    ) -> list[Score]:
        """How likely the model finds each continuation of its text.

        A space between the two may be in either. What is longer than the positions loses its beginning; of an empty
        text, the beginning or else the end token is left.

        Raises:
          InputError: a continuation without a token, or longer than the model's positions.
        """
        pairs = [self._divided(tokenizer, *pair) for pair in zip(texts, continuations, strict=True)]
        room = [max(1, model.max_length + 1 - len(continuation)) for _, continuation in pairs]
        prompts = [prompt[-most:] for (prompt, _), most in zip(pairs, room, strict=True)]
        settings = {"prefix": self.prompt != "text", "pieces": tokenizer.vocab_size}
        return score(model, params, prompts, [pair[1] for pair in pairs], **settings)

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        """What the model reads of each text; `<extra_id_0>` and so on are sentinels.

        Raises:
          InputError: a text without a token.
        """
        before = [tokenizer.bos_id] if self.beginning else []
        after = [tokenizer.eos_id] if self.prompt == "inputs" else []
        encoded = [self._read(tokenizer, text) for text in texts]
        for text, tokens in zip(texts, encoded, strict=True):
            if not len(tokens) and not before:
                raise InputError(f"{text!r}: an empty prompt; expected some text to go on with")
        return [np.concatenate([before, tokens, after]).astype(np.int32) for tokens in encoded]

    def _read(self, tokenizer: Tokenizer, text: str) -> np.ndarray:
        if self.template is None:
            return tokenizer.encode_with_sentinels(text)
        return self.template.prompt(text, tokenizer) if text.strip() else np.zeros(0, np.int32)

    def write(self, model: Gpt, params, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The tokens behind each prompt."""
        settings = {"prefix": self.prompt != "text", "pieces": tokenizer.vocab_size}
        return generate(model, params, prompts, self.decoding, tokenizer.eos_id, **settings)

    def demonstrate(self, model: Gpt, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A held-out beginning, and how the model goes on."""
        segments, tokens = batch["segments"][0], batch["tokens"][0]
        first = tokens[segments == 1]
        if not len(first):
            return []
        given = min(len(first) // 2 + 1, SHOWN)
        if "prefix" in batch:
            given = batch["prefix"][0][segments == 1].sum()
        elif self.template is not None:  # Up to the first answer.
            given = np.argmax(batch["weights"][0][segments == 1] > 0) + 1
        prompt = first[:given]
        (output,) = self.write(model, params, tokenizer, [prompt])
        return [f"{tokenizer.decode(prompt)} […]{self._written(tokenizer, prompt, output)}"]

    def _divided(self, tokenizer: Tokenizer, text: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a text and of its continuation, as they are encoded together."""
        if self.template is not None:
            answer = self.template.encode((ANSWERS, continuation.strip()), tokenizer)[1]
            return self.prompts(tokenizer, [text])[0], answer[:-1]  # Without the end token.
        if self.prompt == "inputs":
            return self.prompts(tokenizer, [text])[0], tokenizer.encode(continuation)
        given = text.rstrip()
        continuation = text[len(given) :] + continuation
        prompt, whole = (tokenizer.encode_with_sentinels(part) for part in (given, given + continuation))
        size = min(len(prompt), len(whole) - 1) if given else 0
        before = [tokenizer.bos_id] if self.beginning else [] if size else [tokenizer.eos_id]
        return np.concatenate([before, whole[:size]]).astype(np.int32), whole[size:]

    def _written(self, tokenizer: Tokenizer, prompt: np.ndarray, output: np.ndarray) -> str:
        """The output as text that may stand behind the prompt's."""
        if self.template is not None:
            return f"\n{self.template.text((ANSWERS, tokenizer.decode(output).lstrip()))}"
        if self.prompt == "inputs":
            return "\n  " + tokenizer.decode(output)
        # Decoded together: whether there is a space between the two is not in the output alone.
        before, whole = tokenizer.decode(prompt), tokenizer.decode(np.append(prompt, output))
        if not whole.startswith(before):  # The bytes of the prompt's last character may go on in the output.
            before = before.rstrip("\N{REPLACEMENT CHARACTER}")
        return whole.removeprefix(before) if whole.startswith(before) else f" {tokenizer.decode(output)}"
